"""Where a run's figures go: progress bar or log lines, TensorBoard, metrics.jsonl, Weights & Biases.

TensorBoard tags are those that SAT writes: Train/train_loss, Train/lr, Train/elapsed_time (milliseconds a step),
Train/valid_loss; what else is written has its unit in its name. Only the first process writes.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from tqdm import tqdm

from cogvideox.log import get_logger
from cogvideox.training.metrics import Reading
from cogvideox.training.run_media import board_configuration, board_previews, start_wandb, wandb_previews

_log = get_logger(__name__)


class RunLog:
    """Open for the length of a run, as a context manager.

    folder: the run folder. first_step, last_step: of this call, for the bar and the time left. quiet: write nothing
    (all processes but the first). configuration: the YAML in force, as text.
    """

    def __init__(
        self,
        folder: Path,
        first_step: int,
        last_step: int,
        *,
        quiet: bool = False,
        wandb_project: str | None = None,
        configuration: str = "",
    ) -> None:
        self._quiet, self._last_step = quiet, last_step
        self._step_seconds: float | None = None
        if quiet:
            return
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(folder / "tensorboard"))
        self._lines = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._wandb = start_wandb(wandb_project, folder, configuration) if wandb_project else None
        board_configuration(self._board, configuration)
        # A bar is for people: in a file it would be thousands of lines. There, one log line per reading takes
        # its place.
        self._has_bar = sys.stderr.isatty()
        total = last_step - first_step + 1
        self._bar = tqdm(total=total, unit="step", dynamic_ncols=True, disable=not self._has_bar)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._quiet:
            return
        self._bar.close()
        self._board.close()
        self._lines.close()
        if self._wandb is not None:
            self._wandb.finish()

    def advance(self) -> None:
        """One step done."""
        if not self._quiet:
            self._bar.update()

    def training(self, reading: Reading, lr: float) -> None:
        """Figures of the steps since the last call."""
        if self._quiet:
            return
        figures = {
            "Train/train_loss": reading.loss,
            "Train/lr": lr,
            "Train/elapsed_time": reading.seconds * 1e3,
            "Train/step_seconds": reading.seconds,
            "Train/grad_norm": reading.grad_norm,
            "Train/tokens_per_second": reading.tokens,
            "Train/peak_memory_gib": reading.peak_gib,
        }
        self._write(reading.step, figures)
        text = f"loss {reading.loss:.4f}, lr {lr:.3g}, grad norm {reading.grad_norm:.3g}, {reading.seconds:.3g} s/step"
        self._bar.set_postfix_str(text)
        left = tqdm.format_interval((self._last_step - reading.step) * reading.seconds)
        level = logging.DEBUG if self._has_bar else logging.INFO  # beside a bar, for the log file only
        _log.log(level, "step %d/%d: %s, %s left", reading.step, self._last_step, text, left)

    def validation(self, step: int, loss: float) -> None:
        """The held-out loss."""
        if not self._quiet:
            self._write(step, {"Train/valid_loss": loss})
            _log.info("step %d: held-out loss %.5f", step, loss)

    def previews(self, step: int, folder: Path) -> None:
        """The videos that were sampled into this folder."""
        if not self._quiet:
            board_previews(self._board, step, folder)
            if self._wandb is not None:
                wandb_previews(self._wandb, step, folder)

    def _write(self, step: int, figures: dict[str, float]) -> None:
        for tag, value in figures.items():
            self._board.add_scalar(tag, value, step)
        self._lines.write(
            json.dumps({"step": step, **{tag.removeprefix("Train/"): figures[tag] for tag in figures}}) + "\n"
        )
        self._lines.flush()
        if self._wandb is not None:
            self._wandb.log(figures, step=step)
