"""Every name gets a verdict when weights are loaded, and models of another family are recognised."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from cogvideox.errors import CheckpointError
from cogvideox.transformer.model import DiffusionTransformer
from cogvideox.weights.families import TRANSFORMER_PREFIX, read_facts
from cogvideox.weights.key_rules import load_module
from cogvideox.weights.lora_map import is_adapter
from torch import Size, Tensor, nn
from transformer.tiny_transformer import build_tiny, randomise

LORA = {"r": 4, "lora_alpha": 2.0}


def stored(seed: int = 0, lora: dict[str, Any] | None = None, **sizes: Any) -> dict[str, Tensor]:
    """The state of a random tiny transformer under stored names."""
    model = build_tiny(lora=lora, **sizes)
    randomise(model, seed)
    return {TRANSFORMER_PREFIX + name: value for name, value in model.state_dict().items()}


def assert_loaded(model: nn.Module, state: dict[str, Tensor]) -> None:
    for name, value in model.state_dict().items():
        if not is_adapter(name):
            key = TRANSFORMER_PREFIX + (name if TRANSFORMER_PREFIX + name in state else name.replace(".original.", "."))
            assert torch.equal(value, state[key].to(value.dtype)), name


def test_plain_weights() -> None:
    model, state = build_tiny(), stored()
    report = load_module(model, state)
    assert_loaded(model, state)
    assert len(report.loaded) == len(state)
    assert (report.new_adapter, report.belongs_elsewhere, report.missing) == ((), (), ())


def test_names_without_prefix_and_another_dtype() -> None:
    model, state = build_tiny(dtype=torch.bfloat16), stored()
    load_module(model, {name.removeprefix(TRANSFORMER_PREFIX): value for name, value in state.items()})
    assert_loaded(model, state)


def test_whole_engine_checkpoint() -> None:
    state = stored()
    engine = {
        **state,
        "conditioner.embedders.0.transformer.shared.weight": torch.zeros(1),
        "first_stage_model.encoder.conv_in.conv.weight": torch.zeros(1),
        "first_stage_model.loss.logvar": torch.zeros(1),
        "denoiser.sigmas": torch.zeros(1),
        TRANSFORMER_PREFIX + "mixins.pos_embed.freqs_sin": torch.zeros(1),
        TRANSFORMER_PREFIX + "transformer.position_embeddings.weight": torch.zeros(64, 64),
    }
    model = build_tiny()
    report = load_module(model, engine)
    assert_loaded(model, state)
    assert set(report.belongs_elsewhere) == engine.keys() - state.keys()


def test_plain_weights_into_a_model_with_lora() -> None:
    model, state = build_tiny(lora=LORA), stored()
    adapters = {name: value.clone() for name, value in model.state_dict().items() if is_adapter(name)}
    report = load_module(model, state)
    assert_loaded(model, state)
    assert set(report.new_adapter) == adapters.keys()
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in adapters.items())


def test_adapters_on_top_of_a_base() -> None:
    whole = stored(seed=3, lora=LORA)
    adapters = {name: value for name, value in whole.items() if is_adapter(name)}
    model = build_tiny(lora=LORA)
    load_module(model, stored(seed=1))
    base = {name: value.clone() for name, value in model.state_dict().items() if not is_adapter(name)}
    report = load_module(model, adapters, partial=True)
    assert len(report.loaded) == len(adapters)
    assert set(report.missing) == base.keys()
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in base.items())
    assert all(torch.equal(after[name.removeprefix(TRANSFORMER_PREFIX)], value) for name, value in adapters.items())


def test_incomplete_adapters() -> None:
    adapters = {name: value for name, value in stored(lora=LORA).items() if is_adapter(name) and "layers.0" in name}
    with pytest.raises(CheckpointError, match=r"8 missing: transformer\.layers\.1\.attention.*and 4 more"):
        load_module(build_tiny(lora=LORA), adapters, partial=True)


def test_adapters_alone() -> None:
    adapters = {name: value for name, value in stored(lora=LORA).items() if is_adapter(name)}
    with pytest.raises(CheckpointError, match=r"x.pt holds LoRA adapters only: load the base model first"):
        load_module(build_tiny(lora=LORA), adapters, source="x.pt")
    with pytest.raises(CheckpointError, match="LoRA adapters only: add lora_config, and load the base"):
        load_module(build_tiny(), adapters)


def test_lora_weights_into_a_plain_model() -> None:
    with pytest.raises(CheckpointError, match="LoRA adapters of rank 4, but the model has none: add lora_config"):
        load_module(build_tiny(), stored(lora=LORA))


@pytest.mark.parametrize("partial", [True, False])
def test_lora_of_another_rank(partial: bool) -> None:
    with pytest.raises(
        CheckpointError, match=r"rank 4, the configuration asks for rank 8: set lora_config.params.r to 4"
    ):
        load_module(build_tiny(lora={"r": 8}), stored(lora=LORA), partial=partial)


def test_missing_is_an_error_and_nothing_is_copied() -> None:
    state = stored()
    names = [name for name in state if "layers.1.mlp" in name]
    for name in names:
        del state[name]
    model = build_tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"doesn't fit the transformer: 4 missing: transformer\.layers\.1\.mlp"):
        load_module(model, state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_unexpected_is_an_error() -> None:
    state = {**stored(), TRANSFORMER_PREFIX + "mixins.extra.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"1 that the model doesn't have: mixins\.extra\.weight"):
        load_module(build_tiny(), state)


def test_another_shape_is_an_error() -> None:
    state = stored()
    state[TRANSFORMER_PREFIX + "time_embed.2.bias"] = torch.zeros(7)
    with pytest.raises(CheckpointError, match=r"1 of another shape: time_embed\.2\.bias \[7\] for \[32\]"):
        load_module(build_tiny(), state)


def test_position_table_of_another_clip_size_is_computed() -> None:
    model = build_tiny()
    table = model.state_dict()["mixins.pos_embed.pos_embedding"].clone()
    report = load_module(model, stored(num_frames=5))
    assert report.recomputed == ("mixins.pos_embed.pos_embedding",)
    assert torch.equal(model.state_dict()["mixins.pos_embed.pos_embedding"], table)


def test_learned_table_of_another_size_is_not() -> None:
    state = {**stored(num_frames=5), TRANSFORMER_PREFIX + "transformer.position_embeddings.weight": torch.zeros(64, 64)}
    with pytest.raises(CheckpointError, match="learned positions"):
        load_module(build_tiny(), state)


def test_either_layout_of_the_patch_weight() -> None:
    state = stored()
    name = TRANSFORMER_PREFIX + "mixins.patch_embed.proj.weight"
    model = build_tiny()
    load_module(model, {**state, name: state[name].flatten(1)})
    assert torch.equal(model.state_dict()["mixins.patch_embed.proj.weight"], state[name])


def test_another_size_names_both() -> None:
    with pytest.raises(CheckpointError, match=r"hidden size 64, 3 layers.*configuration describes.*64, 2 layers"):
        load_module(build_tiny(), stored(num_layers=3))


def test_diffusers_layout() -> None:
    with pytest.raises(CheckpointError, match="diffusers' layout"):
        load_module(build_tiny(), {"transformer_blocks.0.attn1.to_q.weight": torch.zeros(1)})


def test_other_modules() -> None:
    """A VAE-like module: no prefix, and what only its training needed belongs elsewhere."""
    module = nn.Sequential(nn.Linear(2, 3))
    state = {"0.weight": torch.ones(3, 2), "0.bias": torch.ones(3), "loss.w": torch.zeros(1)}
    report = load_module(module, state, prefix="", what="vae")
    assert report.belongs_elsewhere == ("loss.w",)
    assert torch.equal(module[0].weight, torch.ones(3, 2))
    with pytest.raises(CheckpointError, match=r"doesn't fit the vae: 1 missing: 0\.bias"):
        load_module(module, {"0.weight": torch.ones(3, 2)}, prefix="", what="vae")


# (hidden, layers, patch weight, last layer's rows, rotary, learned table, ofs)
PUBLISHED = {
    "CogVideoX-2B": (1920, 30, (1920, 16, 2, 2), 64, False, 17776, False),
    "CogVideoX-5B": (3072, 42, (3072, 16, 2, 2), 64, True, None, False),
    "CogVideoX-5B-I2V": (3072, 42, (3072, 32, 2, 2), 64, True, 17776, False),
    "CogVideoX1.5-5B": (3072, 42, (3072, 128), 128, True, None, False),
    "CogVideoX1.5-5B-I2V": (3072, 42, (3072, 256), 128, True, None, True),
}


def published_shapes(name: str) -> dict[str, Size]:
    """The names and shapes of a released checkpoint that tell it apart."""
    hidden, layers, patch, rows, rotary, table, ofs = PUBLISHED[name]
    shapes = {
        "mixins.patch_embed.proj.weight": patch,
        "mixins.patch_embed.text_proj.weight": (hidden, 4096),
        "mixins.final_layer.linear.weight": (rows, hidden),
        "mixins.adaln_layer.query_layernorm_list.0.weight": (64,),
        "time_embed.0.weight": (512, hidden),
        **{f"transformer.layers.{layer}.input_layernorm.weight": (hidden,) for layer in range(layers)},
    }
    if rotary:
        shapes["transformer.position_embeddings.weight"] = (64, hidden)
    if table:
        shapes["mixins.pos_embed.pos_embedding"] = (1, table, hidden)
    if ofs:
        shapes["ofs_embed.0.weight"] = (512, 512)
    return {key: Size(shape) for key, shape in shapes.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_families_are_recognised(name: str) -> None:
    facts = read_facts(published_shapes(name))
    hidden, layers, *_ = PUBLISHED[name]
    assert facts.family is not None
    assert facts.family.name == name
    assert (facts.hidden_size, facts.num_layers, facts.num_heads) == (hidden, layers, hidden // 64)
    assert facts.in_channels == (32 if "I2V" in name else 16)
    assert facts.out_channels == 16
    assert facts.patch_size == ((2, 2, 2) if "1.5" in name else (1, 2, 2))
    assert facts.ofs_embed_dim == (512 if name == "CogVideoX1.5-5B-I2V" else None)
    assert facts.summary.startswith(name + " (")


def test_a_rotary_checkpoint_without_its_signs_is_not_called_sincos() -> None:
    shapes = published_shapes("CogVideoX-5B-I2V")
    del shapes["transformer.position_embeddings.weight"]
    expected = (
        "CogVideoX of another layout (hidden size 3072, 42 layers, sin/cos or learned positions, 32 input channels)"
    )
    assert read_facts(shapes).summary == expected


class Shapes(nn.Module):
    """Only names and shapes matter here: a real model of published size would take gigabytes."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return {key: torch.empty(shape, device="meta") for key, shape in published_shapes(self.name).items()}


