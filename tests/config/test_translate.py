"""Published YAML runs unchanged: what it becomes, and what it can't become."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cogvideox.config.load import load_config
from cogvideox.config.schema import Config
from cogvideox.errors import ConfigError
from config.conftest import MODEL, PUBLISHED, SFT, Load

LORA = "cogvideox_2b_lora.yaml"
Edit = Callable[..., Config]


@pytest.fixture
def edited(tmp_path: Path) -> Edit:
    """Load the published LoRA model and training files after replacing text in the model file."""

    def load(old: str = "", new: str = "", count: int = 1) -> Config:
        text = (PUBLISHED / LORA).read_text()
        assert old in text, f"{old!r} is not in the fixture"
        file = tmp_path / "model.yaml"
        file.write_text(text.replace(old, new, count))
        return load_config([str(file), str(PUBLISHED / "sft.yaml")], [], "train")

    return load


def test_a_published_lora_training_run(published: Load) -> None:
    config = published("train", LORA, "sft.yaml")
    ours = load_config([MODEL, SFT], ["args.train_data=[disney]"], "train")
    network = config.model.network_config["params"]
    assert network["modules"]["lora_config"] == {"target": "cogvideox.transformer.lora.LoraMixin", "params": {"r": 128}}
    for name in ("text_length", "temporal_compression", "patch_size", "hidden_size", "num_frames", "latent_width"):
        assert network[name] == ours.model.network_config["params"][name]
    assert network["checkpoint_activations"] is True and config.train_args.checkpoint_activations
    assert config.model.schedule_config == {
        "target": "cogvideox.diffusion.schedule.NoiseSchedule",
        "params": {"shift_scale": 3.0},
    }
    assert config.model.loss_fn_config["params"] == {"stratified_timesteps": True}
    assert config.model.scale_factor == ours.model.scale_factor == 1.15258426
    assert config.model.not_trainable_prefixes == ["all"]
    assert config.data is not None and config.data.video_size == (480, 720)
    assert (config.data.fps, config.data.max_num_frames, config.data.skip_frms_num) == (8.0, 49, 3.0)


def test_conditioner_and_vae_are_folded(published: Load) -> None:
    model = published("train", LORA, "sft.yaml").model
    assert model.conditioner_config == {
        "target": "cogvideox.text.conditioner.Conditioner",
        "params": {
            "encoder": {
                "target": "cogvideox.text.encoders.T5Encoder",
                "params": {"model_dir": "t5-v1_1-xxl", "max_length": 226},
            },
            "caption_dropout": 0.1,
        },
    }
    assert model.first_stage_config == {
        "target": "cogvideox.vae.autoencoder.VideoAutoencoder",
        "params": {
            "ckpt_path": "CogVideoX-2b-sat/vae/3d-vae.pt",
            "z_channels": 16,
            "in_channels": 3,
            "out_channels": 3,
            "ch": 128,
            "ch_mult": [1, 2, 2, 4],
            "num_res_blocks": 3,
        },
    }


def test_published_sampling(published: Load) -> None:
    config = published("sample", "cogvideox_2b.yaml", "inference.yaml")
    assert config.sample_args.sampling_num_frames == 13 and config.sample_args.fp16
    assert config.model.network_config["params"]["patch_size"] == [1, 2, 2]
    assert "lora_config" not in config.model.network_config["params"]["modules"]


def test_a_published_batch_size_is_videos_per_prompt(published: Load) -> None:
    config = published("sample", "cogvideox_2b.yaml", "inference.yaml", overrides=("args.batch_size=3",))
    assert (config.sample_args.num_samples, config.sample_args.batch_size) == (3, 1)
    assert sum("args.batch_size 3 is the number of videos per prompt" in line for line in config.notices) == 1
    both = ("args.batch_size=3", "args.num_samples=2")
    config = published("sample", "cogvideox_2b.yaml", "inference.yaml", overrides=both)
    assert (config.sample_args.num_samples, config.sample_args.batch_size) == (2, 3)
    config = published("sample", "cogvideox_2b.yaml", "inference.yaml")
    assert not any("videos per prompt" in line for line in config.notices)
    with pytest.raises(ConfigError, match=r"args\.batch_size: must be int, not 'some'"):
        published("sample", "cogvideox_2b.yaml", "inference.yaml", overrides=("args.batch_size=some",))


def test_batch_size_of_our_files_is_how_many_at_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("args: {batch_size: 3}\n")
    config = load_config([MODEL, str(file)], [], "sample")
    assert (config.sample_args.num_samples, config.sample_args.batch_size) == (1, 3)


def test_what_has_no_effect_is_said_once(published: Load) -> None:
    config = published("train", LORA, "sft.yaml")
    said = [line for line in config.notices if line.startswith("accepted without effect")]
    assert len(said) == 1
    for name in ("weighting_config", "adm_in_channels", "attn_resolutions", "loss_config", "gather_norm", "cp_size"):
        assert name in said[0]
    assert len(config.warnings) == 2  # FusedEmaAdam, misplaced loss-scale keys


def test_no_schedule_means_sat_s_own(published: Load) -> None:
    config = published("train", LORA, "sft.yaml")
    assert config.train_args.lr_schedule == "sat"
    assert any("args.lr_schedule is not given: sat" in line for line in config.notices)
    explicit = published("train", LORA, "sft.yaml", overrides=("args.lr_schedule=cosine",))
    assert explicit.train_args.lr_schedule == "cosine"


def test_old_training_file_with_our_model_file() -> None:
    config = load_config([MODEL, str(PUBLISHED / "sft.yaml")], [], "train")
    assert config.train_args.lr_schedule == "sat"
    assert config.data is not None and config.data.fps == 8.0


def test_published_parameters_can_be_overridden(published: Load) -> None:
    overrides = (
        "model.sampler_config.params.guider_config.params.scale=4",
        "model.network_config.params.transformer_args.checkpoint_activations=false",
        "data.params.fps=16",
        "data.reader=decord",
    )
    config = published("train", LORA, "sft.yaml", overrides=overrides)
    assert config.model.sampler_config["params"]["guidance"]["params"]["scale"] == 4.0
    assert config.data is not None and (config.data.fps, config.data.reader) == (16.0, "decord")
    # args.checkpoint_activations in the training file is the flat key, which wins.
    assert config.model.network_config["params"]["checkpoint_activations"] is True


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("sampler_config.params.guidance.params.by=step", None),
        ("sampler_config.params.guidance.params.scale=4", None),
        ("schedule_config.params.shift_scale=1.5", None),
        ("schedule_config.params.num_timesteps=500", None),
        ("conditioner_config.params.caption_dropout=0.2", None),
        ("conditioner_config.params.encoder.params.model_dir=other", None),
        ("first_stage_config.params.ch=64", None),
        ("first_stage_config.params.norm_num_groups=16", None),
        ("loss_fn_config.params.stratified_timesteps=false", None),
        ("network_config.params.text_length=226", None),
        ("sampler_config.params.num_steps=50", None),
        # published names that no file holds, and that a file holds
        ("sampler_config.params.guider_config.params.by=step", "sampler_config.params.guidance.params.by"),
        ("network_config.params.time_compressed_rate=4", "network_config.params.temporal_compression"),
        ("conditioner_config.params.emb_models.0.ucg_rate=0.3", "conditioner_config.params.caption_dropout"),
        ("sampler_config.params.guider_config.params.scale=4", "sampler_config.params.guidance.params.scale"),
    ],
)
def test_a_published_file_takes_overrides_in_both_names(
    published: Load, tmp_path: Path, override: str, path: str | None
) -> None:
    """On the command line, and in a file that includes the published one."""
    key, _, text = override.partition("=")
    overlay = tmp_path / "overlay.yaml"
    value: object = yaml.safe_load(text)
    for part in reversed(["model", *key.split(".")]):
        value = {part: value} if part != "0" else value  # a list can't be changed in part by a file
    overlay.write_text(yaml.safe_dump({"include": str(PUBLISHED / LORA), **value}))  # type: ignore[dict-item]
    configs = [published("train", LORA, "sft.yaml", overrides=(f"model.{override}",))]
    if "emb_models" not in key:
        configs.append(load_config([str(overlay), str(PUBLISHED / "sft.yaml")], [], "train"))
    for config in configs:
        section, *rest = (path or key).split(".")
        found = getattr(config.model, section)
        for part in rest:
            found = found[part]
        assert found == yaml.safe_load(text)
        assert not [line for line in config.notices if "not used by" in line]


def test_ours_wins_over_the_published_name_and_mistakes_are_still_placed(published: Load) -> None:
    path = "model.sampler_config.params"
    overrides = (f"{path}.guidance.params.scale=5", f"{path}.guider_config.params.scale=4")
    sampler = published("train", LORA, "sft.yaml", overrides=overrides).model.sampler_config
    assert sampler["params"]["guidance"]["params"]["scale"] == 5.0
    with pytest.raises(ConfigError, match=r"command line: .*guidance\.params\.scal: unknown parameter .*'scale'"):
        published("train", LORA, "sft.yaml", overrides=(f"{path}.guidance.params.scal=5",))


def test_our_component_in_place_of_a_published_one(published: Load) -> None:
    node = "{replace: true, target: cogvideox.diffusion.guidance.ConstantGuidance, params: {scale: 3}}"
    theirs = "{replace: true, target: sgm.modules.diffusionmodules.guiders.VanillaCFG, params: {scale: 3}}"
    expected = {"target": "cogvideox.diffusion.guidance.ConstantGuidance", "params": {"scale": 3.0}}
    for override in (f"guidance={node}", f"guidance={theirs}", f"guider_config={theirs}"):
        config = published("train", LORA, "sft.yaml", overrides=(f"model.sampler_config.params.{override}",))
        assert config.model.sampler_config["params"]["guidance"] == expected


def test_interpolation_reaches_across_names(published: Load) -> None:
    path = "model.sampler_config.params"
    overrides = (f"{path}.guidance.params.num_steps=${{{path}.num_steps}}", f"{path}.num_steps=25")
    sampler = published("train", LORA, "sft.yaml", overrides=overrides).model.sampler_config
    assert sampler["params"]["guidance"]["params"]["num_steps"] == 25


def test_our_target_over_published_parameters_keeps_the_guidance(published: Load) -> None:
    target = "cogvideox.diffusion.samplers.DDIMSampler"
    config = published("train", LORA, "sft.yaml", overrides=(f"model.sampler_config.target={target}",))
    assert config.model.sampler_config["params"]["guidance"]["target"].endswith("DynamicGuidance")


@pytest.mark.parametrize(
    ("published_name", "ours"),
    [
        ("sampling.VideoDDIMSampler", "samplers.DDIMSampler"),
        ("sampling.VPODEDPMPP2MSampler", "samplers.DPMpp2MSampler"),
        ("sampling.VPSDEDPMPP2MSampler", "samplers.DPMpp2MSDESampler"),
    ],
)
def test_samplers(edited: Edit, published_name: str, ours: str) -> None:
    config = edited("sampling.VPSDEDPMPP2MSampler", published_name)
    assert config.model.sampler_config["target"] == f"cogvideox.diffusion.{ours}"


def test_vanilla_guidance(edited: Edit) -> None:
    config = edited(
        "DynamicCFG\n        params:\n          scale: 6\n          exp: 5\n          num_steps: 50",
        "VanillaCFG\n        params:\n          scale: 6",
    )
    assert config.model.sampler_config["params"]["guidance"] == {
        "target": "cogvideox.diffusion.guidance.ConstantGuidance",
        "params": {"scale": 6.0},
    }


def test_the_published_default_of_the_schedule_s_shift_is_written_out(edited: Edit) -> None:
    config = edited("shift_scale: 3.0", "num_timesteps: 1000", count=3)
    assert config.model.schedule_config["params"] == {"num_timesteps": 1000, "shift_scale": 1.0}


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("shift_scale: 3.0", "shift_scale: 1.0", "training and sampling share one noise schedule"),
        ("ch: 128", "ch: 64", r"decoder_config\.params\.ch: 128 differs from 64 at .*encoder_config\.params\.ch\)"),
        ("text_length: 226", "text_length: 224", r"max_length: 226 differs from the network's text_length, 224"),
        ("is_trainable: false", "is_trainable: true", r"emb_models\.0\.is_trainable: only false is computed"),
        ("offset_noise_level: 0", "offset_noise_level: 0.1", r"offset_noise_level: only 0\.0 is computed"),
        ("quantize_c_noise: False", "quantize_c_noise: True", r"quantize_c_noise: only false is computed"),
        ("layernorm_order: pre", "layernorm_order: post", r"layernorm_order: only pre is computed"),
        ("denoiser_scaling.VideoScaling", "denoiser_scaling.EpsScaling", r"scaling_config: only .*VideoScaling"),
        ("emb_models:", "emb_models: []\n      more:", r"emb_models: must be a list of one text encoder"),
        ("ucg_rate: 0.1", "ucg_rat: 0.1", r"emb_models\.0\.ucg_rat: unknown parameter .*Conditioner"),
        ("patch_size: 2", "patch_siz: 2", r"patch_siz: unknown parameter .*; did you mean 'patch_size'\?"),
        ("in_channels: 16", "in_channels: 32", r"in_channels: 32 channels hold a noised latent and a first frame"),
        (
            "autoencoder.VideoAutoencoderInferenceWrapper",
            "autoencoder.Other",
            r"unknown target 'vae_modules\.autoencoder\.Other'",
        ),
        (
            "disable_first_stage_autocast: true",
            "noised_image_input: true",
            r"in_channels: 16 channels leave no room for the first",
        ),
    ],
)
def test_mistakes_point_into_the_published_file(edited: Edit, old: str, new: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as error:
        edited(old, new)
    assert "model.yaml:" in str(error.value)


def test_unknown_dataset(published: Load) -> None:
    with pytest.raises(ConfigError, match=r"data\.target: no dataset 'data_video\.VideoDataset': write the keys"):
        published("train", LORA, "sft.yaml", overrides=("data.target=data_video.VideoDataset",))


def test_missing_schedule(tmp_path: Path) -> None:
    tree = yaml.safe_load((PUBLISHED / LORA).read_text())
    model = tree["model"]
    del model["denoiser_config"], model["loss_fn_config"], model["sampler_config"]["params"]["discretization_config"]
    file = tmp_path / "without.yaml"
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match=r"model\.schedule_config: missing"):
        load_config([str(file), str(PUBLISHED / "sft.yaml")], [], "train")
