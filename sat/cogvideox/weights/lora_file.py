"""LoRA adapters from and to any file: SAT checkpoints, diffusers / peft, kohya's naming, ComfyUI.

What a file is, its names say. Rank comes from the matrices; alpha from, in this order, what the file states (SAT: the
entry "cogvideox"; others: the header `lora_adapter_metadata`, `.alpha` tensors, `adapter_config.json` beside), the
caller, and the convention of the program that wrote it: SAT's LoRA has alpha 1, diffusers takes a file without alpha
at scale 1, which is alpha = rank.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from cogvideox.errors import CheckpointError
from cogvideox.weights.base import SAT_ALPHA, LoraFacts, is_complete, lora_facts
from cogvideox.weights.families import TRANSFORMER_PREFIX
from cogvideox.weights.key_rules import select_prefix
from cogvideox.weights.lora_map import (
    LAYOUTS,
    PAIR,
    TARGETS,
    AdapterName,
    LayoutName,
    adapter_header,
    check_pairs,
    is_adapter,
    layout_name,
    parse_names,
    parse_sat,
    plain_name,
)
from cogvideox.weights.safetensors_stream import Entry, WrittenFile, write_model
from cogvideox.weights.sat_folder import find_states_file, read_checkpoint

DIFFUSERS_STEM = "pytorch_lora_weights"
BASE_HEADER = "cogvideox_base"  # our entry in a LoRA file's header: what the adapter was trained on
_FILES_IN_FOLDERS = (f"{DIFFUSERS_STEM}.safetensors", "adapter_model.safetensors")
_PEFT_CONFIG = "adapter_config.json"
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
    has_model: bool = False  # the file holds a whole transformer as well, whose weights may have been trained too

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

    Raises: CheckpointError when there is none.
    """
    path = Path(path).expanduser()
    inside = [path / name for name in _FILES_IN_FOLDERS if (path / name).is_file()]
    alone = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    found = inside or (alone if len(alone) == 1 else [])
    return found[0] if found and iteration is None else find_states_file(path, iteration)


def read_adapter(path: str | Path, iteration: int | str | None = None, alpha: float | None = None) -> Adapter:
    """Read the adapters of a SAT checkpoint or a LoRA file.

    alpha: for files that don't state it. Raises: CheckpointError when it is no LoRA, matrices are missing or don't fit
    each other, modules differ in rank or scale, or alpha contradicts what the file states.
    """
    file = find_lora_file(path, iteration)
    checkpoint = read_checkpoint(file)
    relative = select_prefix(checkpoint.module, TRANSFORMER_PREFIX)
    if any(map(is_adapter, relative)):
        matrices = {name: value for name, value in relative.items() if is_adapter(name)}
        facts = lora_facts(checkpoint)
        assert facts is not None, "adapters have a rank"
        known = facts.alpha if "alpha" in (checkpoint.extra.get("lora") or {}) else None
        default, reason, base = SAT_ALPHA, "SAT's default; the file doesn't say", checkpoint.extra.get("base") or {}
    elif any("lora" in name for name in relative):
        matrices, known, base = _read_peft(file, relative)
        default, reason = _common_rank(matrices, file), "the rank, so that scale is 1: the file doesn't say"
    else:
        raise CheckpointError(f"{file} holds no LoRA adapters; its first names: {', '.join(list(relative)[:2])}")
    _check_shapes(matrices, file)
    if known is not None and alpha is not None and not _is_close(known, alpha):
        raise CheckpointError(f"{file} states alpha {known:g}, not {alpha:g}: leave --alpha out")
    stated = known if known is not None else alpha
    return Adapter(
        path=file,
        layout="SAT" if matrices.keys() <= relative.keys() else "peft",
        matrices=matrices,
        lora=LoraFacts(_common_rank(matrices, file), default if stated is None else float(stated)),
        alpha_from=reason if stated is None else "stated in the file" if known is not None else "as given",
        is_alpha_known=stated is not None,
        base=base,
        has_model=is_complete({plain_name(name) for name in relative if not is_adapter(name)}),
    )


