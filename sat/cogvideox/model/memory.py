"""What to say when the device's memory doesn't suffice: what was asked for, and what this run could do with less.

Each piece of advice is a rule: whether it helps a configuration, and what to write. Figures are docs/memory.md's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cogvideox.config.buckets import largest_buckets
from cogvideox.config.schema import Config, ModelConfig, SampleArgs
from cogvideox.errors import OutOfMemoryError
from cogvideox.model.build import has_lora

# cuBLAS and cuDNN (by its versions' names) allocate on their own, and say so as plain RuntimeErrors.
_LIBRARIES = re.compile(r"CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_(?:INTERNAL_ERROR_DEVICE_)?ALLOC(?:ATION)?_FAILED")
# torch goes on with advice of its own.
_TORCHS_ADVICE = re.compile(r"\s*(?:If reserved but unallocated|See documentation)")
_VAE = "model.first_stage_config.params"


@contextmanager
def advise_on_memory(*advice: str) -> Iterator[None]:
    """Raises: OutOfMemoryError with torch's figures and the advice, where the block runs out of the device's memory."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not isinstance(error, torch.OutOfMemoryError) and not _LIBRARIES.search(str(error)):
            raise
        facts = " ".join(_TORCHS_ADVICE.split(str(error))[0].split()).rstrip(".")
        raise OutOfMemoryError(f"out of device memory ({facts}). What takes less: {'; '.join(advice)}") from error


def training_advice(config: Config, processes: int) -> list[str]:
    """What takes less memory in this training run and is not in force yet; what costs least comes first."""
    args, section, data = config.train_args, config.deepspeed, config.data
    is_lora, precision = has_lora(config.model), section.precision
    micro = section.get("train_micro_batch_size_per_gpu") or 1
    budget = None if data is None else data.tokens_per_micro_batch
    advice = _encoders_advice(config.model, args)
    if not args.checkpoint_activations:
        advice.append("args.checkpoint_activations=true (23 GiB less for a LoRA of 2B, more for larger ones)")
    elif not args.offload_activations:
        advice.append("args.offload_activations=true (4.2 GiB less for 5B, 10.6 for 1.5)")
    if budget is not None:
        advice.append(f"a smaller data.tokens_per_micro_batch than {budget}")
    elif micro > 1:
        more = micro * (section.get("gradient_accumulation_steps") or 1)
        keys = f"deepspeed.train_micro_batch_size_per_gpu=1 deepspeed.gradient_accumulation_steps={more}"
        advice.append(f"{keys} (the same batch, one clip at a time)")
    if args.eval_prompts:
        advice += _sampler_advice(config.model)
    if processes > 1 and section.stage < 2:
        advice.append(f"deepspeed.zero_optimization.stage=2 (optimizer and gradients divided by {processes})")
    if not is_lora:
        if section.gradient_sums == "fp32" and precision != "fp32":
            advice.append(f"deepspeed.data_types.grad_accum_dtype={precision} (2 bytes less per weight)")
        advice.append("a LoRA (configs/*_lora.yaml) instead of all weights")
        if processes == 1:
            advice.append("more GPUs with ZeRO 2")
    if data is not None:
        largest = [" x ".join(map(str, bucket)) for bucket in largest_buckets(config)]
        if not data.has_buckets:
            advice.append(f"a smaller data.video_size or data.max_num_frames than {largest[0]}")
        elif len(largest) == 1:
            advice.append(f"data.buckets without {largest[0]}, the largest one")
        else:
            where = f"{largest[0]} (most in the transformer) and {largest[1]} (most in the VAE)"
            advice.append(f"data.buckets without the largest ones: {where}")
    return advice


def sampling_advice(model: ModelConfig, args: SampleArgs) -> list[str]:
    """The same for sampling."""
    advice = []
    if args.batch_size > 1:
        advice.append("args.batch_size=1")
    if args.text_encoder_device == "device":
        advice.append("args.text_encoder_device=auto (8.9 GiB less for T5-XXL)")
    advice += _sampler_advice(model)
    if not (args.bf16 or args.fp16):
        advice.append("args.bf16=true (half of what fp32 takes)")
    return [*advice, "a smaller args.sampling_image_size or args.sampling_num_frames"]


def _encoders_advice(model: ModelConfig, args: Any) -> list[str]:
    advice = []
    if args.text_encoder_device == "device":
        advice.append("args.text_encoder_device=auto (8.9 GiB less for T5-XXL)")
    chunk = _params(model.first_stage_config).get("encode_chunk_frames")
    if chunk is None or chunk > 8:
        saved = "encoding takes 4.2 instead of 14.4 GiB at 49 x 480 x 720, 12.6 instead of 65 at 81 x 768 x 1360"
        advice.append(f"{_VAE}.encode_chunk_frames=8 ({saved})")
    return advice


def _sampler_advice(model: ModelConfig) -> list[str]:
    """Of the denoising steps, and of decoding."""
    advice, vae = [], _params(model.first_stage_config)
    if _params(model.sampler_config).get("guidance_batch") != "split":
        advice.append("model.sampler_config.params.guidance_batch=split (both branches one after the other)")
    chunk = vae.get("decode_chunk_latent_frames", 2)
    if chunk is None or chunk > 2:
        advice.append(f"{_VAE}.decode_chunk_latent_frames=2")
    if vae.get("tile_size") is None:
        advice.append(f"{_VAE}.tile_size=[416,720] (decoding takes 12.4 instead of 19.9 GiB at 81 x 768 x 1360)")
    if not vae.get("offload_chunks"):
        advice.append(f"{_VAE}.offload_chunks=true (with tiles, 5.4 GiB)")
    return advice


def _params(node: dict[str, Any]) -> dict[str, Any]:
    return node.get("params") or {}
