"""LoRA adapters from and to any file: SAT checkpoints, diffusers / peft, kohya's naming, ComfyUI.

What a file is, its names say. Rank comes from the matrices; alpha from, in this order, what the file states (SAT: the
entry "cogvideox"; others: the header `lora_adapter_metadata`, `.alpha` tensors, `adapter_config.json` beside), the
caller, and the convention of the program that wrote it: SAT's LoRA has alpha 1, diffusers takes a file without alpha
at scale 1, which is alpha = rank.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from cogvideox.errors import CheckpointError
from cogvideox.user_files import parse_json, read_json, shown
from cogvideox.weights.base import SAT_ALPHA, LoraFacts, lora_facts
from cogvideox.weights.families import POSITION_TABLE, TRANSFORMER_PREFIX
from cogvideox.weights.key_rules import select_prefix
from cogvideox.weights.lora_map import (
    LAYOUTS,
    PAIR,
    TARGETS,
    AdapterName,
    LayoutName,
    adapter_header,
    check_alpha,
    check_pairs,
    common_rank,
    is_adapter,
    layout_name,
    parse_names,
    parse_sat,
)
from cogvideox.weights.peft_settings import check_settings
from cogvideox.weights.safetensors_stream import FLOATS, Entry, WrittenFile, is_finite, write_model
from cogvideox.weights.sat_folder import LATEST_FILE, find_states_file, read_checkpoint
from cogvideox.weights.transformer_map import RULES

DIFFUSERS_STEM = "pytorch_lora_weights"
_PEFT_STEM, _PEFT_CONFIG = "adapter_model", "adapter_config.json"
_SUFFIXES = (".safetensors", ".bin")  # the first that a folder has
BASE_HEADER = "cogvideox_base"  # our entry in a LoRA file's header: what the adapter was trained on
_FILES_IN_FOLDERS = tuple(f"{stem}{suffix}" for suffix in _SUFFIXES for stem in (DIFFUSERS_STEM, _PEFT_STEM))
_SETTINGS_HEADER = "lora_adapter_metadata"
_WEIGHTS = tuple({rule.sat.partition("{")[0] for rule in RULES if rule.sat != POSITION_TABLE})  # how SAT's names begin
_CLOSE = 1e-6  # relative; alpha tensors are often stored in 16 bits


@dataclass(frozen=True)
class Adapter:
    """One LoRA, whatever file it came from."""

    path: Path
    layout: str  # "SAT" or "peft" (every naming that isn't SAT's)
    matrices: dict[str, Tensor]  # relative SAT names, memory-mapped
    lora: LoraFacts
    alpha_from: str  # for the user: where alpha comes from
    is_alpha_known: bool  # stated or given, not the convention of the program that wrote the file
    base: Mapping[str, Any]  # what the file says of the model it was trained on: path, sha256, model; {} if nothing
    has_model: bool = False  # the file holds weights of the transformer as well, which may have been trained too

    @property
    def num_layers(self) -> int:
        """Layers up to the last one with an adapter."""
        return 1 + max(parse_sat(name).layer for name in self.matrices)

    @property
    def width(self) -> int:
        """Hidden size of the model that it belongs to."""
        return next(value.shape[1] for name, value in self.matrices.items() if ".matrix_A." in name)

    @property
    def summary(self) -> str:
        """E.g. `rank 128, alpha 1 (stated in the file), 30 layers of width 1920`."""
        lora = f"rank {self.lora.rank}, alpha {self.lora.alpha:g} ({self.alpha_from})"
        return f"{lora}, {self.num_layers} layers of width {self.width}"


def find_lora_file(path: str | Path, iteration: int | str | None = None) -> Path:
    """The file that a path means: itself, a diffusers or peft folder's, or a SAT folder's.

    Raises: CheckpointError when there is none, or several that could be meant.
    """
    path = Path(os.path.expanduser(path))
    if not os.path.isdir(path) or iteration is not None:
        return find_states_file(path, iteration)
    if os.path.isfile(path / LATEST_FILE) or any(path.glob("mp_rank_*")):
        return find_states_file(path)
    known = [path / name for name in _FILES_IN_FOLDERS if os.path.isfile(path / name)][:1]
    suffix = next((suffix for suffix in _SUFFIXES if any(path.glob(f"*{suffix}"))), _SUFFIXES[0])
    found = known or sorted(path.glob(f"*{suffix}"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:3]) + (", ..." if len(found) > 3 else "")
        raise CheckpointError(f"{path} holds {len(found)} {suffix} files ({names}): name the one that is meant")
    return found[0] if found else find_states_file(path)


def read_adapter(path: str | Path, iteration: int | str | None = None, alpha: float | None = None) -> Adapter:
    """Read the adapters of a SAT checkpoint or a LoRA file.

    alpha: for files that don't state it. Raises: CheckpointError when it is no LoRA, matrices are missing, broken or
    don't fit each other, modules differ in rank or scale, or alpha contradicts what the file states.
    """
    file = find_lora_file(path, iteration)
    checkpoint = read_checkpoint(file)
    relative = select_prefix(checkpoint.module, TRANSFORMER_PREFIX)
    if any(map(is_adapter, relative)):
        matrices = {name: value for name, value in relative.items() if is_adapter(name)}
        rank = _check_matrices(matrices, file)
        stated = lora_facts(checkpoint)
        known = stated.alpha if stated is not None and "alpha" in (checkpoint.extra.get("lora") or {}) else None
        default, reason, base = SAT_ALPHA, "SAT's default; the file doesn't say", checkpoint.extra.get("base") or {}
    elif any("lora" in name for name in relative):
        names = parse_names(relative, str(file))
        matrices = _peft_matrices(relative, names, file)
        rank = _check_matrices(matrices, file)
        header = _read_header(file)
        known = _peft_alpha(file, header, _alpha_beside_modules(file, relative, names), rank)
        default, reason = rank, "the rank, so that scale is 1: the file doesn't say"
        base = parse_json(header.get(BASE_HEADER, "{}"), f"{file}: what it records of its base", CheckpointError)
    else:
        raise CheckpointError(f"{file} holds no LoRA adapters; its first names: {', '.join(list(relative)[:2])}")
    if known is not None and alpha is not None and not _is_close(known, alpha):
        raise CheckpointError(f"{file} states alpha {known:g}, not {alpha:g}: leave --alpha out")
    chosen = known if known is not None else alpha
    return Adapter(
        path=file,
        layout="SAT" if matrices.keys() <= relative.keys() else "peft",
        matrices=matrices,
        lora=LoraFacts(rank, float(default if chosen is None else chosen)),
        alpha_from=reason if chosen is None else "stated in the file" if known is not None else "as given",
        is_alpha_known=chosen is not None,
        base=_check_base(base, file),
        has_model=any(name.startswith(_WEIGHTS) and not is_adapter(name) for name in relative),
    )


def _check_matrices(matrices: Mapping[str, Tensor], file: Path) -> int:
    """The rank of the pairs A [r, width] and B [width, r], of which every one has the same r and width."""
    rank = common_rank(matrices, str(file))
    try:
        pairs = check_pairs(matrices)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    assert rank is not None, "pairs have a rank"
    width = matrices[pairs[0].sat].shape[1]
    for name in pairs:
        a, b = (matrices[AdapterName(name.layer, name.target, kind).sat] for kind in PAIR)
        if a.shape != (rank, width) or b.shape != (width, rank):
            raise CheckpointError(
                f"{file}: {name.sat} {list(a.shape)} and its partner {list(b.shape)} are no pair "
                f"[rank, {width}], [{width}, rank]"
            )
    for stored, value in matrices.items():
        if value.dtype not in FLOATS:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
            raise CheckpointError(f"{file}: {stored} is stored as {value.dtype}; known are {known}")
        if not is_finite(value):
            raise CheckpointError(f"{file}: NaN or infinity in {stored}: training diverged; take an earlier one")
    return rank


def _peft_matrices(tensors: Mapping[str, Tensor], names: Mapping[str, AdapterName], file: Path) -> dict[str, Tensor]:
    """The matrices under SAT names."""
    stored: dict[str, str] = {}
    for name, meaning in names.items():
        if meaning.kind != "alpha" and stored.setdefault(meaning.sat, name) != name:
            raise CheckpointError(
                f"{file}: {stored[meaning.sat]} and {name} are the same matrix: it holds several LoRAs"
            )
    if not stored:
        raise CheckpointError(f"{file} holds no matrix of a LoRA, only {', '.join(list(names)[:2])}")
    return {sat: tensors[name] for sat, name in stored.items()}


def _alpha_beside_modules(file: Path, tensors: Mapping[str, Tensor], names: Mapping[str, AdapterName]) -> float | None:
    """The one value of all `.alpha` tensors, of which every module has one; None when there are none."""
    alphas = {name: tensors[name] for name, meaning in names.items() if meaning.kind == "alpha"}
    odd = next((name for name, value in alphas.items() if value.numel() != 1), None)
    if odd is not None:
        raise CheckpointError(f"{file}: {odd} has the shape {list(alphas[odd].shape)}; an alpha is one number")
    values = {check_alpha(value.item(), f"{file}: {name}") for name, value in alphas.items()}
    if len(values) > 1:
        raise CheckpointError(f"{file}: its modules have alphas {sorted(values)}; SAT's LoRA has one for all")
    modules = {(meaning.layer, meaning.target): name for name, meaning in names.items() if meaning.kind == "A"}
    lacking = modules.keys() - {(names[name].layer, names[name].target) for name in alphas}
    if alphas and lacking:
        raise CheckpointError(
            f"{file}: {len(lacking)} of its {len(modules)} modules have no .alpha tensor, the others have one (e.g. "
            f"{min(modules[each] for each in lacking)}): the strength of these is not known"
        )
    return next(iter(values), None)


def _peft_alpha(file: Path, header: Mapping[str, str], beside: float | None, rank: int) -> float | None:
    """What the settings and the `.alpha` tensors say together; None when neither says anything."""
    alpha = _stated_alpha(file, header, rank)
    if alpha is not None and beside is not None and not _is_close(alpha, beside):
        raise CheckpointError(
            f"{file}: its settings say alpha {alpha:g}, its .alpha tensors {beside:g}: one of them is wrong, "
            "and nothing says which: remove it"
        )
    return beside if alpha is None else alpha


def _stated_alpha(file: Path, header: Mapping[str, str], rank: int) -> float | None:
    """Alpha of the header, else of peft's own file beside, such that alpha / rank is the scale."""
    stated = list(_peft_settings(file, header))
    for settings in stated:
        check_settings(settings, str(file))
        if settings.get("r") not in (None, rank):
            raise CheckpointError(f"{file} states rank {shown(settings['r'])}, its matrices have rank {rank}")
    config = next((settings for settings in stated if settings.get("lora_alpha") is not None), None)
    if config is None:
        return None
    return check_alpha(config["lora_alpha"], str(file)) * (rank**0.5 if config.get("use_rslora") else 1.0)


