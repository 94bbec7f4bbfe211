"""Words from other trainers lead to a key that exists, with an example that loads."""

from __future__ import annotations

import re
import shlex

import pytest
from cogvideox.config import familiar_words
from cogvideox.config.familiar_words import meant
from cogvideox.config.load import parse_cli
from cogvideox.config.schema import Kind
from cogvideox.errors import ConfigError
from config.conftest import Load

ASSIGNMENT = re.compile(r"^[a-z_]+\.[\w.]+=")


def examples(column: int) -> list[str]:
    """The `key=value` words of all rows; their text ends with, or goes on in brackets behind, the examples."""
    texts = [row[column].partition(" (")[0] for row in familiar_words._ROWS]
    return [word for text in texts for word in split(text) if ASSIGNMENT.match(word)]


def split(text: str) -> list[str]:
    """At blanks outside of brackets and single quotes, as a shell gives the words."""
    return [word.strip("'") for word in re.findall(r"(?:'[^']*'|\[[^\]]*\]|\S)+", text)]


def test_every_example_of_training_loads(train: Load) -> None:
    texts = examples(1)
    assert len(texts) > 30
    for text in texts:
        both = ["deepspeed.fp16.enabled=false"] if "bf16" in text else []
        guidance = "scale=" in text
        train(*both, "args.lr_schedule=constant" if guidance else "args.seed=1", text)


def test_every_example_of_sampling_loads(sample: Load) -> None:
    texts = examples(2)
    assert len(texts) > 10
    for text in texts:
        more = {"args.bf16=true": ["args.fp16=false"], "args.input_type=txt": ["args.input_file=a"]}.get(text, [])
        image = "@@" in text
        if not image:
            sample(*more, text)


def test_no_word_has_two_meanings_and_none_is_a_key_already() -> None:
    words = [word for row in familiar_words._ROWS for word in row[0].split()]
    assert len(words) == len(set(words)) == len(familiar_words._BY_WORD)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("args.lr=1e-4", "deepspeed.optimizer.params.lr=1e-4"),
        ("learning_rate=1e-4", "deepspeed.optimizer.params.lr=1e-4"),
        ("args.rank=64", "lora_config.params.r=128"),
        ("model.lora_rank=64", "lora_config.params.r=128"),
        ("alpha=64", "lora_config.params.lora_alpha=128 (the adapters are scaled by lora_alpha / r)"),
        ("model.network_config.params.modules.lora_config.params.alpha=64", "lora_config.params.lora_alpha=128"),
        ("args.epochs=10", "args.train_iters=2000 (optimizer steps"),
        ("num_frames=49", "data.max_num_frames=49"),
        ("data.num_frames=49", "data.max_num_frames=49"),
        ("args.random_hw_adapt=true", "'data.buckets={pixels: {from: 256x384, to: 480x720}, vary: size}'"),
        ("data.random_frame_crop=true", "'data.buckets={frames: {from: 9, to: 49}, vary: frames}'"),
        ("args.training_with_video_token_length=true", "'data.buckets={tokens: 49x480x720, frames: [9, 21, 49], vary"),
        ("args.enable_bucket=true", "data.buckets={} (sizes of eight aspect ratios"),
        ("args.resolution=480", "data.video_size=[480,720] (height, width)"),
        ("data.height=480", "data.video_size=[480,720] (height, width)"),
        ("args.batch_size=4", "deepspeed.train_micro_batch_size_per_gpu=1"),
        ("args.train_batch_size=4", "deepspeed.train_micro_batch_size_per_gpu=1"),
        ("args.gradient_accumulation_steps=4", "deepspeed.gradient_accumulation_steps=16"),
        ("args.max_train_steps=4", "args.train_iters=2000"),
        ("args.steps=4", "args.train_iters=2000"),
        ("args.output_dir=a", "args.save=ckpts"),
        ("args.prompts=[a]", 'args.eval_prompts=["a ship at sea"]'),
        ("args.mixed_precision=bf16", "deepspeed.bf16.enabled=true"),
        ("args.bf16=true", "deepspeed.bf16.enabled=true"),
        ("args.gradient_checkpointing=true", "args.checkpoint_activations=true"),
        ("args.checkpointing_steps=10", "args.save_interval=500"),
        ("args.strength=0.5", "that is for sampling: there write args.lora_strength=0.8"),
        ("deepspeed.lr=1", "deepspeed.optimizer.params.lr=1e-4"),
        ("args.video_size=[480,720]", "belongs to section data: write data.video_size"),
        ("args.scale_factor=1", "belongs to section model: write model.scale_factor"),
    ],
)
def test_what_is_meant_in_training(train: Load, override: str, key: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(key)):
        train(override)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("args.num_frames=49", "args.sampling_num_frames=13 (latent frames: 13 give 49 pixel frames)"),
        ("args.height=480", "args.sampling_image_size=[480,720]"),
        ("args.prompt=a", 'args.prompts=["a ship at sea"]'),
        ("args.num_inference_steps=20", "args.num_steps=50"),
        ("args.dtype=bf16", "args.bf16=true"),
        ("args.lr=1", "that is for training: there write deepspeed.optimizer.params.lr=1e-4"),
    ],
)
def test_what_is_meant_in_sampling(sample: Load, override: str, key: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(key)):
        sample(override)


@pytest.mark.parametrize(
    ("flags", "kind", "key"),
    [
        ("--learning_rate 1e-4", "train", "--learning_rate: here that is deepspeed.optimizer.params.lr=1e-4"),
        ("--max-train-steps=5", "train", "--max-train-steps: here that is args.train_iters=2000"),
        ("--train_iters 5", "train", "--train_iters: write args.train_iters=..."),
        ("--prompt a", "sample", '--prompt: here that is args.prompts=["a ship at sea"]'),
    ],
)
def test_flags_of_other_trainers(flags: str, kind: Kind, key: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(key)):
        parse_cli(["--base", "a.yaml", *shlex.split(flags)], kind)


def test_unknown_words_have_no_meaning() -> None:
    assert meant("train_itres", "train") == "" and meant("lr", None) == ""
    assert meant("--Learning-Rate", "train") == "here that is deepspeed.optimizer.params.lr=1e-4"
