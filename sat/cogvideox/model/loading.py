"""Weights into a model: whole checkpoints, and those that hold only what was trained and name their base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cogvideox.errors import CheckpointError
from cogvideox.log import amount, get_logger
from cogvideox.model.video_diffusion import VideoDiffusion
from cogvideox.released import FAMILIES
from cogvideox.transformer.lora import LoraLinear
from cogvideox.weights.base import LoraFacts, find_base, lora_facts, with_bases
from cogvideox.weights.families import TRANSFORMER_PREFIX
from cogvideox.weights.key_rules import KeyReport, check_module, load_module, select_prefix
from cogvideox.weights.lora_map import is_adapter, parse_sat, plain_name
from cogvideox.weights.sat_folder import SatCheckpoint, fingerprint, read_checkpoint

logger = get_logger(__name__)


def load_transformer(
    model: VideoDiffusion,
    load_path: str | Path,
    iteration: int | str | None = None,
    *,
    bases: Sequence[str | Path] = (),
) -> KeyReport:
    """Load a checkpoint's transformer weights, and first those of the base that it names.

    load_path: a folder with `latest`, an iteration folder, or a file. bases: where to look for a base that was moved.
    Raises: CheckpointError when something is missing, belongs to another model, or the base is not the one that the
    checkpoint was trained on.
    """
    report = _load(model, read_checkpoint(load_path, iteration), bases)
    if report.new_adapter:  # the last file had none, and no other was to bring some
        logger.info("%d new LoRA matrices, which change nothing until they are trained", len(report.new_adapter))
    return report


def check_transformer(model: VideoDiffusion, load_path: str | Path, iteration: int | str | None = None) -> None:
    """Raise what `load_transformer` would say of the checkpoint's own names, shapes and types. The transformer needs no
    memory yet; a base that the checkpoint names is not looked at. Raises: CheckpointError."""
    checkpoint = read_checkpoint(load_path, iteration)
    lora = _check_adapters(model, checkpoint)
    if _needs_base(model, checkpoint):
        return  # for a model of another family the error about the base is clearer
    if lora is not None and checkpoint.extra.get("lora"):
        _check_alpha(model, lora, checkpoint.path)
    check_module(model.transformer, checkpoint.module, TRANSFORMER_PREFIX, source=str(checkpoint.path))


def read_lora(load_path: str | Path, iteration: int | str | None = None) -> LoraFacts | None:
    """The adapters that a checkpoint holds; None for a plain one. Files that don't say have alpha 1, as SAT
    does."""
    return lora_facts(read_checkpoint(load_path, iteration))


def base_reference(
    load_path: str | Path, iteration: int | str | None = None, *, bases: Sequence[str | Path] = ()
) -> dict[str, str]:
    """What a checkpoint trained from `load_path` has to name as its base: {"path", "sha256"}.

    A checkpoint that itself names a base and holds only adapters passes that on, because the adapters are
    saved anew. bases: where to look for a base that was moved; the new place is named then.
    """
    checkpoint = read_checkpoint(load_path, iteration)
    base = checkpoint.extra.get("base")
    if base is not None and all(map(is_adapter, select_prefix(checkpoint.module, TRANSFORMER_PREFIX))):
        return {**base, "path": str(find_base(checkpoint, bases).resolve())}
    return {"path": str(checkpoint.path.resolve()), "sha256": fingerprint(checkpoint.path)}


def _load(model: VideoDiffusion, checkpoint: SatCheckpoint, bases: Sequence[str | Path]) -> KeyReport:
    """From the lowest base up. Adapters that have no place are known before anything is loaded."""
    files: list[tuple[SatCheckpoint, LoraFacts | None]] = []
    above: list[Path] = []  # the files that led to the one that is looked at
    try:
        for each in with_bases(checkpoint, lambda found: _needs_base(model, found), bases):
            if files:
                above.append(files[-1][0].path)
                logger.info("%s was trained on %s, which comes first", above[-1], each.path)
            files.append((each, _check_adapters(model, each)))
        report = _load_file(model, *files.pop(), partial=False)
        while files:
            above.pop()
            report = _load_file(model, *files.pop(), partial=True)
    except CheckpointError as error:
        if not above:
            raise
        text = str(error)
        for path in reversed(above):
            text = f"the base of {path} can't be loaded: {text}"
        raise CheckpointError(text) from error
    return report


def _load_file(model: VideoDiffusion, checkpoint: SatCheckpoint, lora: LoraFacts | None, *, partial: bool) -> KeyReport:
    if lora is not None and checkpoint.extra.get("lora"):
        _check_alpha(model, lora, checkpoint.path)  # after the base: for another family its error is clearer
    what = "adapters" if all(map(is_adapter, select_prefix(checkpoint.module, TRANSFORMER_PREFIX))) else "transformer"
    logger.info("loading the %s from %s (%s)", what, checkpoint.path, amount(checkpoint.path.stat().st_size))
    return load_module(
        model.transformer, checkpoint.module, TRANSFORMER_PREFIX, source=str(checkpoint.path), partial=partial
    )


def _needs_base(model: VideoDiffusion, checkpoint: SatCheckpoint) -> bool:
    """Whether the checkpoint names a base, and lacks weights of the model that are no adapters."""
    if checkpoint.extra.get("base") is None:
        return False
    # Not base.is_complete, which has only the checkpoint's names: none of these tells that the model wants a position
    # table, or the embeddings of a family (ofs_embed) of which nothing is stored. Here the model says so.
    stored = {plain_name(name) for name in select_prefix(checkpoint.module, TRANSFORMER_PREFIX)}
    needed = (name for name in model.transformer.state_dict() if not is_adapter(name))
    return not all(plain_name(name) in stored for name in needed)


def _check_adapters(model: VideoDiffusion, checkpoint: SatCheckpoint) -> LoraFacts | None:
    """The adapters' facts. Raises: CheckpointError when they have no place, or belong to a model of another size."""
    facts = lora_facts(checkpoint)
    if facts is None:
        return None
    if _adapted_layer(model) is None:
        raise CheckpointError(
            f"{checkpoint.path} holds LoRA adapters of rank {facts.rank}, but the model has none: add lora_config to "
            "the network's modules (as in configs/cogvideox_2b_lora.yaml), or merge them first"
        )
    relative = select_prefix(checkpoint.module, TRANSFORMER_PREFIX)
    names = [name for name in relative if is_adapter(name)]
    width = next(relative[name].shape[1] for name in names if ".matrix_A." in name)
    layers = 1 + max(parse_sat(name).layer for name in names)
    network: Any = model.transformer.network
    if width != network.hidden_size or layers > network.num_layers:
        owners = [each for each in FAMILIES if (each.hidden_size, each.num_layers) == (width, layers)]
        fits = f"it is for {' or '.join(each.name for each in owners)}: use " if owners else "use the YAML of its model"
        yamls = " or ".join(each.lora_yaml for each in owners)
        raise CheckpointError(
            f"{checkpoint.path} holds a LoRA for {layers} layers of width {width}, but the configuration describes "
            f"{network.num_layers} of width {network.hidden_size}; {fits}{yamls}"
        )
    return facts


def _adapted_layer(model: VideoDiffusion) -> LoraLinear | None:
    return next((module for module in model.modules() if isinstance(module, LoraLinear)), None)


def _check_alpha(model: VideoDiffusion, facts: LoraFacts, path: Path) -> None:
    """Raises: CheckpointError when adapters would run at another strength than they were trained with."""
    layer = _adapted_layer(model)
    assert layer is not None, "there is a place for adapters"
    ours = layer.base_scaling * layer.matrix_A[0].shape[0]
    if abs(ours - facts.alpha) > 1e-6 * max(1.0, abs(facts.alpha)):
        raise CheckpointError(
            f"{path} has lora_alpha {facts.alpha:g}, the configuration says {ours:g}: "
            f"set lora_config.params.lora_alpha to {facts.alpha:g}"
        )