def _peft_settings(file: Path, header: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """What diffusers' header says, then peft's own file beside; each only where it is there."""
    stated, beside = header.get(_SETTINGS_HEADER), file.parent / _PEFT_CONFIG
    if stated:
        prefixed = parse_json(stated, f"{file}: its LoRA settings", CheckpointError)
        yield {key.removeprefix("transformer."): value for key, value in prefixed.items()}
    is_own = file.stem == _PEFT_STEM or not any(file.parent.glob(f"{_PEFT_STEM}.*"))  # else it is the other file's
    if is_own and beside.exists():
        yield read_json(beside, CheckpointError)


def _read_header(file: Path) -> dict[str, str]:
    if file.suffix != ".safetensors":
        return {}
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata() or {})


def _check_base(base: object, file: Path) -> Mapping[str, Any]:
    """What the file records of the model it was trained on, if that has the form in which we write it."""
    kinds = {"path": str, "sha256": str, "model": dict}
    if not isinstance(base, dict):
        raise CheckpointError(f"{file}: what it records of its base is a {type(base).__name__}, a dict is expected")
    for key, kind in kinds.items():
        if base.get(key) is not None and not isinstance(base[key], kind):
            found = type(base[key]).__name__
            raise CheckpointError(f"{file}: {key!r} of its base is a {found}, a {kind.__name__} is expected")
    return base


