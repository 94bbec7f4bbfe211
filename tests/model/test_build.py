"""Building from a configuration, and the parts that must agree."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from cogvideox.errors import CheckpointError, ConfigError
from cogvideox.model.build import (
    build_model,
    draft_model,
    has_lora,
    image_condition,
    place_model,
    place_text_encoder,
    with_lora,
)
from cogvideox.model.image_condition import ImageCondition
from cogvideox.model.loading import load_transformer
from cogvideox.parallel.groups import start_process_groups
from model.parts import model_config
from processes import run_processes
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFamily:
    return tiny.write_family(tmp_path_factory.mktemp("family") / "tiny", num_clips=0)


def build(config: object, dtype: torch.dtype = torch.float32, seed: int = 0, **more: object) -> object:
    return build_model(config, device="cpu", dtype=dtype, seed=seed, **more)  # type: ignore[arg-type]


def test_weights_depend_on_the_seed_only(family: tiny.TinyFamily) -> None:
    config = model_config(family, lora={})
    torch.manual_seed(1)
    state_before = torch.random.get_rng_state()
    one = build(config, seed=5).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state_before)
    torch.manual_seed(2)
    two, other = build(config, seed=5).state_dict(), build(config, seed=6).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one if "matrix_A" in name)


def build_without_vae_on_one(family: tiny.TinyFamily) -> str:
    groups = start_process_groups("cpu", collective_seconds=60)
    config = model_config(family)
    if not groups.is_first:
        config.first_stage_config["params"]["ckpt_path"] = "/nowhere/vae.pt"
    try:
        groups.attempt(lambda: build(config))
    except CheckpointError as error:
        return str(error)
    return "built"


@pytest.mark.slow
def test_a_part_that_one_process_lacks_ends_all_at_once(family: tiny.TinyFamily) -> None:
    """None waits for the other in the groups that SAT makes for the transformer."""
    answers = run_processes(build_without_vae_on_one, 2, family)
    assert answers[0] == answers[1] and "no checkpoint at /nowhere/vae.pt" in answers[0]


@pytest.mark.parametrize("kind", ["2b", "5b_i2v", "1.5_i2v"])
def test_a_build_whose_weights_follow_ends_up_the_same(kind: str, tmp_path: Path) -> None:
    paths = tiny.write_family(tmp_path / "tiny", num_clips=0, family=kind)
    states = []
    for weights_follow in (False, True):
        model = build(model_config(paths, lora={}, family=kind), seed=3, weights_follow=weights_follow)
        load_transformer(model, paths.transformer)
        states.append(model.state_dict())
    random, empty = states
    assert random.keys() == empty.keys()
    for name, value in random.items():
        if "matrix_A" in name:
            assert 0.5 < float(empty[name].std() / value.std()) < 2
        elif "transformer.position_embeddings" not in name:
            assert torch.equal(value, empty[name]), name
    assert all(bool(value.isfinite().all()) for value in empty.values())
    again = build(model_config(paths, lora={}, family=kind), seed=3, weights_follow=True).state_dict()
    assert all(torch.equal(empty[name], again[name]) for name in empty if "matrix_" in name)


@pytest.mark.parametrize("weights_follow", [True, False])
def test_a_draft_that_is_placed_is_the_model(family: tiny.TinyFamily, weights_follow: bool) -> None:
    """Its transformer has no memory before, where weights follow; frozen weights stay frozen."""
    config = model_config(family, lora={})
    model = draft_model(config, dtype=torch.bfloat16, seed=3, weights_follow=weights_follow)
    assert model.device.type == ("meta" if weights_follow else "cpu")
    frozen = [parameter.requires_grad_(False) for parameter in model.transformer.parameters()]
    place_text_encoder(model, config, "cpu", torch.bfloat16)
    place_model(model, config, "cpu", torch.bfloat16)
    assert model.device.type == "cpu" and len(frozen) > 20
    assert not any(parameter.requires_grad for parameter in model.transformer.parameters())
    straight = build(config, torch.bfloat16, seed=3, weights_follow=weights_follow)
    for part in ("transformer", "vae", "conditioner"):
        mine, theirs = (dict(getattr(each, part).named_parameters()) for each in (model, straight))
        assert mine.keys() == theirs.keys()
        only_adapters = part == "transformer" and weights_follow  # the others have memory, and no values yet
        names = [name for name in mine if "matrix_" in name or not only_adapters]
        assert len(names) >= 8 and all(torch.equal(mine[name], theirs[name]) for name in names)


def test_on_a_cpu_the_text_encoder_of_an_fp16_model_computes_in_fp32(family: tiny.TinyFamily) -> None:
    config = model_config(family)
    model = draft_model(config, dtype=torch.float16, seed=0, weights_follow=True)
    place_text_encoder(model, config, "cpu", torch.float16)
    assert {each.dtype for each in model.conditioner.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_reaches_every_part(family: tiny.TinyFamily, dtype: torch.dtype) -> None:
    model = build(model_config(family), dtype)
    for part in (model.transformer, model.vae, model.conditioner):
        assert {p.dtype for p in part.parameters()} == {dtype}
    assert model.schedule.sqrt_alpha_bar.dtype == torch.float32


def test_fp16_needs_cuda(family: tiny.TinyFamily) -> None:
    with pytest.raises(ConfigError, match="fp16 needs a CUDA device, this run is on cpu: use bf16 or fp32"):
        build(model_config(family), torch.float16)


def test_options_reach_the_network(family: tiny.TinyFamily) -> None:
    assert build(model_config(family), checkpoint_activations=True).transformer.checkpoint_activations
    assert not build(model_config(family)).transformer.checkpoint_activations


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("network_config", "params", "modules", "patch_embed_config", "params", "text_hidden_size"),
            24,
            "text_hidden_size is 24, but the text encoder's width is 16",
        ),
        (("network_config", "params", "text_length"), 10, "text_length is 10, but .* max_length is 12"),
    ],
)
def test_parts_that_disagree_are_named(
    family: tiny.TinyFamily, path: tuple[str, ...], value: int, message: str
) -> None:
    section = copy.deepcopy(tiny.model_section(family))
    node = section
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(ConfigError, match=message):
        build(model_config(family, network_config=section["network_config"]))


def test_channels_must_be_the_vaes_and_twice_as_many_with_an_image(family: tiny.TinyFamily) -> None:
    def with_channels(inputs: int, outputs: int = 16) -> dict[str, Any]:
        node = tiny.network_node()
        node["params"].update(in_channels=inputs, out_channels=outputs)
        return node

    with pytest.raises(ConfigError, match="out_channels is 8, but first_stage_config z_channels is 16"):
        build(model_config(family, network_config=with_channels(8, 8)))
    with pytest.raises(ConfigError, match="in_channels is 32, but without noised_image_input it must be 16"):
        build(model_config(family, network_config=with_channels(32)))
    with pytest.raises(ConfigError, match="in_channels is 16, but with noised_image_input it must be 32"):
        build(model_config(family, noised_image_input=True))


def test_the_image_latent_has_the_scale_of_the_latents_unless_it_is_set(family: tiny.TinyFamily) -> None:
    assert image_condition(model_config(family)) is None
    plain = model_config(family, noised_image_input=True, noised_image_dropout=0.05)
    assert image_condition(plain) == ImageCondition(1.15258426, 0.05)
    scaled = model_config(family, noised_image_input=True, image_latent_scale=1.0)
    assert image_condition(scaled) == ImageCondition(1.0, 0.0)


def test_missing_vae_is_named(family: tiny.TinyFamily) -> None:
    section = tiny.model_section(family)
    section["first_stage_config"]["params"]["ckpt_path"] = "/nowhere/3d-vae.pt"
    with pytest.raises(CheckpointError, match=r"/nowhere/3d-vae.pt"):
        build(model_config(family, first_stage_config=section["first_stage_config"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value * float("nan"), r"t5 holds NaN or infinity in 1 weights, in float32: .*SelfAttention\.q"),
        (lambda value: value.to(torch.int8), r"model\.safetensors stores 1 weights of the text encoder as int8: .*\.q"),
        (lambda value: value.to(torch.float8_e5m2), r"stores 1 weights of the text encoder as float8_e5m2"),
    ],
)
def test_a_text_encoder_that_is_no_numbers(
    family: tiny.TinyFamily, tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    shutil.copytree(family.t5, tmp_path / "t5")
    file, name = tmp_path / "t5" / "model.safetensors", "encoder.block.0.layer.0.SelfAttention.q.weight"
    state = load_file(file)
    save_file({**state, name: change(state[name])}, file, {"format": "pt"})
    section = tiny.model_section(family)["conditioner_config"]
    section["params"]["encoder"]["params"]["model_dir"] = str(tmp_path / "t5")
    with pytest.raises(CheckpointError, match=message):
        build(model_config(family, conditioner_config=section))


def test_lora_can_be_added_to_a_configuration(family: tiny.TinyFamily) -> None:
    plain = model_config(family)
    adapted = with_lora(plain, rank=3, alpha=6.0)
    assert has_lora(adapted) and not has_lora(plain)
    layer = build(adapted).transformer.transformer.layers[0].attention.dense
    assert layer.matrix_A[0].shape[0] == 3 and layer.base_scaling == 2.0
