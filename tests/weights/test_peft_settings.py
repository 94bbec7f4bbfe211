"""peft's settings of an adapter, against peft itself: what it computes, or refused by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cogvideox.errors import CheckpointError
from cogvideox.weights import peft_settings
from cogvideox.weights.lora_file import read_adapter
from cogvideox.weights.lora_map import merge_weight
from peft import LoraConfig, get_peft_model
from peft.config import PeftConfigMixin
from safetensors.torch import save_file
from torch import Tensor, nn

WIDTH, RANK = 16, 4
START = {"gaussian": "gaussian", "true": True, "random": False, "orthogonal": "orthogonal", "mica": "mica"}


class Block(nn.Module):
    """The attention projections of one block under diffusers' names."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1 = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH, bias=False) for name in ("to_q", "to_k", "to_v")})
        self.attn1["to_out"] = nn.ModuleList([nn.Linear(WIDTH, WIDTH, bias=False)])


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([Block()])

    def forward(self, x: Tensor) -> Tensor:
        return self.transformer_blocks[0].attn1["to_q"](x)


def trained(folder: Path, **settings: Any) -> tuple[Tensor, Tensor]:
    """An adapter as peft saves it after training; returns the released weight of to_q and what peft makes of it."""
    torch.manual_seed(0)
    model = Model()
    released = model.transformer_blocks[0].attn1["to_q"].weight.detach().clone()
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    tuned = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=6, target_modules=targets, **settings))
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.data += torch.randn_like(parameter) / 10
    tuned.save_pretrained(folder)
    with torch.no_grad():
        tuned.eval().merge_adapter()
    return released, tuned.base_model.model.transformer_blocks[0].attn1["to_q"].weight.detach()


def ours(folder: Path, released: Tensor) -> Tensor:
    adapter = read_adapter(folder)
    name = "transformer.layers.0.attention.query_key_value.matrix_{}.0"
    a, b = (adapter.matrices[name.format(kind)] for kind in "AB")
    return merge_weight(released, [a], [b], adapter.lora.scaling)


@pytest.mark.parametrize("start", START)
@pytest.mark.parametrize("rslora", [False, True])
def test_what_is_accepted_is_what_peft_computes(tmp_path: Path, start: str, rslora: bool) -> None:
    released, theirs = trained(tmp_path, init_lora_weights=START[start], use_rslora=rslora, lora_dropout=0.5)
    assert (theirs - released).abs().max() > 1e-3
    torch.testing.assert_close(ours(tmp_path, released), theirs, rtol=0, atol=2e-7)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_starts_that_change_the_base_are_refused(tmp_path: Path, start: str) -> None:
    """Merging such an adapter into the released weight is far off, which the refusal is for."""
    released, theirs = trained(tmp_path, init_lora_weights=start)
    with pytest.raises(
        CheckpointError, match=rf"init_lora_weights is '{start}', which changed the base.*path_initial_model_for_weight"
    ):
        read_adapter(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "init_lora_weights": True}))
    assert (ours(tmp_path, released) - theirs).norm() > 0.1 * theirs.norm()


