"""What the optimizer section means, and which parameters decay."""

from __future__ import annotations

import pytest
import torch
from cogvideox.config.deepspeed_settings import DeepSpeedSection
from cogvideox.errors import ConfigError
from cogvideox.training.optimizers import AdamSettings, build_adam, parameter_groups, read_optimizer
from torch import nn
from training.toy import checked


def section(kind: str = "AdamW", **params: object) -> DeepSpeedSection:
    return checked({"optimizer": {"type": kind, "params": {"lr": 1e-3, **params}}})


def test_settings_are_read():
    given = section(betas=[0.9, 0.95], eps=1e-8, weight_decay=1e-4)
    assert read_optimizer(given) == AdamSettings(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=1e-4)
    assert not read_optimizer(section("Adam", adam_w_mode=False)).decoupled
    assert read_optimizer(section("sat.ops.FusedEmaAdam")).by_deepspeed is False


def test_deepspeeds_kernel_on_request_and_for_offload():
    own = read_optimizer(section(torch_adam=False))
    assert own.by_deepspeed and not own.is_offloaded
    offload = checked({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}})
    assert read_optimizer(offload).by_deepspeed and read_optimizer(offload).is_offloaded


def test_biases_norms_and_position_tables_do_not_decay():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    model.register_parameter("pos_embedding", nn.Parameter(torch.zeros(1, 3, 4)))
    model[0].weight.requires_grad_(True)
    decayed, spared = parameter_groups(model, weight_decay=0.1)
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 4)] and decayed["weight_decay"] == 0.1
    assert len(spared["params"]) == 4 and spared["weight_decay"] == 0.0


def test_nothing_to_train_is_refused():
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        parameter_groups(model, 0.0)


def test_the_rate_is_zero_until_the_first_step_sets_it():
    model = nn.Linear(2, 2)
    optimizer = build_adam(parameter_groups(model, 0.1), AdamSettings(lr=1.0))
    before = model.weight.detach().clone()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(model.weight, before) and optimizer.defaults["fused"]
