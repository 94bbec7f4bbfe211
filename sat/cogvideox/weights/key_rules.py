"""Loading stored tensors into a module, with a verdict on every name instead of a silent non-strict load.

A name that the model has and the checkpoint lacks is a new adapter, or it is missing: an error. A name that
the checkpoint has and the model lacks belongs elsewhere (another part of an old whole-engine checkpoint, a
table that is computed), or it is unexpected: an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cogvideox.errors import CheckpointError
from cogvideox.log import get_logger
from cogvideox.weights.families import (
    POSITION_TABLE,
    ROTARY_SIGNS,
    TRANSFORMER_PREFIX,
    TransformerFacts,
    has_learned_table,
    read_facts,
)
from cogvideox.weights.lora_map import is_adapter, plain_name
from cogvideox.weights.safetensors_stream import FLOATS, finite_flag, is_finite

_log = get_logger(__name__)

_ELSEWHERE_PREFIXES = (
    "conditioner.",  # the text encoder
    "first_stage_model.",  # the VAE
    "loss.",
    "loss_fn.",
    "denoiser.",
    "sampler.",
    "model_ema.",
)
# Tables that are computed, and embeddings that SAT creates but this architecture never reads: nobody misses them.
_UNUSED = (*ROTARY_SIGNS, "transformer.word_embeddings.weight")
_PATCH = "mixins.patch_embed.proj.weight"
_SHOWN = 4


@dataclass(frozen=True)
class KeyReport:
    """The verdict on every name; names are relative to the prefix except in `belongs_elsewhere`."""

    loaded: tuple[str, ...]
    new_adapter: tuple[str, ...]  # LoRA matrices that the checkpoint doesn't have: they keep their initial values
    belongs_elsewhere: tuple[str, ...]  # in the checkpoint, of no concern to this module
    missing: tuple[str, ...]  # only with partial=True; otherwise an error
    recomputed: tuple[str, ...] = ()  # fixed tables stored for another size: the model keeps its own


def load_module(
    module: nn.Module,
    state: Mapping[str, Tensor],
    prefix: str = TRANSFORMER_PREFIX,
    what: str = "transformer",
    *,
    source: str = "the checkpoint",
    partial: bool = False,
) -> KeyReport:
    """Copy stored tensors into the parameters and buffers of `module`, casting to their dtype and device.

    A plain checkpoint loads into a model with LoRA (`x.weight` goes to `x.original.weight`).

    Args:
        state: stored names and tensors, typically memory-mapped: each is read once and never held.
        prefix: what stored names of this module start with; names without it are taken as they are if none has it.
        what: the module's name in messages; "transformer" also compares model families.
        source: where `state` comes from, for messages.
        partial: `state` completes weights that are loaded already (adapters, a partly trained model):
            what it doesn't have stays as it is and is reported as missing. Adapters must still be complete.

    Raises: CheckpointError when names are missing or unexpected, or shapes differ. Nothing is copied then.
    """
    match, loaded = _compare(module, state, prefix, what, source, partial=partial)
    with torch.no_grad():
        for name, key in loaded.items():
            target = match.targets[name]
            assert not target.is_meta, f"{name} is on the meta device: materialise the module first"
            target.copy_(match.stored[key].reshape(target.shape))
    check_finite_loaded({key: (match.stored[key], match.targets[name]) for name, key in loaded.items()}, what, source)
    report = KeyReport(
        loaded=tuple(loaded),
        new_adapter=tuple(match.new_adapter),
        belongs_elsewhere=tuple(match.elsewhere),
        missing=tuple(match.missing),
        recomputed=tuple(match.recomputed),
    )
    _log_report(report, what, source)
    return report


def check_module(
    module: nn.Module, state: Mapping[str, Tensor], prefix: str = TRANSFORMER_PREFIX, *, source: str = "the checkpoint"
) -> None:
    """Raise what `load_module` would say of a transformer's names, shapes and types. The module may be on the meta
    device, and no tensor is read."""
    _compare(module, state, prefix, "transformer", source, partial=False)


def _compare(
    module: nn.Module, state: Mapping[str, Tensor], prefix: str, what: str, source: str, *, partial: bool
) -> tuple[_Match, dict[str, str]]:
    """The match, and what is to be loaded: model name -> stored name. Raises: CheckpointError, see load_module."""
    match = _match(dict(module.state_dict(keep_vars=True)), state, prefix, is_transformer=what == "transformer")
    adapters_missing = [name for name in match.missing if is_adapter(name)]
    fatal = adapters_missing if partial else match.missing
    if fatal or match.unexpected or match.wrong_shape:
        if what == "transformer":
            _compare_ranks(match, source)
            if not partial:
                _explain_transformer(match, select_prefix(state, prefix), source)
        raise CheckpointError(_misfit_message(match, fatal, what, source))
    loaded = {name: match.pairs[name] for name in match.pairs if name not in match.recomputed}
    check_types({loaded[name]: (match.stored[loaded[name]], match.targets[name]) for name in loaded}, what, source)
    return match, loaded


Pairs = Mapping[str, tuple[Tensor, Tensor]]  # stored name -> (what is stored, where it goes)


def check_types(pairs: Pairs, what: str, source: str) -> None:
    """Raises: CheckpointError for numbers of another kind than the model's: casting would give other weights.

    Integers, complex numbers, and floats of 8 bits and less, which need scales that such a file keeps elsewhere.
    """
    odd = {name: stored for name, (stored, target) in pairs.items() if not _is_castable(stored, target)}
    if odd:
        kinds = sorted({str(value.dtype).removeprefix("torch.") for value in odd.values()})
        raise CheckpointError(
            f"{source} stores {len(odd)} tensors of the {what} as {', '.join(kinds)}: {shorten(odd)}. That is a "
            "quantised file, or no weights; valid are float32, float16, bfloat16 and float64: take one with these"
        )


def _is_castable(stored: Tensor, target: Tensor) -> bool:
    return stored.dtype == target.dtype or (stored.dtype in FLOATS and target.dtype in FLOATS)


def check_finite_loaded(pairs: Pairs, what: str, source: str) -> None:
    """Look for NaN and infinity where the weights were copied to, which on a GPU takes no time.

    Raises: CheckpointError that names them, and says whether the file or the model's dtype is the reason.
    """
    flags = {name: finite_flag(target) for name, (_, target) in pairs.items()}
    if not flags or bool(torch.stack(list(flags.values())).all()):
        return
    broken = [name for name, flag in flags.items() if not flag]
    stored = [name for name in broken if not is_finite(pairs[name][0])]
    if stored:
        raise CheckpointError(
            f"{source} holds NaN or infinity in {len(stored)} tensors of the {what}: {shorten(stored)}. Training "
            "diverged, or the file is damaged: take an earlier checkpoint, or copy it again"
        )
    dtype = str(pairs[broken[0]][1].dtype).removeprefix("torch.")
    raise CheckpointError(
        f"{source} holds numbers beyond the range of {dtype} in {len(broken)} tensors of the {what}: "
        f"{shorten(broken)}. Compute in bf16 or fp32"
    )


def select_prefix(state: Mapping[str, Tensor], prefix: str = TRANSFORMER_PREFIX) -> dict[str, Tensor]:
    """The tensors below `prefix` under relative names; all of them when no name has it."""
    if prefix and any(name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return dict(state)


@dataclass(frozen=True)
class _Match:
    """Model and checkpoint held against each other. Lists hold model names, but for the two marked stored."""

    targets: dict[str, Tensor]  # what the model has
    stored: dict[str, Tensor]  # what the checkpoint has for it, relative names
    pairs: dict[str, str]  # model name -> stored name
    missing: list[str]
    new_adapter: list[str]
    wrong_shape: list[str]
    recomputed: list[str]
    unexpected: list[str]  # stored, relative
    elsewhere: list[str]  # stored, full


def _match(targets: dict[str, Tensor], state: Mapping[str, Tensor], prefix: str, *, is_transformer: bool) -> _Match:
    stored, elsewhere = _split(state, targets, prefix)
    pairs = {name: key for name in targets if (key := _stored_name(name, stored)) is not None}
    absent = [name for name in targets if name not in pairs and not (is_transformer and name in _UNUSED)]
    has_adapters = any(map(is_adapter, stored))
    recomputed = [POSITION_TABLE] if is_transformer and _is_other_fixed_table(state, prefix, pairs, targets) else []
    return _Match(
        targets=targets,
        stored=stored,
        pairs=pairs,
        missing=[name for name in absent if has_adapters or not is_adapter(name)],
        new_adapter=[name for name in absent if not has_adapters and is_adapter(name)],
        wrong_shape=[
            name
            for name, key in pairs.items()
            if name not in recomputed and not _fits(name, stored[key], targets[name])
        ],
        recomputed=recomputed,
        unexpected=sorted(set(stored) - set(pairs.values())),
        elsewhere=elsewhere,
    )


def _split(
    state: Mapping[str, Tensor], targets: Mapping[str, Tensor], prefix: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Separate what concerns the module (relative names) from what belongs elsewhere (full names)."""
    stored: dict[str, Tensor] = {}
    elsewhere = []
    for name, value in state.items():
        is_ours = bool(prefix) and name.startswith(prefix)
        relative = name.removeprefix(prefix)
        is_foreign = relative in _UNUSED or (not is_ours and name.startswith(_ELSEWHERE_PREFIXES))
        if is_foreign and relative not in targets:
            elsewhere.append(name)
        else:
            stored[relative] = value
    return stored, elsewhere