@pytest.mark.parametrize("theirs", PUBLISHED)
@pytest.mark.parametrize("ours", PUBLISHED)
def test_weights_of_another_family_name_both_and_the_yaml(theirs: str, ours: str) -> None:
    """T2V and I2V, 1.0 and 1.5, 2B and 5B: every mixture."""
    if theirs == ours:
        return
    weights = {
        TRANSFORMER_PREFIX + key: torch.empty(shape, device="meta") for key, shape in published_shapes(theirs).items()
    }
    yaml = {
        "CogVideoX-2B": "configs/cogvideox_2b.yaml",
        "CogVideoX-5B": "configs/cogvideox_5b.yaml",
        "CogVideoX-5B-I2V": "configs/cogvideox_5b_i2v.yaml",
        "CogVideoX1.5-5B": "configs/cogvideox1.5_5b.yaml",
        "CogVideoX1.5-5B-I2V": "configs/cogvideox1.5_5b_i2v.yaml",
    }[theirs]
    pattern = f"w.pt holds {re.escape(theirs)} .*configuration describes {re.escape(ours)} .*use {re.escape(yaml)}$"
    with pytest.raises(CheckpointError, match=pattern):
        load_module(Shapes(ours), weights, source="w.pt")


def test_learned_table_of_another_clip_size() -> None:
    weights = {
        TRANSFORMER_PREFIX + key: torch.empty(shape, device="meta")
        for key, shape in published_shapes("CogVideoX-5B-I2V").items()
    }
    weights[TRANSFORMER_PREFIX + "mixins.pos_embed.pos_embedding"] = torch.empty(1, 12376, 3072, device="meta")
    with pytest.raises(CheckpointError, match=r"learned position table of 12376 tokens, the configuration .* 17776"):
        load_module(Shapes("CogVideoX-5B-I2V"), weights)