def _read_peft(file: Path, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float | None, dict[str, Any]]:
    """(matrices under SAT names, alpha if stated, recorded base)."""
    names = parse_names(tensors, str(file))
    stored: dict[str, str] = {}
    for name, meaning in names.items():
        if meaning.kind != "alpha" and stored.setdefault(meaning.sat, name) != name:
            raise CheckpointError(
                f"{file}: {stored[meaning.sat]} and {name} are the same matrix: it holds several LoRAs"
            )
    matrices = {sat: tensors[name] for sat, name in stored.items()}
    check_pairs(matrices)
    header = _read_header(file)
    alphas = {float(tensors[name]) for name, meaning in names.items() if meaning.kind == "alpha"}
    if len(alphas) > 1:
        raise CheckpointError(f"{file}: its modules have alphas {sorted(alphas)}; SAT's LoRA has one for all")
    alpha = _stated_alpha(file, header, _common_rank(matrices, file))
    beside = next(iter(alphas), None)
    if alpha is not None and beside is not None and not _is_close(alpha, beside):
        raise CheckpointError(
            f"{file}: its settings say alpha {alpha:g}, its .alpha tensors {beside:g}: one of them is wrong, "
            "and nothing says which: remove it"
        )
    base = _read_json(header.get(BASE_HEADER, "{}"), file)
    return matrices, beside if alpha is None else alpha, base


def _stated_alpha(file: Path, header: Mapping[str, str], rank: int) -> float | None:
    """Alpha of the header or of peft's own file beside, such that alpha / rank is the scale."""
    beside = file.parent / _PEFT_CONFIG
    text = header.get("lora_adapter_metadata") or (beside.read_text(encoding="utf-8") if beside.is_file() else "{}")
    config = {key.removeprefix("transformer."): value for key, value in _read_json(text, file).items()}
    patterns = [key for key in ("rank_pattern", "alpha_pattern") if config.get(key)]
    if patterns:
        raise CheckpointError(f"{file}: its modules differ ({patterns[0]}); SAT's LoRA has one rank and alpha for all")
    if config.get("use_dora"):
        raise CheckpointError(f"{file} is a DoRA, which SAT has no place for: merge it into its model instead")
    if config.get("r", rank) != rank:
        raise CheckpointError(f"{file} states rank {config['r']}, its matrices have rank {rank}")
    if config.get("lora_alpha") is None:
        return None
    return float(config["lora_alpha"]) * (rank**0.5 if config.get("use_rslora") else 1.0)


def _read_json(text: str, file: Path) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        content = None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: its LoRA settings are no JSON object: {text[:40]!r}")
    return content


def _read_header(file: Path) -> dict[str, str]:
    if file.suffix != ".safetensors":
        return {}
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata() or {})


def _common_rank(matrices: Mapping[str, Tensor], file: Path) -> int:
    ranks = Counter(value.shape[0] for name, value in matrices.items() if ".matrix_A." in name)
    if len(ranks) > 1:
        raise CheckpointError(f"{file}: its matrices have ranks {sorted(ranks)}; SAT's LoRA has one rank for all")
    return next(iter(ranks))


def _check_shapes(matrices: Mapping[str, Tensor], file: Path) -> None:
    """Every pair is A [r, width] and B [width, r], and width is the same everywhere."""
    pairs = check_pairs(matrices)
    width = matrices[pairs[0].sat].shape[-1]
    for name in pairs:
        a, b = (matrices[AdapterName(name.layer, name.target, kind).sat] for kind in PAIR)
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != width or b.shape != (width, a.shape[0]):
            raise CheckpointError(
                f"{file}: {name.sat} {list(a.shape)} and its partner {list(b.shape)} are no pair "
                f"[rank, {width}], [{width}, rank]"
            )


def _is_close(first: float, second: float) -> bool:
    return abs(first - second) <= _CLOSE * max(1.0, abs(first))


def complete(matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every target of every layer: pairs that a LoRA on fewer modules lacks are zeros, which have no effect."""
    like = next(iter(matrices.values()))
    shapes = {kind: next(v.shape for name, v in matrices.items() if f".matrix_{kind}." in name) for kind in PAIR}
    layers = range(1 + max(parse_sat(name).layer for name in matrices))
    names = [AdapterName(layer, target, kind) for layer in layers for target in TARGETS for kind in PAIR]
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
