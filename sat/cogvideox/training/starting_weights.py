"""The weights that a run starts from: which files are checked, how they are loaded, what checkpoints say of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cogvideox.config.schema import Config, TrainArgs
from cogvideox.log import get_logger
from cogvideox.model.files import model_files
from cogvideox.model.loading import base_reference, load_transformer
from cogvideox.model.trainable import TrainableReport
from cogvideox.model.video_diffusion import VideoDiffusion
from cogvideox.parallel.groups import ProcessGroups
from cogvideox.training.from_cache import Stored
from cogvideox.training.training_state import state_file

_log = get_logger(__name__)


def files_to_check(
    config: Config,
    source: str | Path | None,
    resumed: Path | None,
    groups: ProcessGroups,
    stored: Stored | None = None,
) -> list[Path]:
    """What this process checks: its own training state, and as the first one of its machine what all of them read.
    stored: a cache may stand in for VAE and text encoder."""
    is_first_here = groups.local_rank == 0
    needed = stored or Stored()
    frozen = {"with_vae": needed.needs_vae, "with_text_encoder": needed.needs_text_encoder}
    found = model_files(config.model, source, **frozen) if is_first_here else []
    if resumed is not None:
        ranks = dict.fromkeys((groups.rank, 0) if is_first_here else (groups.rank,))
        found += [file for rank in ranks if (file := state_file(resumed, rank)).is_file()]
    return found


def load_start(model: VideoDiffusion, source: Path | None, bases: Sequence[str]) -> None:
    """Load the transformer, or say that its weights are random. Raises: CheckpointError."""
    if source is None:
        _log.warning("args.load is not set: the transformer starts from random weights")
    else:
        load_transformer(model, source, bases=bases)


def checkpoint_extra(
    model: VideoDiffusion, trainable: TrainableReport, args: TrainArgs, source: Path | None, bases: Sequence[str]
) -> dict[str, Any]:
    """The entries "lora" and "base" of the checkpoints to come (see weights.sat_folder)."""
    if trainable.lora_rank is None:
        return {"lora": None, "base": None}
    mixin = model.transformer.mixins["lora"]  # type: ignore[index, union-attr]
    layers = model.transformer.network.num_layers  # type: ignore[union-attr]
    lora = {"r": mixin.r, "alpha": mixin.lora_alpha, "layers": layers}
    is_whole = args.save_full or trainable.adapter < trainable.trainable or source is None
    return {"lora": lora, "base": None if is_whole else base_reference(source, bases=bases)}  # type: ignore[arg-type]