def test_a_converted_pissa_adapter_is_read(tmp_path: Path) -> None:
    """The way out that the message names: peft writes twice the rank, and the start as a plain one."""
    torch.manual_seed(0)
    model = Model()
    released = model.transformer_blocks[0].attn1["to_q"].weight.detach().clone()
    config = LoraConfig(r=RANK, lora_alpha=6, target_modules=["to_q"], init_lora_weights="pissa")
    tuned = get_peft_model(model, config)
    tuned.peft_config["default"].init_lora_weights = True
    tuned.save_pretrained(tmp_path / "start")
    tuned.peft_config["default"].init_lora_weights = "pissa"
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.data += torch.randn_like(parameter) / 10
    tuned.save_pretrained(tmp_path / "out", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    tuned.merge_adapter()
    theirs = tuned.base_model.model.transformer_blocks[0].attn1["to_q"].weight.detach()
    torch.testing.assert_close(ours(tmp_path / "out", released), theirs, rtol=0, atol=2e-6)


def plain_folder(folder: Path, suffix: str = "safetensors", **config: Any) -> Path:
    name = "base_model.model.transformer_blocks.0.attn1.to_q.lora_{}.weight"
    tensors = {name.format("A"): torch.ones(RANK, WIDTH), name.format("B"): torch.ones(WIDTH, RANK)}
    if suffix == "bin":
        torch.save(tensors, folder / "adapter_model.bin")
    else:
        save_file(tensors, folder / f"adapter_model.{suffix}")
    text = json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 8, **config})
    (folder / "adapter_config.json").write_text("\ufeff" + text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_folder_with_a_byte_order_mark_and_either_kind_of_file(tmp_path: Path, suffix: str) -> None:
    assert read_adapter(plain_folder(tmp_path, suffix)).lora.alpha == 8


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LOHA"}, "is a 'LOHA' of peft; only LoRA"),
        ({"peft_type": ["LORA"]}, "only LoRA"),
        ({"use_dora": True}, "is a DoRA"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes', true or false is expected"),
        ({"bias": "all"}, "bias is 'all', which is not the plain LoRA"),
        ({"lora_bias": True}, "lora_bias is True, which is not the plain LoRA"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True, which is not"),
        ({"modules_to_save": ["proj_out"]}, r"modules_to_save is \['proj_out'\], which is not"),
        ({"layer_replication": [[0, 1]]}, "layer_replication is .* which is not"),
        ({"target_parameters": ["a"]}, "target_parameters is .* which is not"),
        ({"rank_pattern": {"to_q": 8}}, r"its modules differ \(rank_pattern\)"),
        ({"alpha_pattern": {"to_q": 8}}, r"its modules differ \(alpha_pattern\)"),
        ({"use_qalora": True}, "use_qalora is True, which is not"),
        ({"init_lora_weights": "CorDA"}, "init_lora_weights is 'CorDA', which changed the base"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights is 'lora_ga', which changed the base"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'.* The base was quantised: merge"),
        ({"init_lora_weights": "svd_of_tomorrow"}, "'svd_of_tomorrow', which is not known here"),
        ({"init_lora_weights": {"a": 1}}, r"init_lora_weights is \{'a': 1\}, which is not known here"),
        ({"invention_of_tomorrow": 3}, "invention_of_tomorrow is 3, a setting of peft that is not known here"),
        ({"r": [4]}, r"states rank \[4\], its matrices have rank 4"),
        ({"lora_alpha": "8"}, None),
    ],
)
def test_settings_that_are_no_plain_lora(tmp_path: Path, config: dict[str, Any], message: str | None) -> None:
    folder = plain_folder(tmp_path, **config)
    if message is None:
        assert read_adapter(folder).lora.alpha == 8
        return
    with pytest.raises(CheckpointError, match=message) as error:
        read_adapter(folder)
    assert str(folder) in str(error.value)


def test_a_setting_of_tomorrow_that_is_off_is_accepted(tmp_path: Path) -> None:
    assert read_adapter(plain_folder(tmp_path, invention_of_tomorrow=False)).lora.rank == RANK


def test_every_setting_of_peft_is_in_one_table() -> None:
    ours = [*peft_settings.USED, *peft_settings.WITHOUT_EFFECT, *peft_settings.PLAIN]
    assert len(ours) == len(set(ours))
    theirs = {field.name for kind in (LoraConfig, PeftConfigMixin) for field in dataclasses.fields(kind)}
    assert theirs <= set(ours), "peft has a new setting: does it change what a trained adapter computes?"
    check = LoraConfig().to_dict()
    check["runtime_config"] = None
    peft_settings.check_settings({**check, "peft_type": "LORA"}, "defaults")
