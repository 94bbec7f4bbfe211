"""Running out of memory is one line: what was asked for, and what this very run could do with less."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cogvideox.config.load import load_config
from cogvideox.config.schema import Config
from cogvideox.errors import ConfigError, OutOfMemoryError
from cogvideox.model.memory import advise_on_memory, sampling_advice, training_advice

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TORCHS_WORDS = (
    "CUDA out of memory. Tried to allocate 9.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which 3.06 GiB is "
    "free. Including non-PyTorch memory, this process has 76.08 GiB memory in use. Of the allocated memory 70.12 GiB "
    "is allocated by PyTorch, and 5.30 GiB is reserved by PyTorch but unallocated. If reserved but unallocated memory "
    "is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See documentation "
    "for Memory Management  (https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)"
)


def test_the_figures_of_torch_stay_and_its_advice_goes() -> None:
    with pytest.raises(OutOfMemoryError) as caught, advise_on_memory("this", "that"):
        raise torch.OutOfMemoryError(TORCHS_WORDS)
    text = str(caught.value)
    for fact in ("Tried to allocate 9.00 GiB", "3.06 GiB is free", "70.12 GiB is allocated", "5.30 GiB is reserved"):
        assert fact in text
    assert text.endswith("but unallocated). What takes less: this; that")
    assert "expandable" not in text and "https" not in text


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED\nmore\nlines",
    ],
)
def test_the_libraries_failures_are_the_same(text: str) -> None:
    with pytest.raises(OutOfMemoryError) as caught, advise_on_memory("this"):
        raise RuntimeError(text)
    line = " ".join(text.split())
    assert str(caught.value) == f"out of device memory ({line}). What takes less: this"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("DataLoader worker is killed by signal: Killed."),
        MemoryError("CUBLAS_STATUS_ALLOC_FAILED"),
        ConfigError("CUBLAS_STATUS_ALLOC_FAILED"),
    ],
)
def test_nothing_else_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, advise_on_memory("this"):
        raise error
    assert caught.value is error


def train(base: str, *overrides: str) -> Config:
    files = [str(CONFIGS / base), str(CONFIGS / ("sft_1.5.yaml" if "1.5" in base else "sft.yaml"))]
    return load_config(files, ["args.train_data=[clips]", "args.load=x", *overrides], "train")


def advice(base: str, *overrides: str, processes: int = 1) -> str:
    return "; ".join(training_advice(train(base, *overrides), processes))


CHUNKS = "model.first_stage_config.params.encode_chunk_frames="


@pytest.mark.parametrize(
    "setting, changed, words",
    [
        ("args.checkpoint_activations=false", "args.checkpoint_activations=true", "args.checkpoint_activations=true"),
        (CHUNKS + "null", CHUNKS + "8", CHUNKS + "8 (encoding takes 4.2 instead of 14.4 GiB"),
        (CHUNKS + "16", CHUNKS + "8", CHUNKS + "8 ("),
        (
            "deepspeed.train_micro_batch_size_per_gpu=2",
            "deepspeed.train_micro_batch_size_per_gpu=1",
            "deepspeed.train_micro_batch_size_per_gpu=1 deepspeed.gradient_accumulation_steps=32",
        ),
        ("args.eval_prompts=[a]", "args.eval_prompts=[]", "guidance_batch=split"),
        ("args.eval_prompts=[a]", "args.eval_prompts=[]", "tile_size=[416,720]"),
    ],
)
def test_only_what_is_not_in_force(setting: str, changed: str, words: str) -> None:
    assert words in advice("cogvideox_2b_lora.yaml", setting)
    assert words not in advice("cogvideox_2b_lora.yaml", changed)


def test_what_all_weights_take() -> None:
    lora, full = advice("cogvideox_5b_lora.yaml"), advice("cogvideox_5b.yaml")
    for words in ("LoRA", "grad_accum_dtype=bf16", "more GPUs with ZeRO 2"):
        assert words in full and words not in lora
    assert "grad_accum_dtype" not in advice("cogvideox_5b.yaml", "deepspeed.data_types.grad_accum_dtype=bf16")
    assert "more GPUs" not in advice("cogvideox_5b.yaml", processes=8)


def test_more_processes_can_share_the_optimizer() -> None:
    stage = "deepspeed.zero_optimization.stage="
    assert stage + "2 (optimizer and gradients divided by 8)" in advice("cogvideox_5b.yaml", stage + "0", processes=8)
    assert stage not in advice("cogvideox_5b.yaml", stage + "2", processes=8)
    assert stage not in advice("cogvideox_5b.yaml", stage + "0")


def test_the_size_of_clips_is_named() -> None:
    assert "than 49 x 480 x 720" in advice("cogvideox_2b_lora.yaml")


@pytest.mark.parametrize(
    ("buckets", "more", "words"),
    [
        ("[[9,480,720],[49,320,480],[49,480,720]]", [], "data.buckets without 49 x 480 x 720, the largest one"),
        # 9 frames of a larger picture are fewer tokens, and more for a VAE that takes 8 frames at a time.
        (
            "[[49,320,480],[9,480,720]]",
            [],
            "the largest ones: 49 x 320 x 480 (most in the transformer) and 9 x 480 x 720 (most in the VAE)",
        ),
        ("[[49,320,480],[9,480,720]]", [CHUNKS + "null"], "without 49 x 320 x 480, the largest one"),
        # 7,800 tokens and 3 times 4,050: what counts is a micro batch.
        (
            "[[49,320,480],[9,480,720]]",
            ["data.tokens_per_micro_batch=12200"],
            "without 9 x 480 x 720, the largest one",
        ),
        ("{pixels: {from: 256x384, to: 480x720}, aspect_ratios: 1.5}", [], "without 49 x 480 x 720, the largest one"),
    ],
)
def test_the_largest_buckets_are_named(buckets: str, more: list[str], words: str) -> None:
    found = advice("cogvideox_2b_lora.yaml", CHUNKS + "8", f"data.buckets={buckets}", *more)
    assert words in found and "data.video_size" not in found


def test_a_micro_batch_by_tokens_has_fewer_of_them() -> None:
    found = advice(
        "cogvideox_2b_lora.yaml", "data.tokens_per_micro_batch=35100", "deepspeed.train_micro_batch_size_per_gpu=2"
    )
    assert "a smaller data.tokens_per_micro_batch than 35100" in found
    assert "train_micro_batch_size_per_gpu" not in found, "it has no effect"


@pytest.mark.parametrize("base", sorted(path.name for path in CONFIGS.glob("cogvideox*.yaml")))
def test_every_key_that_is_advised_can_be_given(base: str) -> None:
    """Each word of the form key=value is read by the configuration, and its advice is gone then."""
    prompts = "['a@@b.png']" if "i2v" in base else "[a]"
    settings = ["args.checkpoint_activations=false", f"args.eval_prompts={prompts}"]
    settings.append("deepspeed.train_micro_batch_size_per_gpu=4")
    while keys := [word for text in training_advice(train(base, *settings), 8) for word in text.split() if "=" in word]:
        assert not set(keys) & set(settings), "advised again"
        settings += keys


def test_sampling() -> None:
    files = [str(CONFIGS / "cogvideox_2b.yaml"), str(CONFIGS / "inference.yaml")]
    config = load_config(files, ["args.load=x", "args.prompts=[a]", "args.batch_size=2"], "sample")
    found = sampling_advice(config.model, config.sample_args)
    assert found[0] == "args.batch_size=1" and any("guidance_batch=split" in each for each in found)
    keys = [word for text in found for word in text.split() if "=" in word]
    config = load_config(files, ["args.load=x", "args.prompts=[a]", *keys], "sample")
    assert sampling_advice(config.model, config.sample_args) == [
        "a smaller args.sampling_image_size or args.sampling_num_frames"
    ]
