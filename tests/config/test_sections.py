"""Keys, types and ranges of the closed sections, and what must agree between them."""

from __future__ import annotations

import sys

import pytest
from cogvideox.config.load import load_config
from cogvideox.errors import ConfigError
from config.conftest import MODEL, ROOT, Load

NETWORK = "model.network_config.params"


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("args.train_iters=0", r"args\.train_iters: must be at least 1, not 0"),
        ("args.train_iters=many", r"args\.train_iters: must be int, not 'many'"),
        ("args.train_iters=1.5", r"args\.train_iters: must be int, not 1\.5"),
        ("args.wandb=perhaps", r"args\.wandb: must be true or false, not 'perhaps'"),
        ("args.train_data=clips", r"args\.train_data: must be a list of str or a mapping, not 'clips'; write"),
        ("args.train_data=[]", r"args\.train_data: missing: give the folders or lists"),
        ("args.load=null", r"args\.load: missing: fine-tuning starts from a checkpoint"),
        ("args.lr_schedule=cosin", r"args\.lr_schedule: must be one of constant, linear, cosine, sat, not 'cosin'"),
        ("args.device=tpu", r"args\.device: must be one of auto, cpu, cuda, not 'tpu'"),
        ("args.warmup_steps=5000", r"args\.warmup_steps: 5000 is more than train_iters \(2000\)"),
        ("args.seed=-1", r"args\.seed: must be a whole number from 0 to 2\^63 - 1, not -1"),
        ("args.seed=18446744073709551616", r"args\.seed: must be a whole number from 0 to 2\^63 - 1, not 184"),
        ("args.load=None", r"args\.load: missing: fine-tuning starts from a checkpoint"),
        ("args.warmup_steps=-1", r"args\.warmup_steps: must be at least 0"),
        ("args.eval_interval=0", r"args\.eval_interval: must be at least 1"),
        ("args.collective_timeout_s=1", r"args\.collective_timeout_s: must be at least 10, not 1"),
        ("args.keep_last=0", r"args\.keep_last: must be at least 1"),
        ("args.eval_split=1.5", r"args\.eval_split: must lie between 0 and 1, not 1\.5"),
        ("args.min_lr_ratio=-1", r"args\.min_lr_ratio: must lie between 0 and 1"),
        ("args.experiment_name=''", r"args\.experiment_name: is empty: it begins the name of the run folder"),
        ("args.experiment_name=runs/style", r"args\.experiment_name: 'runs/style' can't begin the name of a folder"),
        ("args.experiment_name=../style", r"args\.experiment_name: '\.\./style' can't begin .*; args\.save says where"),
        ("args.experiment_name=.hidden", r"args\.experiment_name: '\.hidden' can't begin the name of a folder"),
        ('args.experiment_name="a\\nb"', r"args\.experiment_name: 'a\\nb' can't begin the name of a folder"),
        ("args.experiment_name=latest", r"args\.experiment_name: 'latest' is the word for the newest run"),
        (f"args.experiment_name={'x' * 201}", r"args\.experiment_name: 'xxx.* is too long .*: at most 200 bytes"),
        ("args.model_parallel_size=2", r"args\.model_parallel_size: only 1 is supported"),
        ("args.mode=inference", r"args\.mode: 'inference' is for sample_video\.py"),
        ("args.sample_num_frames=16", r"args\.sample_num_frames: must be 4k \+ 1, not 16; nearest: 13 or 17"),
        ("data.video_size=[480,725]", r"multiples of 16, not \[480, 725\]; nearest: \[480, 720\]"),
        ("data.video_size=[480]", r"data\.video_size: must be a list of 2 int, not \[480\]"),
        ("data.video_size=480", r"data\.video_size: must be a list of 2 int, not 480"),
        ("data.video_size=[0,720]", r"nearest: \[16, 720\]"),
        (
            "data.video_size=[720,480]",
            r"\[720, 480\] is larger than the network's positions, which end at \[480, 720\]",
        ),
        ("data.max_num_frames=48", r"data\.max_num_frames: must be 4k \+ 1, not 48; nearest: 45 or 49"),
        ("data.max_num_frames=0", r"data\.max_num_frames: must be 4k \+ 1, not 0; nearest: 1$"),
        (
            "data.max_num_frames=53",
            r"max_num_frames: 53 pixel frames are more than the network's positions cover: 49",
        ),
        ("data.fps=0", r"data\.fps: must be more than 0"),
        ("data.clip_timeout_s=0", r"data\.clip_timeout_s: must be more than 0"),
        ("data.reader=ffmpeg", r"data\.reader: must be one of pyav, decord, torchcodec, not 'ffmpeg'"),
        ("data.max_failed_share=2", r"data\.max_failed_share: must lie between 0 and 1"),
        ("data=3", r"data: must be a mapping of keys"),
        ("model.scale_factor=0", r"model\.scale_factor: must be more than 0"),
        ("model.latent_input=true", r"model\.latent_input: training from stored latents is not supported"),
        ("model.noised_image_input=true", r"in_channels: 16 channels leave no room for the first frame .*; set 32, or"),
        ("model.noised_image_all_concat=true", r"model\.noised_image_all_concat: only false is supported"),
        ("model.noised_image_dropout=2", r"model\.noised_image_dropout: must lie between 0 and 1"),
        ("model.image_latent_scale=0", r"model\.image_latent_scale: must be more than 0 \(1\.5: 1\.0\)"),
        ("model.en_and_decode_n_samples_a_time=0", r"en_and_decode_n_samples_a_time: must be at least 1"),
        ("model.network_config=null", r"model\.network_config: missing: start from a model file"),
        ("model.sampler_config=3", r"model\.sampler_config: must be a component: target \(a class\) and params"),
        (f"{NETWORK}.hidden_size=1900", r"hidden_size: 1900 is not divisible by 30 attention heads"),
        (f"{NETWORK}.num_layers=0", r"num_layers: must be at least 1, not 0"),
        (f"{NETWORK}.num_frames=50", r"num_frames: must be 4k \+ 1, not 50"),
        (f"{NETWORK}.patch_size=[2,2]", r"patch_size: must be one number or \[frames, height, width\]"),
        (
            f"{NETWORK}.in_channels=32",
            r"in_channels: 32 channels hold a noised latent and a first frame.*; set",
        ),
        (f"{NETWORK}.in_channels=20", r"in_channels: 20 differs from the VAE's z_channels, 16"),
        (f"{NETWORK}.out_channels=20", r"out_channels: 20 differs from the VAE's z_channels, 16"),
        (
            f"{NETWORK}.temporal_compression=8",
            r"temporal_compression: 8 differs from the VAE's temporal_compression, 4",
        ),
        (f"{NETWORK}.text_length=224", r"encoder\.params\.max_length: 226 differs from the network's text_length, 224"),
        (f"{NETWORK}.modules.lora_config.params.r=0", r"lora_config\.params\.r: the rank must be at least 1, not 0"),
        (f"{NETWORK}.modules.adaln_layer_config=null", r"modules: missing: adaln_layer_config"),
        ("model.first_stage_config.params.ch_mult=[]", r"ch_mult: must be at least 1, not \[\]"),
    ],
)
def test_mistakes_in_training(train: Load, override: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        train(override)


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("args.load=null", r"args\.load: missing: give the checkpoint folder"),
        ("args.image2video=true", r"args\.image2video: true contradicts the model, which is text-to-video"),
        ("args.sampling_image_size=null", r"args\.sampling_image_size: missing: give \[height, width\]; only image-to"),
        ("args.bf16=true", r"args\.fp16: bf16 and fp16 are both true"),
        ("args.input_type=txt", r"args\.input_file: missing: input_type txt reads one prompt per line"),
        ("args.num_samples=0", r"args\.num_samples: must be at least 1"),
        ("args.sampling_num_frames=0", r"args\.sampling_num_frames: must be at least 1"),
        ("args.sampling_num_frames=14", r"14 latent frames are 53 pixel frames, more than the .* cover: 49"),
        ("args.sampling_image_size=[100,100]", r"multiples of 16, not \[100, 100\]; nearest: \[96, 96\]"),
        ("args.latent_channels=4", r"args\.latent_channels: 4 differs from the VAE's z_channels, 16"),
        ("args.guidance_scale=-1", r"args\.guidance_scale: must be at least 0"),
        ("args.model_parallel_size=2", r"args\.model_parallel_size: only 1 is supported"),
    ],
)
def test_mistakes_in_sampling(sample: Load, override: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        sample(override)


def test_unknown_entry_of_the_network_s_modules(train: Load) -> None:
    node = "{target: cogvideox.transformer.adaln.AdaLNMixin}"
    with pytest.raises(ConfigError, match=r"unknown entry 'adaln_layr_config'; did you mean 'adaln_layer_config'\?"):
        train(f"{NETWORK}.modules.adaln_layr_config={node}")


def test_training_without_data_section() -> None:
    with pytest.raises(ConfigError, match="data: missing section: say how clips are read"):
        load_config([MODEL], ["args.train_data=[x]"], "train")


def test_offloaded_activations_need_checkpoints(train: Load) -> None:
    params = train("args.offload_activations=true").model.network_config["params"]
    assert (params["checkpoint_activations"], params["offload_activations"]) == (True, True)
    with pytest.raises(
        ConfigError, match=r"args\.offload_activations: true moves .* needs args.checkpoint_activations"
    ):
        train("args.offload_activations=true", "args.checkpoint_activations=false")


def test_flat_keys_reach_their_components(train: Load) -> None:
    params = train("args.checkpoint_activations=false", "model.compile_model=true").model.network_config["params"]
    assert (params["checkpoint_activations"], params["compile_blocks"]) == (False, True)


def test_steps_and_guidance_scale_reach_the_sampler(sample: Load) -> None:
    sampler = sample("args.num_steps=12", "args.guidance_scale=3.5").model.sampler_config
    assert sampler["params"]["num_steps"] == 12
    params = sampler["params"]["guidance"]["params"]
    assert params == {"scale": 3.5, "exp": 5.0, "num_steps": 12, "by": "timestep"}


SAMPLER = "model.sampler_config.params"


def test_guidance_by_step_takes_the_sampler_s_steps(sample: Load, train: Load) -> None:
    by_step = (f"{SAMPLER}.guidance.params.by=step", f"{SAMPLER}.guidance.params.exp=2")
    for config in (sample(f"{SAMPLER}.num_steps=25", *by_step), train(f"{SAMPLER}.num_steps=25", *by_step)):
        assert config.model.sampler_config["params"]["guidance"]["params"]["num_steps"] == 25
        assert not config.warnings
        assert [line for line in config.notices if "num_steps: 25 instead of 50: guidance by step" in line]
    assert not sample(*by_step).notices and not sample("args.num_steps=25", *by_step).notices


def test_guidance_by_timestep_with_another_number_of_steps_warns(sample: Load, train: Load) -> None:
    (warning,) = sample(f"{SAMPLER}.num_steps=25").warnings
    assert "guidance.params.num_steps: 50 differs from the sampler's num_steps, 25" in warning
    assert warning.startswith(str(ROOT / "configs/cogvideox_2b.yaml")) and "or set args.num_steps" in warning
    assert not sample("args.num_steps=25").warnings
    assert not sample("model.sampler_config=null").warnings
    constant = "{target: cogvideox.diffusion.guidance.ConstantGuidance, replace: true}"
    assert not sample(f"{SAMPLER}.num_steps=25", f"{SAMPLER}.guidance={constant}").warnings
    assert not train(f"{SAMPLER}.num_steps=25").warnings  # nothing is sampled
    prompts = (f"{SAMPLER}.num_steps=25", "args.eval_prompts=[a ship]")
    assert "or set args.sample_steps" in train(*prompts).warnings[0]
    assert not train(*prompts, "args.sample_steps=9").warnings


def test_a_guidance_scale_without_guidance_makes_it_constant(sample: Load) -> None:
    sampler = sample("model.sampler_config.params.guidance=null", "args.guidance_scale=2").model.sampler_config
    assert sampler["params"]["guidance"] == {
        "target": "cogvideox.diffusion.guidance.ConstantGuidance",
        "params": {"scale": 2.0},
    }


def test_steps_reach_the_default_sampler(sample: Load) -> None:
    sampler = sample("model.sampler_config=null", "args.num_steps=9").model.sampler_config
    assert sampler["target"].endswith("DPMpp2MSDESampler") and sampler["params"]["num_steps"] == 9


def test_a_saved_key_without_effect_is_named_once(train: Load) -> None:
    notices = train("args.split='1,0'", "model.log_keys=[txt]").notices
    assert [line for line in notices if "without effect" in line] == [
        "args: accepted without effect: split",
        "model: accepted without effect: log_keys",
    ]


def test_sat_s_own_schedule_keys_choose_its_schedule() -> None:
    base = [MODEL]
    overrides = ["args.train_data=[x]", "data.fps=8"]
    assert load_config(base, overrides, "train").train_args.lr_schedule == "constant"
    assert load_config(base, [*overrides, "args.warmup=0.1"], "train").train_args.lr_schedule == "sat"
    explicit = [*overrides, "args.warmup=0.1", "args.lr_schedule=linear"]
    assert load_config(base, explicit, "train").train_args.lr_schedule == "linear"


@pytest.mark.parametrize("word", ["None", "none", "null", "~"])
def test_words_for_nothing(train: Load, word: str) -> None:
    config = train(f"args.resume={word}", f"args.keep_last={word}")
    assert config.train_args.resume is None and config.train_args.keep_last is None


@pytest.mark.parametrize(("word", "value"), [("True", True), ("yes", True), ("on", True), ("False", False)])
def test_words_for_true_and_false(train: Load, word: str, value: bool) -> None:
    assert train(f"args.wandb={word}").train_args.wandb is value


def test_weights_and_biases_must_be_installed(train: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"args\.wandb: the package wandb is not installed: pip install wandb"):
        train("args.wandb=true")
    assert train("args.wandb=false").train_args.wandb is False