def _stored_name(name: str, stored: Mapping[str, Tensor]) -> str | None:
    """The stored name that feeds the model's `name`: the same, or the plain one below a LoRA wrapper."""
    if name in stored:
        return name
    plain = plain_name(name)
    return plain if plain != name and plain in stored else None


def _fits(name: str, stored: Tensor, target: Tensor) -> bool:
    """Whether the shapes agree; a Conv2d patch weight [d, c, ph, pw] serves as a Linear [d, c*ph*pw]."""
    is_flattened = name == _PATCH and stored.numel() == target.numel() and stored.ndim != target.ndim
    return stored.shape == target.shape or is_flattened


def _is_other_fixed_table(
    state: Mapping[str, Tensor], prefix: str, pairs: Mapping[str, str], targets: Mapping[str, Tensor]
) -> bool:
    """Whether the sin/cos table is stored for another clip size than the configured one.

    It is a pure function of the configuration, so the model's own is right. The learned table of rotary models is not,
    also where the checkpoint lacks what only rotary models store.
    """
    relative = select_prefix(state, prefix)
    if POSITION_TABLE not in pairs or has_learned_table(relative) or has_learned_table(targets):
        return False
    ours, theirs = targets[POSITION_TABLE].shape, relative[POSITION_TABLE].shape
    return len(theirs) == 3 and ours[1] != theirs[1] and ours[2] == theirs[2]


