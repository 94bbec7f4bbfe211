"""Opening a converted folder with diffusers and comparing it with the SAT weights: tensors, tables, outputs.

Tensors are translated back by the reverse tables and compared bit by bit. Of the two implementations one runs after the
other, so that a large model is in memory once.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers.utils import logging as transformers_logging

from cogvideox.conversion import compare
from cogvideox.conversion.diffusers_export.plan import Plan
from cogvideox.diffusion.schedule import NoiseSchedule
from cogvideox.errors import CheckpointError
from cogvideox.weights import diffusers_folder as folders
from cogvideox.weights import transformer_map, vae_map
from cogvideox.weights.families import POSITION_TABLE

_LARGE = 4 * 2**30  # bytes; a text encoder beyond this is not opened
_PIPELINES = {kind.__name__: kind for kind in (CogVideoXPipeline, CogVideoXImageToVideoPipeline)}
_SCHEDULERS = {kind.__name__: kind for kind in (CogVideoXDDIMScheduler, CogVideoXDPMScheduler)}


def verify(plan: Plan) -> None:
    """Print the figures of every comparison.

    Raises: CheckpointError for the first that fails, or when diffusers can't open the folder.
    """
    print("verifying with diffusers")
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    with torch.no_grad():
        if plan.writes_transformer or plan.writes_lora:
            _verify_transformer(plan)
        if plan.vae is not None:
            _verify_vae(plan)
        if plan.options.part == "pipeline":
            _verify_scheduler(plan)


def _verify_transformer(plan: Plan) -> None:
    weights, facts, settings = plan.weights, plan.facts, plan.settings
    assert weights is not None and facts is not None, "a transformer without weights"
    with _transformer_folder(plan) as folder:
        theirs = compare.open_model(CogVideoXTransformer3DModel, folder, compare.widest(weights.plain, plan.dtype))
        _compare_transformer_tensors(plan, theirs)
        theirs = theirs.float()
        pipeline = _open_pipeline(plan, theirs)
        if plan.writes_lora:
            pipeline.load_lora_weights(str(plan.options.output))
        rotations = compare.their_rotations(pipeline, settings, facts) if facts.rotary else None
        if not facts.rotary:
            compare.compare_fixed_table(weights.plain.get(POSITION_TABLE), theirs)
        inputs = compare.transformer_inputs(facts, settings)
        expected = compare.their_output(theirs, facts, settings, inputs)
    del theirs, pipeline
    gc.collect()
    state = {**plan.transformer_state, **weights.adapters} if plan.writes_lora else plan.transformer_state
    lora = weights.lora if plan.writes_lora else None
    ours = compare.our_transformer(state, facts, settings, plan.dtype, lora)
    if rotations is not None:
        compare.compare_rotations(ours, rotations)
    what = "output with the LoRA at weight 1.0" if plan.writes_lora else "output"
    compare.compare_outputs(f"transformer: {what}", ours(*inputs), expected)


@contextmanager
def _transformer_folder(plan: Plan) -> Iterator[Path]:
    """Where the converted transformer is; for a lone LoRA file, its base, converted for this occasion."""
    if plan.writes_transformer:
        yield plan.options.output / ("transformer" if plan.options.part == "pipeline" else "")
        return
    assert plan.weights is not None and plan.facts is not None, "a LoRA without a base"
    with tempfile.TemporaryDirectory(dir=plan.options.output.parent) as scratch:
        shapes = {name: (value.shape, value.dtype) for name, value in plan.weights.plain.items()}
        entries = folders.transformer_entries(shapes, plan.facts, plan.dtype)
        config = folders.transformer_config(plan.facts, plan.settings)
        folders.write_transformer(Path(scratch), plan.weights.plain, entries, config, plan.facts)
        yield Path(scratch)


def _open_pipeline(plan: Plan, transformer: nn.Module) -> Any:
    """The pipeline around an opened transformer: from its folder, or bare for a lone part."""
    assert plan.facts is not None, "a transformer without facts"
    output, name = plan.options.output, folders.pipeline_class(plan.facts)
    if plan.options.part != "pipeline":
        scheduler = _SCHEDULERS[plan.settings.scheduler]()
        return _PIPELINES[name](None, None, None, transformer, scheduler)
    large = sum(file.stat().st_size for file in (output / "text_encoder").iterdir()) > _LARGE
    without = {"text_encoder": None} if large else {}
    try:
        pipeline = _PIPELINES[name].from_pretrained(output, transformer=transformer, **without)
    except (OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"diffusers can't open {output}: {str(error).splitlines()[0]}") from error
    left_out = " (without its text encoder: too large to open here)" if large else ""
    print(f"  pipeline: {name} opens {output}{left_out}")
    return pipeline


def _compare_transformer_tensors(plan: Plan, theirs: nn.Module) -> None:
    assert plan.facts is not None, "a transformer without facts"
    state, found = plan.transformer_state, theirs.state_dict()
    expected = {step.sources[0] for step in transformer_map.to_diffusers(state, plan.facts.patch_size)}
    steps = transformer_map.to_sat(found, plan.facts.patch_size)
    compared = 0
    for name, value in transformer_map.convert_state(found, steps):
        if name not in expected:
            raise CheckpointError(f"the converted transformer holds {name}, which the checkpoint doesn't")
        compare.compare_bits(name, state[name], value, plan.dtype)
        compared += 1
    if compared != len(expected):
        raise CheckpointError(f"the converted transformer holds {compared} of {len(expected)} tensors")
    print(f"  transformer: {compared} tensors equal bit by bit")


def _verify_vae(plan: Plan) -> None:
    state = plan.vae
    assert state is not None, "a VAE without weights"
    folder = plan.options.output / ("vae" if plan.options.part == "pipeline" else "")
    theirs = compare.open_model(AutoencoderKLCogVideoX, folder, compare.widest(state, plan.dtype))
    levels = len(theirs.config.block_out_channels)
    back = {vae_map.diffusers_to_sat(name, levels): value for name, value in theirs.state_dict().items()}
    if back.keys() != state.keys():
        raise CheckpointError(f"the converted VAE lacks or adds tensors: {sorted(back.keys() ^ state.keys())[:3]}")
    for name, value in back.items():
        compare.compare_bits(name, state[name], value, plan.dtype)
    print(f"  VAE: {len(back)} tensors equal bit by bit")
    compare.compare_vae_outputs(back, theirs.float())


def _verify_scheduler(plan: Plan) -> None:
    settings = plan.settings
    theirs = _SCHEDULERS[settings.scheduler].from_pretrained(plan.options.output / "scheduler")
    ours = NoiseSchedule(
        num_timesteps=settings.num_timesteps,
        beta_start=settings.beta_start,
        beta_end=settings.beta_end,
        shift_scale=settings.shift_scale,
        zero_terminal_snr=settings.zero_terminal_snr,
    )
    difference = (theirs.alphas_cumprod.sqrt() - ours.sqrt_alpha_bar).abs().max().item()
    print(f"  scheduler: noise levels differ by at most {difference:.1e} (limit {compare.TABLE_LIMIT:.0e})")
    if not difference <= compare.TABLE_LIMIT:
        raise CheckpointError(f"the scheduler's noise levels differ by {difference:.1e} from those of training")
