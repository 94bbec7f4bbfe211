"""Every family: published files become the components of our shipped files, and what doesn't fit together is said."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cogvideox.config.load import load_config
from cogvideox.config.schema import Config
from cogvideox.config.signatures import find_module
from cogvideox.errors import ConfigError
from config.conftest import PUBLISHED, ROOT, Load

NETWORK = "model.network_config.params"
POSITIONS = f"{NETWORK}.modules.pos_embed_config.params"
FIVE, FIVE_I2V, NEWER, NEWER_I2V = "cogvideox_5b", "cogvideox_5b_i2v", "cogvideox1.5_5b", "cogvideox1.5_5b_i2v"
# Published model file, training settings, sampling settings; the shipped file that says the same.
FAMILIES = [
    ("cogvideox_2b", "sft", "inference"),
    (FIVE, "sft_5b", "inference"),
    (FIVE_I2V, "sft_5b", "inference_5b_i2v"),
    (NEWER, "sft_1.5", "inference_1.5"),
    (NEWER_I2V, "sft_1.5", "inference_1.5_i2v"),
    ("cogvideox_2b_lora", "sft", "inference"),
    ("cogvideox_5b_lora", "sft_5b", "inference"),
    ("cogvideox_5b_i2v_lora", "sft_5b", "inference_5b_i2v"),
]
SETTINGS = {
    "cogvideox_2b": ("sft", "inference"),
    FIVE: ("sft", "inference"),
    FIVE_I2V: ("sft", "inference_i2v"),
    NEWER: ("sft_1.5", "inference_1.5"),
    NEWER_I2V: ("sft_1.5", "inference_1.5_i2v"),
}
BF16 = ["args.fp16=false", "args.bf16=true"]


def effective(node: Any) -> Any:
    """A component with the defaults of its constructors written out, paths of weights left out."""
    if isinstance(node, list | tuple):
        return [effective(item) for item in node]
    if not isinstance(node, dict):
        return node
    if "target" not in node:
        return {key: effective(value) for key, value in node.items()}
    params = {
        key: effective(value) for key, value in {**constructor_defaults(node["target"]), **node["params"]}.items()
    }
    for path in ("ckpt_path", "model_dir"):
        params.pop(path, None)
    return {"target": node["target"], "params": params}


@cache
def constructor_defaults(target: str) -> dict[str, Any]:
    """Read from the source, because importing SAT takes seconds."""
    module, _, name = target.rpartition(".")
    file = find_module(module)
    assert file is not None
    classes = {node.name: node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)}
    while name in classes:
        for node in classes[name].body:
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                names = [each.arg for each in node.args.args][-len(node.args.defaults) or len(node.args.args) :]
                values = map(ast.literal_eval, node.args.defaults)
                return dict(zip(names, values, strict=True))
        name = ast.unparse(classes[name].bases[0])
    return {}


def shipped(family: str, kind: str, *overrides: str) -> Config:
    """The shipped files of a family, with or without `_lora`."""
    sft, inference = SETTINGS[family.removesuffix("_lora")]
    base = [str(ROOT / "configs" / f"{file}.yaml") for file in (family, sft if kind == "train" else inference)]
    required = ["args.train_data=[clips]"] if kind == "train" else []
    return load_config(base, [*required, *overrides], kind)  # type: ignore[arg-type]


def test_every_published_file_is_in_the_table() -> None:
    named = {f"{name}.yaml" for row in FAMILIES for name in row}
    assert named == {file.name for file in PUBLISHED.glob("*.yaml")}


@pytest.mark.parametrize(("family", "sft"), [row[:2] for row in FAMILIES], ids=lambda value: value)
def test_a_published_file_becomes_the_components_of_ours(published: Load, family: str, sft: str) -> None:
    theirs, ours = published("train", f"{family}.yaml", f"{sft}.yaml").model, shipped(family, "train").model
    for key in ("scale_factor", "noised_image_input", "noised_image_dropout", "image_latent_scale", "latent_input"):
        assert getattr(theirs, key) == getattr(ours, key), key
    for key in ("conditioner_config", "schedule_config", "loss_fn_config", "sampler_config"):
        assert effective(getattr(theirs, key)) == effective(getattr(ours, key)), key
    network, expected = effective(theirs.network_config), effective(ours.network_config)
    for each in (network, expected):
        size = each["params"]["patch_size"]
        each["params"]["patch_size"] = [1, size, size] if isinstance(size, int) else size
    assert network == expected
    vae, expected = effective(theirs.first_stage_config), effective(ours.first_stage_config)
    chunk = expected["params"].pop("encode_chunk_frames")  # 1.5 at its size would take 71 GB in one call
    assert (vae["params"].pop("encode_chunk_frames"), chunk) == (None, 8 if family.startswith("cogvideox1.5") else None)
    assert vae == expected


@pytest.mark.parametrize(("family", "inference"), [(row[0], row[2]) for row in FAMILIES], ids=lambda value: value)
def test_published_sampling(published: Load, family: str, inference: str) -> None:
    overrides = () if "2b" in family else tuple(BF16)
    config = published("sample", f"{family}.yaml", f"{inference}.yaml", overrides=overrides)
    assert not config.warnings
    assert config.sample_args.image2video is config.model.noised_image_input


def test_what_a_published_1_5_image_model_is_told(published: Load) -> None:
    config = published("train", f"{NEWER_I2V}.yaml", "sft_1.5.yaml")
    assert config.model.image_latent_scale == 1.0
    assert any("image_latent_scale is not given: 1.0" in line for line in config.notices)
    assert any("augmentation_dropout" in line and "group_num" in line for line in config.notices)
    assert "image_latent_scale: 1.0" in config.resolved_yaml
    explicit = published("train", f"{NEWER_I2V}.yaml", "sft_1.5.yaml", overrides=("model.image_latent_scale=null",))
    assert explicit.model.image_latent_scale is None
    assert published("train", f"{FIVE_I2V}.yaml", "sft_5b.yaml").model.image_latent_scale is None


def test_stored_latents_of_a_published_file_are_left_out(published: Load) -> None:
    config = published("train", f"{NEWER}.yaml", "sft_1.5.yaml")
    assert config.model.latent_input is False
    assert any("latent_input: true is for stored latents" in line for line in config.notices)
    with pytest.raises(ConfigError, match=r"latent_input: training from stored latents is not supported"):
        shipped(NEWER, "train", "model.latent_input=true")


@pytest.mark.parametrize("group_num", ["", "\n          group_num: 3"])
def test_uniform_sampling_with_and_without_groups(tmp_path: Path, group_num: str) -> None:
    text = (PUBLISHED / f"{NEWER}.yaml").read_text()
    file = tmp_path / "model.yaml"
    file.write_text(text.replace("\n          group_num: 40", group_num))
    model = load_config([str(file), str(PUBLISHED / "sft_1.5.yaml")], [], "train").model
    assert model.loss_fn_config["params"] == {"stratified_timesteps": True}


@pytest.mark.parametrize("override", [f"{NETWORK}.width_interpolation=2", f"{POSITIONS}.width_interpolation=1.5"])
def test_interpolation_that_never_had_an_effect(published: Load, override: str) -> None:
    config = published("train", f"{FIVE}.yaml", "sft_5b.yaml", overrides=(override,))
    assert any("published rotary positions never applied it: no effect" in line for line in config.warnings)
    assert effective(config.model.network_config) == effective(shipped(FIVE, "train").model.network_config)


@pytest.mark.parametrize(
    ("override", "match"),
    [
        (f"{POSITIONS}.rot_v=true", r"rot_v: only false is computed by this program"),
        (
            f"{POSITIONS}.hidden_size_head=80",
            r"80 differs from hidden_size / num_attention_heads, 64",
        ),
        (f"{POSITIONS}.text_length=226", r"max_length: 224 differs from the network's text_length, 226"),
        (f"{POSITIONS}.time_interpolation=2", r"time_interpolation: 1\.0 differs from 2 at command line"),
        (f"{NETWORK}.use_SwiGLU=true", r"use_SwiGLU: only false is computed"),
        (f"{NETWORK}.input_time=concat", r"input_time: only adaln is computed"),
    ],
)
def test_mistakes_in_published_rotary_files(published: Load, override: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        published("train", f"{NEWER}.yaml", "sft_1.5.yaml", overrides=(override,))


TRAIN_MISTAKES = [
    # frames and sizes
    (
        NEWER,
        "data.max_num_frames=80",
        r"8k \+ 1 because patches hold 2 .*, not 80; nearest: 73 or 81",
    ),
    (NEWER, "data.max_num_frames=85", r"8k \+ 1 .*, not 85; nearest: 81 or 89"),
    (NEWER, "data.max_num_frames=5", r"must be 8k \+ 1 .*, not 5; nearest: 9$"),
    (NEWER, "data.max_num_frames=1", r"one frame does not fill a patch of 2 latent frames; nearest: 9"),
    (NEWER, "data.max_num_frames=169", r"169 pixel frames are more than the network's positions cover: 161"),
    (NEWER, "args.sample_num_frames=77", r"args\.sample_num_frames: must be 8k \+ 1 .* nearest: 73 or 81"),
    (NEWER, "data.video_size=[2416,1360]", r"\[2416, 1360\] is larger than the network's positions.*\[2400, 2400\]"),
    (NEWER, f"{NETWORK}.patch_size=[4,2,2]", r"patch_size: patches hold 1 or 2 latent frames, not 4"),
    (FIVE, "data.max_num_frames=53", r"53 pixel frames are more than the network's positions cover: 49"),
    (FIVE, "data.video_size=[720,480]", r"is larger than the network's positions, which end at \[480, 720\]"),
    (FIVE, f"{NETWORK}.num_attention_heads=128", r"heads of a multiple of 16 channels, not 3072 / 128 = 24"),
    (FIVE_I2V, f"{POSITIONS}.resize=interpolate", r"resize: a learned table .* can't be interpolated: slice"),
    # image-to-video
    (FIVE_I2V, "model.noised_image_input=false", r"in_channels: 32 channels hold a noised latent and a first frame"),
    (FIVE_I2V, f"{NETWORK}.in_channels=16", r"in_channels: 16 channels leave no room for the first frame"),
    (FIVE_I2V, f"{NETWORK}.in_channels=24", r"in_channels: 24 differs from twice the VAE's z_channels, 32"),
    (FIVE, "model.noised_image_input=true", r"in_channels: 16 channels leave no room for the first frame"),
    (FIVE, "model.image_latent_scale=1.0", r"model\.image_latent_scale: only image-to-video has it"),
    (NEWER, f"{NETWORK}.ofs_embed_dim=512", r"ofs_embed_dim: only image-to-video networks \(1\.5\) have it"),
    (NEWER_I2V, f"{NETWORK}.ofs_embed_dim=256", r"ofs_embed_dim: 256 differs from time_embed_dim, .* 512"),
]


@pytest.mark.parametrize(("family", "override", "match"), TRAIN_MISTAKES)
def test_mistakes_in_training(family: str, override: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        shipped(family, "train", override)


@pytest.mark.parametrize(
    ("family", "override", "match"),
    [
        (NEWER, "args.sampling_num_frames=1", r"must be at least 3, not 1: patches hold 2 latent frames"),
        (NEWER, "args.sampling_num_frames=2", r"must be at least 3, not 2: patches hold 2 latent frames"),
        (NEWER, "args.sampling_num_frames=44", r"44 latent frames are 169 pixel frames, more than .* cover: 161"),
        (NEWER, "args.sampling_num_frames=43", r"43 latent frames are 169 pixel frames, more than .* cover: 161"),
        (NEWER, "args.sampling_image_size=null", r"missing: give \[height, width\]; only image-to-video takes"),
        (NEWER, "args.image2video=true", r"args\.image2video: true contradicts the model, which is text-to-video"),
        (FIVE_I2V, "args.image2video=false", r"args\.image2video: false contradicts the model, which is image-to"),
        (FIVE, "args.sampling_num_frames=14", r"14 latent frames are 53 pixel frames, more than .* cover: 49"),
    ],
)
def test_mistakes_in_sampling(family: str, override: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        shipped(family, "sample", override)


def test_a_mistake_is_placed_in_its_file(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("\ndata:\n  max_num_frames: 80\n")
    base = [str(ROOT / "configs" / name) for name in ("cogvideox1.5_5b.yaml", "sft_1.5.yaml")]
    with pytest.raises(ConfigError, match=r"my\.yaml:3: data\.max_num_frames: must be 8k \+ 1"):
        load_config([*base, str(file)], ["args.train_data=[x]"], "train")


@pytest.mark.parametrize("frames", [3, 4, 5, 21, 22, 41, 42])
def test_even_and_odd_latent_counts_of_1_5(frames: int) -> None:
    assert shipped(NEWER, "sample", f"args.sampling_num_frames={frames}").sample_args.sampling_num_frames == frames


def test_fp16_warns_for_the_families_that_overflow() -> None:
    overrides = ["deepspeed.fp16.enabled=true", "deepspeed.bf16.enabled=false"]
    warnings = shipped(FIVE, "train", *overrides).warnings
    assert len(warnings) == 1 and "deepspeed.fp16.enabled: CogVideoX 5B and 1.5 were trained in bf16" in warnings[0]
    warnings = shipped(NEWER, "sample", "args.fp16=true", "args.bf16=false").warnings
    assert len(warnings) == 1 and "args.fp16: CogVideoX 5B" in warnings[0]
    assert not shipped("cogvideox_2b", "sample").warnings


def test_settings_that_would_have_no_effect_warn() -> None:
    warnings = shipped(FIVE, "train", "model.noised_image_dropout=0.05").warnings
    assert len(warnings) == 1 and "model.noised_image_dropout: no effect" in warnings[0]
    warnings = shipped(NEWER_I2V, "train", f"{NETWORK}.ofs_embed_dim=null").warnings
    assert len(warnings) == 2 and "params.ofs: no effect without ofs_embed_dim" in warnings[0]
    assert "ofs_embed_dim: not given, but the released 1.5 image-to-video weights have it: 512" in warnings[1]


def test_a_replaced_node_takes_nothing_over(tmp_path: Path) -> None:
    assert set(shipped(FIVE, "train").model.network_config["params"]["modules"]["pos_embed_config"]["params"]) == {
        "theta",
        "resize",
    }
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"include: {ROOT / 'configs/cogvideox_2b.yaml'}\n"
        "model:\n  sampler_config:\n    replace: true\n    target: cogvideox.diffusion.samplers.DDIMSampler\n"
        "  network_config: {params: {modules: {pos_embed_config: {params: {resize: interpolate}}}}}\n"
    )
    config = load_config([str(file)], ["args.load=x"], "sample")
    assert config.model.sampler_config == {"target": "cogvideox.diffusion.samplers.DDIMSampler", "params": {}}
    kept = load_config([str(file)], ["args.load=x", "model.sampler_config.params.num_steps=9"], "sample")
    assert kept.model.sampler_config["params"] == {"num_steps": 9}


def test_an_entry_of_an_included_file_can_be_removed(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"include: {ROOT / 'configs/cogvideox_5b_lora.yaml'}\n"
        "model: {network_config: {params: {modules: {lora_config: null}}}}\n"
    )
    config = load_config([str(file)], ["args.load=x"], "sample")
    assert "lora_config" not in config.model.network_config["params"]["modules"]


def test_replace_must_be_true_or_false() -> None:
    with pytest.raises(ConfigError, match=r"sampler_config\.replace: must be true \(take nothing over"):
        shipped(FIVE, "train", "model.sampler_config.replace=often")


def test_the_resolved_file_of_every_family_loads_again(tmp_path: Path) -> None:
    for family in SETTINGS:
        config = shipped(family, "train")
        file = tmp_path / f"{family}.yaml"
        file.write_text(config.resolved_yaml)
        again = load_config([str(file)], [], "train")
        assert again.model == config.model and again.data == config.data


@pytest.mark.parametrize("value", ["0", "0.0"])
def test_ofs_is_no_size_and_may_be_zero(value: str) -> None:
    config = load_config([str(ROOT / f"configs/{NEWER_I2V}.yaml")], [f"{NETWORK}.ofs={value}"], "sample", partial=True)
    assert config.model.network_config["params"]["ofs"] == 0.0
