"""The training loop."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from cogvideox import stopping
from cogvideox.config.schema import Config
from cogvideox.data.loader import VideoLoader, build_evaluation_loader, build_loader
from cogvideox.data.rows import AnyBatch
from cogvideox.diffusion.timesteps import random_word
from cogvideox.log import get_logger, log_file
from cogvideox.model.device_memory import ADAM_BYTES, fit_decoding
from cogvideox.model.memory import advise_on_memory, training_advice
from cogvideox.parallel.groups import ProcessGroups
from cogvideox.sampling.batches import VideoFormat
from cogvideox.sampling.run import build_sampler
from cogvideox.training.batch_sizes import micro_batch_sizes, tokens_per_sample
from cogvideox.training.checkpoint import Checkpointer, Progress
from cogvideox.training.evaluation import EVALUATION_SEED, adapter_update, held_out_loss, sample_prompts
from cogvideox.training.metrics import BAD_STEPS_LIMIT, Reading, StepMeter
from cogvideox.training.next_steps import after_training, resume_command
from cogvideox.training.optional_output import OptionalOutput
from cogvideox.training.run_folder import RunLock
from cogvideox.training.run_log import RunLog
from cogvideox.training.setup import prepare
from cogvideox.training.which_run import SUMMARY_FILE, RunChoice, choose_run, finished_summary, say_finished
from cogvideox.weights.atomic import write_text_atomically

_log = get_logger(__name__)


class Trainer:
    """One run of train_video.py on one of its processes. `fit` does everything."""

    def __init__(self, config: Config, groups: ProcessGroups) -> None:
        self._config, self._args, self._groups = config, config.train_args, groups
        self._readings: list[Reading] = []
        self._evaluations: list[tuple[int, float]] = []
        self._samples: dict[str, str] = {}
        self._checkpoint: Path | None = None

    def fit(self) -> dict[str, Any]:
        """Train to the last iteration; the summary, which is also written to `<run folder>/summary.json`.

        Raises:
            UserError: configuration, data, weights or place to save don't fit, or the run diverged; on every
            process; the device has too little memory, on this one.
            Stopped: the run was asked to stop; on every process, after saving what was trained.
        """
        advice = training_advice(self._config, self._groups.world_size)
        with advise_on_memory(*advice), RunLock() as lock:
            choice, finished = self._groups.first_only(lambda: self._choose(lock))
            return self._fit(choice, lock) if finished is None else finished

    def _choose(self, lock: RunLock) -> tuple[RunChoice, dict[str, Any] | None]:
        """What the run starts from; and its summary, if there is nothing left to do."""
        choice = choose_run(self._args, lock.take)
        finished = finished_summary(choice, self._args.train_iters)
        if finished is not None:
            say_finished(choice, self._args.train_iters)
        return choice, finished

    def _fit(self, choice: RunChoice, lock: RunLock) -> dict[str, Any]:
        started = time.monotonic()
        parts = self._parts = prepare(self._config, self._groups, choice, lock)
        self._checkpoint = choice.resume
        first, last = parts.progress.step + 1, self._args.train_iters
        self._done = self._saved = parts.progress
        # From here on a request to stop waits for a place where the run can be left: see stopping.check.
        with (
            stopping.deferred(),
            log_file(parts.folder, self._groups.rank),
            self._open_loader() as loader,
            self._open_log(first, last) as self._log,
        ):
            self._meter, self._checkpointer = StepMeter(self._groups), self._make_checkpointer()
            try:
                self._train(loader, first, last)
            except stopping.Stopped as stop:
                raise self._stopped(stop) from None
            stopping.saved()
            return self._summarise(time.monotonic() - started)

    def _train(self, loader: VideoLoader, first: int, last: int) -> None:
        evaluation_due = every(self._args.eval_interval, last)
        save_due, log_due = every(self._args.save_interval, last), every(self._args.log_interval, last)
        engine, fingerprint = self._parts.engine, self._parts.train_data.fingerprint()
        if self._parts.previews:
            self._fit_previews()
        self._evaluate(first - 1)
        for step in range(first, last + 1):
            self._seed_dropout(step)
            # Here the processes agree to stop, or on an error of one of them, before any of them waits in a step.
            batches = self._groups.attempt(lambda: self._next_batches(loader))
            self._meter.add(engine.step(step, batches), self._tokens_of(batches))
            self._done = Progress(step, loader.position, fingerprint)
            self._report(step, log_due(step))
            if save_due(step):  # first: whatever happens while evaluating, this interval is safe
                self._save()
            if evaluation_due(step):
                self._evaluate(step)

    def _next_batches(self, loader: VideoLoader) -> list[AnyBatch]:
        """The micro batches of one step. Raises: Stopped, DataError."""
        stopping.check()
        return list(islice(loader, self._parts.engine.sizes.accumulation))

    def _stopped(self, stop: stopping.Stopped) -> stopping.Stopped:
        """Save what was trained since the last checkpoint; the request, with what was saved and how to go on."""
        parts, step = self._parts, self._done.step
        if step > self._saved.step:
            self._save()
        if step == 0:
            return stop.after("no step was finished, nothing was saved", saved=False)
        stopping.saved()
        place = self._checkpoint or parts.folder / str(step)
        source = parts.folder if place.parent == parts.folder else place  # a run that branched off, and made no step
        command = resume_command(self._config, source, self._groups.world_size)
        done = f"step {step} of {self._args.train_iters} is finished and saved in {place}"
        return stop.after(f"{done}; go on with:\n    {command}", saved=True)

    def _open_loader(self) -> VideoLoader:
        parts = self._parts
        return build_loader(
            parts.train_data,
            micro_batch_sizes(self._config, parts.model, parts.train_data.buckets, parts.engine.sizes.micro),
            rank=self._groups.rank,
            world_size=self._groups.world_size,
            seed=self._args.seed,
            start=parts.progress.position,
            accumulation=parts.engine.sizes.accumulation,
            num_workers=self._args.num_workers,
            pin_memory=self._groups.device.type == "cuda",
            draw=lambda rows: parts.model.draw(rows, training=True),
        )

    def _open_log(self, first: int, last: int) -> RunLog:
        project = self._args.wandb_project if self._args.wandb else None
        return RunLog(
            self._parts.folder,
            first,
            last,
            quiet=not self._groups.is_first,
            wandb_project=project,
            configuration=self._config.resolved_yaml,
        )

    def _tokens_of(self, batches: Sequence[AnyBatch]) -> int:
        """What all processes together put through the transformer in a step; they have the same buckets."""
        tokens = sum(tokens_per_sample(self._parts.model, each.rows.bucket) * len(each.rows) for each in batches)
        return tokens * self._groups.world_size

    def _make_checkpointer(self) -> Checkpointer:
        parts = self._parts
        return Checkpointer(
            parts.folder,
            parts.engine,
            self._groups,
            parts.checkpoint_extra,
            save_full=self._args.save_full,
            keep_last=self._args.keep_last,
        )

    def _seed_dropout(self, step: int) -> None:
        """Only the adapters' dropout draws from torch's generators: make it a function of the step too."""
        torch.manual_seed(random_word("dropout", self._args.seed, step, self._groups.rank) % 2**63)

    def _report(self, step: int, is_due: bool) -> None:
        """The guard every few steps, the figures at log_interval: the only places where the host waits for
        the device."""
        self._log.advance()
        if is_due or step % BAD_STEPS_LIMIT == 0:
            self._meter.check(step)
        if is_due:
            reading = self._meter.read(step)
            self._readings.append(reading)
            self._log.training(reading, self._parts.engine.lr(step))

    def _save(self) -> None:
        with self._meter.pause():
            self._checkpoint = self._checkpointer.save(self._done)
        self._saved = self._done

    def _evaluate(self, step: int) -> None:
        """Held-out loss and preview videos, as far as they are configured: at the start, at eval_interval, at
        the end."""
        parts = self._parts
        with self._meter.pause(), parts.engine.evaluating() as losses_of:
            if parts.held_out is not None:
                loader = build_evaluation_loader(
                    parts.held_out,
                    self._args.eval_batch_size,
                    self._groups.rank,
                    self._groups.world_size,
                    self._args.num_workers,
                    pin_memory=self._groups.device.type == "cuda",
                    draw=lambda rows: parts.model.draw_fixed(rows, EVALUATION_SEED),
                )
                loss = held_out_loss(losses_of, loader, parts.model, self._groups)
                self._evaluations.append((step, loss))
                self._log.validation(step, loss)
            if parts.previews:
                _log.info("step %d: sampling %d previews", step, len(parts.previews))
                folder = parts.folder / "samples" / str(step)
                sampler = build_sampler(self._config.model.sampler_config, self._args.sample_steps)
                sample_prompts(parts.model, sampler, parts.previews, self._video_format(), folder, self._groups)
                self._samples[str(step)] = str(folder)
                self._log.previews(step, folder)

    def _fit_previews(self) -> None:
        """Choose how previews are decoded now, not when the first one runs out of memory."""
        form, parts = self._video_format(), self._parts
        moments = ADAM_BYTES * parts.trainable.trainable
        fit_decoding(parts.model.vae, form.height, form.width, self._groups.device, still_to_come=moments)

    def _video_format(self) -> VideoFormat:
        data = self._config.data
        assert data is not None
        frames = self._parts.model.num_latent_frames(self._args.sample_num_frames or data.max_num_frames)
        height, width = data.video_size
        return VideoFormat(frames, height, width, data.fps)

    def _summarise(self, seconds: float) -> dict[str, Any]:
        parts, readings = self._parts, self._readings
        steady = readings[1:] or readings  # the first reading includes warming up
        reserved = [each.reserved_gib for each in readings if each.reserved_gib is not None]
        summary = {
            "run_folder": str(parts.folder),
            "checkpoint": None if self._checkpoint is None else str(self._checkpoint),
            "iterations": self._args.train_iters,
            "train_loss_first": readings[0].loss if readings else None,
            "train_loss_last": readings[-1].loss if readings else None,
            "valid_loss": [list(each) for each in self._evaluations],
            "seconds_total": seconds,
            "seconds_per_step": sum(each.seconds for each in steady) / len(steady) if steady else None,
            "tokens_per_second": sum(each.tokens for each in steady) / len(steady) if steady else None,
            "peak_memory_bytes": int(max((each.peak_gib for each in readings), default=0.0) * 2**30),
            "peak_reserved_bytes": int(max(reserved) * 2**30) if reserved else None,  # on the CPU
            "trainable_parameters": parts.trainable.trainable,
            "lora_scale": parts.trainable.lora_scale,
            "lora_update": adapter_update(parts.model),
            "effective_batch": parts.engine.sizes.effective,
            "training_clips": len(parts.train_data),
            "samples": self._samples,
        }
        if self._groups.is_first:
            text = json.dumps(summary, indent=2)
            place = parts.folder / SUMMARY_FILE
            OptionalOutput().write("the summary", lambda: write_text_atomically(place, text + "\n"))
            _log.info("finished after %.0f s: %s", seconds, self._checkpoint)
            caption = parts.train_data.samples[0].captions[0]
            _log.info("%s", after_training(self._config, parts.folder, self._groups.world_size, caption))
        return summary


def every(interval: int | None, last: int) -> Callable[[int], bool]:
    """Whether something is due after a step: at each multiple of the interval, and after the last step."""
    return lambda step: step == last or (interval is not None and step % interval == 0)
