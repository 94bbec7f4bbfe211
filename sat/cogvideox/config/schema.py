"""The closed sections of a configuration: every key, its type and its default.

A field is a YAML key of the same name. Types are checked by `value_types` from the annotations as written,
ranges by `problems()`, which names every offending key at once so that one report can hold them all.
Shipped configs in configs/ comment the keys; docs/configuration.md lists them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from cogvideox.config.deepspeed_settings import DeepSpeedSection
from cogvideox.config.limits import at_least, name_problem, seed_problem, share
from cogvideox.released import COGVIDEOX_2B, V1_0

Kind = Literal["train", "sample"]
# {"target": "package.module.Class", "params": {...}}: what YAML says about one component. A parameter that is
# annotated with this name takes the node itself and builds it; any other parameter gets the built object.
ComponentNode = dict[str, Any]
# Keys that published files hold and that change nothing here.
NO_EFFECT: dict[str, tuple[str, ...]] = {
    "args": ("no_load_rng", "force_train", "force_inference", "split", "eval_iters", "only_log_video_latents"),
    "model": ("log_keys", "input_key", "disable_first_stage_autocast"),
}
Problems = Iterator[tuple[str, str]]  # (key, what is wrong and what would be valid)


@dataclass(frozen=True)
class DataEntry:
    """An entry of `args.train_data` or `args.valid_data`; a path alone is one with this `path`.

    Keys that are None take what section `data` says.
    """

    path: str = ""
    layout: (
        Literal["pairs", "csv", "json", "parquet", "lines", "videofolder", "datasets", "hub", "webdataset"] | None
    ) = None
    root: str | None = None
    video_column: str | None = None
    caption_column: str | None = None
    image_column: str | None = None
    weight: float | None = None
    repeats: float | None = None
    caption_prefix: str | None = None

    def problems(self) -> Problems:
        if not self.path:
            yield "path", "missing: a folder, a list of clips, or a pattern of tar files"
        for name in ("weight", "repeats"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                yield name, f"must be more than 0, not {value:g}"


def data_entries(written: list[str | dict[str, Any]]) -> list[DataEntry]:
    """The entries of `args.train_data` or `args.valid_data`."""
    return [DataEntry(path=each) if isinstance(each, str) else DataEntry(**each) for each in written]


@dataclass(frozen=True)
class TrainArgs:
    """Section `args` of a training run. Iterations are optimizer steps; sizes are pixels."""

    # what to run
    experiment_name: str = "lora"
    mode: Literal["finetune", "pretrain", "inference"] = "finetune"
    seed: int = 1234
    device: Literal["auto", "cpu", "cuda"] = "auto"
    text_encoder_device: Literal["auto", "device", "cpu"] = "auto"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    model_parallel_size: int = 1
    rendezvous_timeout_s: float = 600.0
    collective_timeout_s: float = 1800.0
    checkpoint_activations: bool = False
    offload_activations: bool = False
    # where weights come from and go to
    load: str | None = None
    base_model: str | None = None
    verify_weights: bool = False
    no_load_rng: bool = True
    force_train: bool = True
    resume: str | None = None
    save: str = "ckpts"
    save_interval: int = 500
    save_full: bool = False
    keep_last: int | None = None
    # steps and learning rate
    train_iters: int = 1000
    lr_schedule: Literal["constant", "linear", "cosine", "sat"] = "constant"
    warmup_steps: int = 0
    min_lr_ratio: float = 0.0
    warmup: float = 0.01
    lr_decay_style: Literal["linear", "cosine", "exponential", "constant"] = "linear"
    lr_decay_ratio: float = 0.1
    # data
    train_data: list[str | dict[str, Any]] = field(default_factory=list)  # a mapping is a DataEntry
    valid_data: list[str | dict[str, Any]] = field(default_factory=list)
    split: str = "1,0"
    num_workers: int = 2
    # what was seen of the data, stored latents and contexts
    cache: str | None = None
    cache_missing: Literal["error", "online"] = "error"
    cache_dtype: Literal["computed", "bf16", "fp16"] = "computed"
    cache_views: int | None = None
    # evaluation
    eval_interval: int | None = None
    eval_iters: int = 1
    eval_batch_size: int = 1
    eval_samples: int = 16
    eval_split: float = 0.0
    eval_prompts: list[str] = field(default_factory=list)
    sample_steps: int | None = None
    sample_num_frames: int | None = None
    only_log_video_latents: bool = False
    # logging
    log_interval: int = 20
    wandb: bool = False
    wandb_project: str = "cogvideox"

    def problems(self) -> Problems:
        if (problem := name_problem(self.experiment_name)) is not None:
            yield "experiment_name", problem
        if not self.train_data:
            yield (
                "train_data",
                "missing: give the folders or lists of videos with captions, e.g. args.train_data=[clips]",
            )
        yield from _entry_problems(self)
        yield from at_least(
            self,
            1,
            "train_iters",
            "save_interval",
            "log_interval",
            "eval_iters",
            "eval_batch_size",
            "eval_samples",
            "cache_views",
        )
        yield from at_least(self, 1, "eval_interval", "sample_steps", "sample_num_frames", "keep_last")
        yield from at_least(self, 0, "warmup_steps", "num_workers")
        yield from seed_problem(self)
        yield from at_least(self, 1, "rendezvous_timeout_s")
        yield from at_least(self, 10, "collective_timeout_s")
        yield from share(self, "min_lr_ratio", "warmup", "lr_decay_ratio", "eval_split")
        if self.load is None and self.resume is None and self.mode == "finetune":
            yield "load", "missing: fine-tuning starts from a checkpoint; args.mode=pretrain starts from random weights"
        if self.warmup_steps > self.train_iters >= 1:
            yield "warmup_steps", f"{self.warmup_steps} is more than train_iters ({self.train_iters})"
        if self.offload_activations and not self.checkpoint_activations:
            yield (
                "offload_activations",
                "true moves the inputs of recomputed blocks, so it needs args.checkpoint_activations: true",
            )
        if self.model_parallel_size != 1:
            yield "model_parallel_size", "only 1 is supported: this version has no tensor parallelism"
        if self.mode == "inference":
            yield "mode", "'inference' is for sample_video.py; training takes finetune or pretrain"


def _entry_problems(args: TrainArgs) -> Problems:
    """What is wrong with the entries of data together."""
    entries = data_entries(args.train_data)
    weights, repeats = (sum(getattr(each, name) is not None for each in entries) for name in ("weight", "repeats"))
    if weights and repeats:
        yield "train_data", "weight and repeats stand in one list: keep one of the two"
    elif 0 < weights < len(entries):
        yield "train_data", f"{weights} of {len(entries)} entries have a weight: give each entry one, or none"
    if any(each.weight is not None or each.repeats is not None for each in data_entries(args.valid_data)):
        yield "valid_data", "weight and repeats belong to train_data: an evaluation takes each clip once"


@dataclass(frozen=True)
class SampleArgs:
    """Section `args` of sampling. Sizes are (height, width) in pixels.

    `sampling_num_frames` counts latent frames; with patches of 2 latent frames (1.5) an even number is the padded
    count (22 is 21 real ones), an odd one the real count. `sampling_image_size` None: from the image (I2V only).
    """

    # what to run
    mode: Literal["inference", "finetune", "pretrain"] = "inference"
    seed: int = 42
    device: Literal["auto", "cpu", "cuda"] = "auto"
    text_encoder_device: Literal["auto", "device", "cpu"] = "auto"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    model_parallel_size: int = 1
    rendezvous_timeout_s: float = 600.0
    collective_timeout_s: float = 1800.0
    bf16: bool = False
    fp16: bool = False
    # weights
    load: str | None = None
    base_model: str | None = None
    save: str = "ckpts"
    verify_weights: bool = False
    lora_strength: float = 1.0
    force_inference: bool = True
    # prompts
    image2video: bool | None = None  # None: as the model is
    input_type: Literal["txt", "cli"] = "cli"
    input_file: str | None = None
    prompts: list[str] = field(default_factory=list)
    num_samples: int = 1
    batch_size: int = 1
    # the video; a 1.5 model has its own defaults (released.py)
    sampling_image_size: tuple[int, int] | None = (V1_0.clip.height, V1_0.clip.width)
    sampling_num_frames: int = V1_0.sampling_num_frames
    sampling_fps: int = round(V1_0.clip.fps)
    latent_channels: int = 16
    num_steps: int | None = None
    guidance_scale: float | None = None
    # output
    output_dir: str = "outputs"
    only_save_latents: bool = False
    save_latents: bool = False
    overwrite: bool = False

    def problems(self) -> Problems:
        if not self.load:
            yield "load", "missing: give the checkpoint folder to sample with, e.g. args.load=ckpts/run/1000"
        yield from at_least(self, 1, "num_samples", "batch_size", "sampling_fps", "num_steps")
        yield from at_least(self, 1, "rendezvous_timeout_s")
        yield from at_least(self, 10, "collective_timeout_s")
        yield from at_least(self, 0, "guidance_scale")
        yield from seed_problem(self)
        if self.bf16 and self.fp16:
            yield "fp16", "bf16 and fp16 are both true: keep one"
        if self.input_type == "txt" and not self.input_file and not self.prompts:
            yield "input_file", "missing: input_type txt reads one prompt per line from this file"
        if self.model_parallel_size != 1:
            yield "model_parallel_size", "only 1 is supported: this version has no tensor parallelism"


@dataclass(frozen=True)
class DataConfig:
    """Section `data`: how clips are read. `video_size` is (height, width) in pixels; 1 frame trains on images.

    `buckets` are further shapes, see config.buckets; None: that one. `tokens_per_micro_batch`: as many clips of a
    bucket go into a micro batch as have so many video tokens, at least one; None: as many as deepspeed says.
    """

    video_size: tuple[int, int] = (V1_0.clip.height, V1_0.clip.width)
    fps: float = float(V1_0.clip.fps)
    max_num_frames: int = V1_0.clip.frames
    skip_frms_num: float = 3.0
    reader: Literal["pyav", "decord", "torchcodec"] = "pyav"
    short_clips: Literal["error", "skip", "pad", "loop", "shorten"] = "skip"
    missing_captions: Literal["error", "empty"] = "error"
    video_column: str | None = None
    caption_column: str | None = None
    image_column: str | None = None
    caption_prefix: str = ""
    captions: Literal["first", "random"] = "first"
    max_failed_share: float = 0.05
    clip_timeout_s: float = 60.0
    random_start: bool = False
    frame_stride: int | None = None
    windows: Literal["one", "all"] = "one"
    scene_cuts: Literal["ignore", "avoid"] = "ignore"
    buckets: list[tuple[int, int, int]] | dict[str, Any] | None = None
    tokens_per_micro_batch: int | None = None

    @property
    def has_buckets(self) -> bool:
        """Whether clips of several shapes are trained in one run."""
        return self.buckets is not None

    def problems(self) -> Problems:
        yield from at_least(self, 1, "tokens_per_micro_batch")
        yield from at_least(self, 0, "skip_frms_num")
        yield from at_least(self, 1, "frame_stride")
        if self.random_start and self.windows == "all":
            yield "random_start", "has no use with windows: all, which takes every part of a clip; keep one of them"
        if self.short_clips == "shorten" and not self.has_buckets:
            yield "short_clips", "shorten needs data.buckets, which give clips of several lengths; or pad, loop, skip"
        yield from share(self, "max_failed_share")
        for name in ("fps", "clip_timeout_s"):
            if getattr(self, name) <= 0:
                yield name, f"must be more than 0, not {getattr(self, name):g}"


@dataclass(frozen=True)
class ModelConfig:
    """Section `model`: components as unbuilt nodes, and flat keys.

    `noised_image_input` makes it an image-to-video model: the network takes the first frame's latent beside the noised
    one. That latent is `image_latent_scale` x VAE output; None stands for scale_factor.
    """

    network_config: ComponentNode
    first_stage_config: ComponentNode
    conditioner_config: ComponentNode
    schedule_config: ComponentNode
    loss_fn_config: ComponentNode = field(
        default_factory=lambda: {"target": "cogvideox.diffusion.loss.VideoDiffusionLoss", "params": {}}
    )
    sampler_config: ComponentNode = field(
        default_factory=lambda: {
            "target": "cogvideox.diffusion.samplers.DPMpp2MSDESampler",
            "params": {"guidance": {"target": "cogvideox.diffusion.guidance.DynamicGuidance", "params": {}}},
        }
    )
    scale_factor: float = COGVIDEOX_2B.scale_factor
    not_trainable_prefixes: list[str] = field(default_factory=lambda: ["first_stage_model", "conditioner"])
    log_keys: list[str] = field(default_factory=list)
    lr_scale: float | None = None
    compile_model: bool = False
    input_key: str = "mp4"
    en_and_decode_n_samples_a_time: int | None = None
    disable_first_stage_autocast: bool = True
    latent_input: bool = False
    noised_image_input: bool = False
    noised_image_all_concat: bool = False
    noised_image_dropout: float = 0.0
    image_latent_scale: float | None = None

    def problems(self) -> Problems:
        if self.scale_factor <= 0:
            yield "scale_factor", f"must be more than 0 (2B: {COGVIDEOX_2B.scale_factor}), not {self.scale_factor:g}"
        yield from at_least(self, 1, "en_and_decode_n_samples_a_time")
        yield from share(self, "noised_image_dropout")
        if self.image_latent_scale is not None and self.image_latent_scale <= 0:
            yield (
                "image_latent_scale",
                f"must be more than 0 (1.5: 1.0), or null for scale_factor, not {self.image_latent_scale:g}",
            )
        if self.noised_image_all_concat:
            yield (
                "noised_image_all_concat",
                "only false is supported: the condition is the first frame, not every frame",
            )
        if self.latent_input:
            yield (
                "latent_input",
                "training from stored latents is not supported by this version: set it to false",
            )


@dataclass(frozen=True)
class Config:
    """A checked configuration.

    `resolved_yaml` is the text for the run folder: every key with the value in force, in our names. It
    can be loaded again. `warnings` and `notices` are what `load_config` has logged; `files` and `overrides` what it was
    given.
    """

    kind: Kind
    args: Any  # TrainArgs or SampleArgs, by kind; `train_args` and `sample_args` give it typed
    model: ModelConfig
    data: DataConfig | None
    deepspeed: DeepSpeedSection
    resolved_yaml: str
    warnings: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()

    @property
    def train_args(self) -> TrainArgs:
        assert isinstance(self.args, TrainArgs), "train_args of a sampling configuration"
        return self.args

    @property
    def sample_args(self) -> SampleArgs:
        assert isinstance(self.args, SampleArgs), "sample_args of a training configuration"
        return self.args