def _explain_transformer(match: _Match, relative: Mapping[str, Tensor], source: str) -> None:
    """Raise the most helpful CheckpointError for a transformer that doesn't fit; return if there is none."""
    has_adapters = any(map(is_adapter, match.targets))
    if relative and all(map(is_adapter, relative)):
        advice = "load the base model first" if has_adapters else "add lora_config, and load the base model first"
        raise CheckpointError(f"{source} holds LoRA adapters only: {advice}")
    theirs, ours = read_facts(_plain_shapes(relative), source), read_facts(_plain_shapes(match.targets))
    if _architecture(theirs) != _architecture(ours):
        raise CheckpointError(
            f"{source} holds {theirs.summary}, but the configuration describes {ours.summary}: "
            f"use {theirs.suitable_yaml}"
        )
    if match.wrong_shape == [POSITION_TABLE]:
        raise CheckpointError(
            f"{source} has a learned position table of {theirs.table_length} tokens, the configuration describes "
            f"{ours.table_length}: set num_frames, latent_height, latent_width and text_length as it was trained"
        )
    if theirs.lora_rank is not None and not has_adapters:
        raise CheckpointError(
            f"{source} holds LoRA adapters of rank {theirs.lora_rank}, but the model has none: add "
            "lora_config to the network's modules (as in configs/cogvideox_2b_lora.yaml), or merge them first"
        )


def _plain_shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {plain_name(name): value.shape for name, value in tensors.items()}


def _compare_ranks(match: _Match, source: str) -> None:
    for name in match.wrong_shape:
        if ".matrix_A." in name:
            theirs, ours = match.stored[name].shape[0], match.targets[name].shape[0]
            raise CheckpointError(
                f"{source} holds LoRA adapters of rank {theirs}, the configuration asks for rank {ours}: "
                f"set lora_config.params.r to {theirs}"
            )


def _architecture(facts: TransformerFacts) -> tuple[object, ...]:
    sizes = (facts.hidden_size, facts.num_layers, facts.in_channels, facts.text_width)
    return (*sizes, facts.patch_size, *facts.architecture)


def _misfit_message(match: _Match, missing: list[str], what: str, source: str) -> str:
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing: {shorten(missing)}")
    if match.unexpected:
        parts.append(f"{len(match.unexpected)} that the model doesn't have: {shorten(match.unexpected)}")
    if match.wrong_shape:
        shapes = [
            f"{name} {list(match.stored[match.pairs[name]].shape)} for {list(match.targets[name].shape)}"
            for name in match.wrong_shape
        ]
        parts.append(f"{len(shapes)} of another shape: {shorten(shapes)}")
    return f"{source} doesn't fit the {what}: " + "; ".join(parts)


def shorten(names: Iterable[str]) -> str:
    """The first names, and how many more there are, for messages."""
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _log_report(report: KeyReport, what: str, source: str) -> None:
    _log.debug("%s: loaded %d tensors from %s", what, len(report.loaded), source)
    if report.belongs_elsewhere:
        heads = sorted({name.split(".")[0] for name in report.belongs_elsewhere})
        _log.info("%s: %d tensors belong elsewhere (%s)", what, len(report.belongs_elsewhere), ", ".join(heads))
    for name in report.recomputed:
        _log.info("%s: %s is stored for another clip size; the configured one is used", what, name)
