"""Reading the SAT files that were written, and comparing them with diffusers on the source."""

from __future__ import annotations

import gc

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from diffusers.utils import logging as diffusers_logging

from cogvideox.conversion import compare
from cogvideox.conversion.diffusers_import.convert import TRANSFORMER
from cogvideox.conversion.diffusers_import.plan import Plan, TransformerPart, VaePart
from cogvideox.errors import CheckpointError
from cogvideox.weights import transformer_map
from cogvideox.weights.families import POSITION_TABLE, TRANSFORMER_PREFIX
from cogvideox.weights.key_rules import select_prefix
from cogvideox.weights.sat_folder import read_checkpoint, read_vae


def verify(plan: Plan) -> None:
    """Print the figures of every comparison. Raises: CheckpointError for the first that fails."""
    print("verifying with diffusers")
    diffusers_logging.disable_progress_bar()
    torch.manual_seed(0)
    with torch.no_grad():
        if plan.transformer is not None:
            _verify_transformer(plan, plan.transformer)
        if plan.vae is not None:
            _verify_vae(plan, plan.vae)


def _verify_transformer(plan: Plan, part: TransformerPart) -> None:
    facts, settings = part.facts, plan.settings
    state = select_prefix(read_checkpoint(plan.options.output / TRANSFORMER).module, TRANSFORMER_PREFIX)
    steps = transformer_map.to_diffusers(state, facts.patch_size)
    compared = set()
    for name, value in transformer_map.convert_state(state, steps):
        compare.compare_bits(name, part.model.tensors[name], value, plan.options.dtype)
        compared.add(name)
    if compared != part.model.tensors.keys():
        raise CheckpointError(f"the SAT file lacks {sorted(part.model.tensors.keys() - compared)[:3]}")
    print(f"  transformer: {len(compared)} tensors equal bit by bit")
    dtype = plan.options.dtype or compare.widest(part.model.tensors, None)
    theirs = compare.open_model(CogVideoXTransformer3DModel, part.model.path, dtype).float()
    rotations = None
    if facts.rotary:
        kind = CogVideoXImageToVideoPipeline if facts.in_channels > facts.out_channels else CogVideoXPipeline
        pipeline = kind(None, None, None, theirs, CogVideoXDDIMScheduler())
        rotations = compare.their_rotations(pipeline, settings, facts)
        del pipeline
    else:
        compare.compare_fixed_table(state[POSITION_TABLE], theirs)
    inputs = compare.transformer_inputs(facts, settings)
    expected = compare.their_output(theirs, facts, settings, inputs)
    del theirs
    gc.collect()
    ours = compare.our_transformer(state, facts, settings)
    if rotations is not None:
        compare.compare_rotations(ours, rotations)
    compare.compare_outputs("transformer: output", ours(*inputs), expected)


def _verify_vae(plan: Plan, part: VaePart) -> None:
    state = read_vae(plan.options.output / "vae")
    if state.keys() != set(part.names.values()):
        raise CheckpointError(f"the VAE lacks or adds tensors: {sorted(state.keys() ^ set(part.names.values()))[:3]}")
    for old, new in part.names.items():
        compare.compare_bits(new, part.model.tensors[old], state[new], plan.options.dtype)
    print(f"  VAE: {len(state)} tensors equal bit by bit")
    dtype = plan.options.dtype or compare.widest(part.model.tensors, None)
    theirs = compare.open_model(AutoencoderKLCogVideoX, part.model.path, dtype)
    compare.compare_vae_outputs(state, theirs.float())
