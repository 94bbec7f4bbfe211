"""Where a run's figures go: progress bar or log lines, TensorBoard, metrics.jsonl, Weights & Biases.

TensorBoard tags are those that SAT writes: Train/train_loss, Train/lr, Train/elapsed_time (milliseconds a step),
Train/valid_loss; what else is written has its unit in its name. Only the first process writes, and a full disk ends
none of it but the figures.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cogvideox.log import get_logger
from cogvideox.training.metrics import Reading
from cogvideox.training.optional_output import OptionalOutput
from cogvideox.training.run_media import board_configuration, board_previews, start_wandb, wandb_previews

_log = get_logger(__name__)
_BOARD, _LINES, _WANDB = "TensorBoard's file", "metrics.jsonl", "Weights & Biases"


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

        self._optional = OptionalOutput()
        self._thread_hook = threading.excepthook
        threading.excepthook = self._on_thread_error
        self._board = self._optional.write(_BOARD, lambda: SummaryWriter(str(folder / "tensorboard")))
        self._lines = self._optional.write(_LINES, lambda: (folder / "metrics.jsonl").open("a", encoding="utf-8"))
        self._wandb: Any = None
        if wandb_project:
            self._wandb = self._optional.write(_WANDB, lambda: start_wandb(wandb_project, folder, configuration))
        if self._board is not None:
            self._optional.write(_BOARD, lambda: board_configuration(self._board, configuration))
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
        threading.excepthook = self._thread_hook
        self._bar.close()
        if self._board is not None:
            self._optional.write(_BOARD, self._board.close)
        if self._lines is not None:
            self._optional.write(_LINES, self._lines.close)
        if self._wandb is not None:
            self._optional.write(_WANDB, self._wandb.finish)

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
        memory = f"{reading.peak_gib:.3g} GiB"
        if reading.reserved_gib is not None:
            figures["Train/peak_reserved_gib"] = reading.reserved_gib
            memory += f" ({reading.reserved_gib:.3g} reserved)"
        self._write(reading.step, figures)
        text = f"loss {reading.loss:.4f}, lr {lr:.3g}, grad norm {reading.grad_norm:.3g}, {reading.seconds:.3g} s/step"
        text += f", {memory}"
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
            if self._board is not None:
                self._optional.write(_BOARD, lambda: board_previews(self._board, step, folder))
            if self._wandb is not None:
                self._optional.write(_WANDB, lambda: wandb_previews(self._wandb, step, folder))

    def _write(self, step: int, figures: dict[str, float]) -> None:
        self._optional.write(_BOARD, lambda: self._write_board(step, figures))
        self._optional.write(_LINES, lambda: self._write_line(step, figures))
        if self._wandb is not None:
            self._optional.write(_WANDB, lambda: self._wandb.log(figures, step=step))

    def _on_thread_error(self, error: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread prints a traceback of what the next call raises here anyway."""
        if not (isinstance(error.exc_value, OSError) and type(error.thread).__module__.startswith("tensorboard")):
            self._thread_hook(error)

    def _write_board(self, step: int, figures: dict[str, float]) -> None:
        if self._board is not None:
            for tag, value in figures.items():
                self._board.add_scalar(tag, value, step)

    def _write_line(self, step: int, figures: dict[str, float]) -> None:
        if self._lines is not None:
            named = {tag.removeprefix("Train/"): value for tag, value in figures.items()}
            self._lines.write(json.dumps({"step": step, **named}) + "\n")
            self._lines.flush()