def _is_close(first: float, second: float) -> bool:
    return abs(first - second) <= _CLOSE * max(1.0, abs(first))


def complete(matrices: Mapping[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Every target of every layer: pairs that a LoRA on fewer modules or layers lacks are zeros, without effect."""
    like = next(iter(matrices.values()))
    shapes = {kind: next(v.shape for name, v in matrices.items() if f".matrix_{kind}." in name) for kind in PAIR}
    names = [AdapterName(layer, target, kind) for layer in range(num_layers) for target in TARGETS for kind in PAIR]
    return {
        name.sat: matrices[name.sat] if name.sat in matrices else torch.zeros(shapes[name.kind], dtype=like.dtype)
        for name in names
    }


def write_lora(
    folder: Path,
    matrices: Mapping[str, Tensor],
    lora: LoraFacts,
    layout: LayoutName,
    *,
    stem: str = DIFFUSERS_STEM,
    dtype: torch.dtype | None = None,
    base: Mapping[str, Any] | None = None,
) -> list[WrittenFile]:
    """Write adapters (relative SAT names) as a LoRA file that applies them at their trained scale at strength 1.

    base: what to record of the model that they belong to (its "path" stays out: the file travels).
    Raises: CheckpointError for an unknown name, a value beyond the dtype, or a full disk.
    """
    tensors: dict[str, Tensor] = {}
    entries: list[Entry] = []
    for name, value in matrices.items():
        meaning = parse_sat(name)
        tensors[layout_name(meaning, layout)] = value
        entries.append(Entry(layout_name(meaning, layout), tuple(value.shape), dtype or value.dtype))
        if meaning.kind == "A" and "alpha" in LAYOUTS[layout].suffixes:
            alpha = layout_name(AdapterName(meaning.layer, meaning.target, "alpha"), layout)
            tensors[alpha] = torch.tensor(lora.alpha)
            entries.append(Entry(alpha, (), torch.float32))
    header = adapter_header(lora.rank, lora.alpha) if layout == "diffusers" else {"format": "pt"}
    known = {key: value for key, value in (base or {}).items() if key != "path"}
    if known:
        header[BASE_HEADER] = json.dumps(known, sort_keys=True)
    return write_model(folder, stem, entries, tensors.items(), header=header)