def test_unused_embeddings_are_not_missed() -> None:
    """Rotary models hold SAT's own position embeddings, which nothing reads; trained checkpoints may lack them."""
    module = nn.Module()
    module.transformer = nn.Module()
    module.transformer.position_embeddings = nn.Embedding(4, 2)
    module.mixins = nn.Linear(2, 2)
    before = module.transformer.position_embeddings.weight.detach().clone()
    state = {"mixins.weight": torch.ones(2, 2), "mixins.bias": torch.ones(2), "mixins.pos_embed.freqs_cos": before}
    report = load_module(module, state)
    assert (report.missing, report.belongs_elsewhere) == ((), ("mixins.pos_embed.freqs_cos",))
    assert torch.equal(module.transformer.position_embeddings.weight, before)
    load_module(module, {**state, "transformer.position_embeddings.weight": torch.ones(4, 2)})
    assert torch.equal(module.transformer.position_embeddings.weight, torch.ones(4, 2))


def test_a_real_model_gives_the_same_facts() -> None:
    model: DiffusionTransformer = build_tiny(lora=LORA)
    shapes = {name.replace(".original.", "."): value.shape for name, value in model.state_dict().items()}
    facts = read_facts(shapes)
    assert (facts.hidden_size, facts.num_layers, facts.head_dim, facts.num_heads) == (64, 2, 32, 2)
    assert (facts.in_channels, facts.out_channels, facts.text_width, facts.time_embed_dim) == (4, 4, 24, 32)
    assert (facts.rotary, facts.lora_rank, facts.family) == (False, 4, None)


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(value: float, lora: dict[str, Any] | None) -> None:
    model, state = build_tiny(lora=lora), stored(lora=lora)
    name = next(name for name in state if (is_adapter(name) if lora else name.endswith("dense.weight")))
    state[name].view(-1)[3] = value
    relative = re.escape(name.removeprefix(TRANSFORMER_PREFIX))
    with pytest.raises(CheckpointError, match=rf"a\.pt holds NaN or infinity in 1 tensors of the .*: {relative}\. "):
        load_module(model, state, source="a.pt")


def test_numbers_beyond_fp16_are_not_called_damage() -> None:
    model, state = build_tiny(dtype=torch.float16), stored()
    state[TRANSFORMER_PREFIX + "mixins.final_layer.linear.bias"][0] = 1e5
    with pytest.raises(CheckpointError, match=r"beyond the range of float16 in 1 tensors .*linear\.bias\. Compute in"):
        load_module(model, state)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_numbers_of_another_kind_are_named(dtype: torch.dtype) -> None:
    """torch would cast them without a word."""
    model, state = build_tiny(), stored()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    name = TRANSFORMER_PREFIX + "mixins.final_layer.linear.weight"
    state[name] = state[name].to(dtype)
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(CheckpointError, match=rf"stores 1 tensors of the transformer as {kind}: mixins\.final_layer"):
        load_module(model, state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_counters_that_belong_elsewhere_may_be_integers() -> None:
    state = {**stored(), "first_stage_model.loss.discriminator.num_batches_tracked": torch.tensor(3)}
    load_module(build_tiny(), state)
