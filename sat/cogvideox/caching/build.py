"""Filling a cache: clips are decoded by processes, encoded on the device and written by a thread, all at one time.

Any number of processes, on any number of machines, may fill the same cache: each takes the next clip that nobody has
(see claims). None waits for another.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from cogvideox import stopping
from cogvideox.caching.claims import abandoned, claim
from cogvideox.caching.entries import write_beside, write_entry
from cogvideox.caching.keys import Recipe
from cogvideox.caching.latent_reader import Place, write_failed
from cogvideox.caching.layout import FIRST_FRAME
from cogvideox.caching.opening import RECIPE_FILE, Cache, stored
from cogvideox.data.clips import ReadDone, ReadJob
from cogvideox.data.pool import DecodePool, Task, open_pool
from cogvideox.data.report import shown
from cogvideox.data.sample import Sample
from cogvideox.data.survey import Failure
from cogvideox.errors import DataError, UserError
from cogvideox.log import amount, get_logger
from cogvideox.text.conditioner import Conditioner
from cogvideox.vae.autoencoder import VideoAutoencoder
from cogvideox.weights.file_lock import FileLock

_log = get_logger(__name__)
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_POLL_S = 0.2


@dataclass
class Done:
    """What a process has done to a cache. failed: label and reason of each clip without latents; unreadable: those of
    them that are not only too short."""

    made: int = 0
    num_bytes: int = 0
    before: int = 0
    elsewhere: int = 0
    seconds: float = 0.0
    encoding_s: float = 0.0
    unreadable: int = 0
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(eq=False)
class _Clip:
    """A clip that this process makes an entry of."""

    sample: Sample
    job: ReadJob
    place: Place
    lock: FileLock
    values: dict[str, Tensor]
    failure: Failure | None = None


def prepare_folders(cache: Cache) -> None:
    """Say in the cache how its entries are made. Raises: DataError where nothing can be written."""
    for recipe in cache.recipes:
        write_beside(recipe.folder(cache.root) / RECIPE_FILE, _recipe_text(recipe).encode())
    abandoned(cache.root)


def _recipe_text(recipe: Recipe) -> str:
    return json.dumps({"weights": recipe.weights, "facts": json.loads(recipe.facts)}, indent=2) + "\n"


def fill_contexts(cache: Cache, captions: Sequence[str], conditioner: Conditioner, dtype: torch.dtype) -> int:
    """Encode and store captions, as far as no other process does; how many. Raises: DataError, Stopped."""
    made, store = 0, cache.contexts
    for caption in tqdm(captions, desc="captions", unit="caption", disable=None):
        stopping.check()
        file = store.place(caption)[1]
        if file.is_file() or (lock := claim(cache.root, file)) is None:
            continue
        try:
            if not file.is_file():
                store.write(caption, conditioner.encode([caption])[0].to(dtype))
                made += 1
        finally:
            lock.release()
    return made


def fill_latents(
    cache: Cache,
    jobs: Iterable[tuple[Sample, ReadJob]],
    vae: VideoAutoencoder,
    *,
    num_workers: int,
    clip_timeout_s: float,
    max_failed_share: float,
    first: int = 0,
    show_progress: bool = True,
) -> Done:
    """Encode and store every clip that is not there yet, as far as no other process does.

    Args:
        vae: where and in which dtype it encodes.
        num_workers: decoding processes; 0 decodes in a thread.
        first: where to begin among the clips; other processes begin elsewhere.

    Raises: DataError where too many clips fail, or nothing can be written; Stopped, after what was begun is written.
    """
    done = Done()
    todo = _missing(cache, jobs, done)
    first %= max(len(todo), 1)
    start, total = time.monotonic(), len(todo) + done.before
    feeder = _Feeder(cache, [*todo[first:], *todo[:first]], num_workers, clip_timeout_s)
    writer = _Writer(cache, done)
    bar = tqdm(total=len(todo), desc="clips", unit="clip", disable=None if show_progress else True)
    try:
        for clip in feeder:
            if clip.failure is None:
                begun = time.monotonic()
                clip.values = encoded(cache, vae, clip.values)
                done.encoding_s += time.monotonic() - begun
            else:
                _note_failure(done, clip, total, max_failed_share)
            writer.give(clip)
            bar.update()
            bar.set_postfix_str(amount(done.num_bytes), refresh=False)
        done.elsewhere = feeder.elsewhere
    finally:
        feeder.close()
        writer.close()
        bar.close()
        done.seconds = time.monotonic() - start
    writer.check()
    return done


def _missing(cache: Cache, jobs: Iterable[tuple[Sample, ReadJob]], done: Done) -> list[tuple[Sample, ReadJob, Place]]:
    """What is not there, each clip once however often a data set has it."""
    there, todo = stored(cache.latents.recipe, cache.root), dict[str, tuple[Sample, ReadJob, Place]]()
    for sample, job in tqdm(jobs, desc="looking at files", unit="clip", disable=None, leave=False):
        stopping.check()
        try:
            place = cache.latents.place(job)
        except DataError as error:  # a file that has gone since it was listed
            done.failed[sample.label] = str(error)
            continue
        done.before += place.key in there
        if place.key not in there:
            todo.setdefault(place.key, (sample, job, place))
    return list(todo.values())


@torch.no_grad()
def encoded(cache: Cache, vae: VideoAutoencoder, read: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A clip's moments in the dtype to store, and what else an entry holds. read: what ClipDecoder has read of it."""
    video = read["video"]
    posterior = vae.encode(video[None])
    computed = next(vae.parameters()).dtype
    wanted = _DTYPES.get(json.loads(cache.latents.recipe.facts)["stored"])
    moments = {"mean": posterior.mean[0].cpu(), "log_variance": posterior.logvar[0].cpu()}
    values = {name: _rounded(value, computed, wanted) for name, value in moments.items()}
    if cache.latents.layout.with_first_frame:
        values[FIRST_FRAME] = first_frame(read).clone()
    return values


def first_frame(read: Mapping[str, Tensor]) -> Tensor:
    """uint8 [3, h, w], the image of image-to-video. read: as in `encoded`."""
    return read["image"] if "image" in read else read["video"][0]


def _rounded(value: Tensor, computed: torch.dtype, wanted: torch.dtype | None) -> Tensor:
    """In the dtype that is wanted; without one in the VAE's own, where that holds the same values (it does unless tiles
    were blended in another), else as it is."""
    if wanted is not None:
        return value.to(wanted).contiguous()
    narrow = value.to(computed)
    return (narrow if torch.equal(narrow.to(value.dtype), value) else value).contiguous()


def _note_failure(done: Done, clip: _Clip, total: int, max_failed_share: float) -> None:
    assert clip.failure is not None
    reason = shown(clip.failure.reason)
    done.failed[clip.sample.label] = reason
    done.unreadable += not clip.failure.too_short
    _log.warning("left out: %s", reason)
    if done.unreadable > max_failed_share * total:
        raise DataError(
            f"{done.unreadable} of {total} clips can't be read, more than data.max_failed_share={max_failed_share:g} "
            f"allows; the last: {reason}"
        )


class _Feeder:
    """Claims clips and has them decoded, in a thread; a few are ready while the device encodes another."""

    def __init__(
        self, cache: Cache, todo: Sequence[tuple[Sample, ReadJob, Place]], num_workers: int, timeout_s: float
    ) -> None:
        self.elsewhere = 0
        self._cache, self._todo = cache, todo
        self._pool: DecodePool = open_pool(cache.latents.decoder, num_workers, timeout_s)
        self._at_once = num_workers + 2
        self._ready: queue.Queue[_Clip | None] = queue.Queue(maxsize=2)
        self._closing = threading.Event()
        self._error: UserError | None = None
        self._is_through = False
        self._held: set[_Clip] = set()
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[_Clip]:
        while True:
            stopping.check()
            try:
                clip = self._ready.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if clip is None:
                stopping.check()
                if self._error is not None:
                    raise self._error
                if not self._is_through:
                    raise RuntimeError("the decoding thread has ended; its traceback is above")
                return
            self._held.discard(clip)
            yield clip

    def _run(self) -> None:
        try:
            self._feed()
            self._is_through = True
        except UserError as error:
            self._error = error
        except stopping.Stopped:
            pass  # who takes the clips raises it
        finally:
            self._put(None)

    def _feed(self) -> None:
        clips, under_way = self._claimed(), 0
        while True:
            while under_way < self._at_once and (clip := next(clips, None)) is not None:
                self._pool.submit(Task(clip, clip.job, clip.values))
                under_way += 1
            result = self._pool.next_result() if under_way else None
            if result is None:
                return
            under_way -= 1
            key, outcome = result
            assert isinstance(key, _Clip) and isinstance(outcome, ReadDone | Failure), result
            key.failure = outcome if isinstance(outcome, Failure) else None
            self._put(key)

    def _claimed(self) -> Iterator[_Clip]:
        decoder = self._cache.latents.decoder
        for sample, job, place in self._todo:
            if self._closing.is_set():
                return
            if place.file.is_file():  # another process was quicker
                self.elsewhere += 1
                continue
            lock = claim(self._cache.root, place.file)
            if lock is None or place.file.is_file():
                self.elsewhere += 1
                if lock is not None:
                    lock.release()
                continue
            fields = decoder.fields(job.bucket).items()
            clip = _Clip(
                sample, decoder.job(sample, job.bucket, job.seed, job.epoch), place, lock,
                {name: torch.empty(each.shape, dtype=each.dtype) for name, each in fields},
            )  # fmt: skip
            self._held.add(clip)
            yield clip

    def _put(self, clip: _Clip | None) -> None:
        while not self._closing.is_set():
            with suppress(queue.Full):
                self._ready.put(clip, timeout=_POLL_S)
                return

    def close(self) -> None:
        """End the thread and the processes, and leave what was not encoded to others."""
        self._closing.set()
        self._pool.stop_waiting()
        self._thread.join()
        self._pool.close()
        for clip in self._held:
            clip.lock.release()


class _Writer:
    """Writes entries in a thread; a few may wait, so that memory is bounded."""

    def __init__(self, cache: Cache, done: Done) -> None:
        self._cache, self._done = cache, done
        self._queue: queue.Queue[_Clip | None] = queue.Queue(maxsize=4)
        self._error: UserError | None = None
        self._thread = threading.Thread(target=self._run, name="write", daemon=True)
        self._thread.start()

    def give(self, clip: _Clip) -> None:
        """Have it written. Raises: DataError for one that could not be written before."""
        self.check()
        self._queue.put(clip)

    def check(self) -> None:
        """Raises: DataError, see `give`."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Wait until all is written."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (clip := self._queue.get()) is not None:
            try:
                if self._error is None:
                    self._write(clip)
            except UserError as error:
                self._error = error
            finally:
                clip.lock.release()

    def _write(self, clip: _Clip) -> None:
        if clip.failure is not None:
            with suppress(OSError):  # then it is tried again
                write_failed(clip.place, clip.failure.reason, too_short=clip.failure.too_short)
            return
        facts = {
            "key": clip.place.key,
            "bucket": str(clip.job.bucket),
            "sample_id": str(clip.sample.sample_id),
            "source": clip.sample.label.encode("utf-8", "backslashreplace").decode(),
        }
        self._done.num_bytes += write_entry(clip.place.file, clip.values, facts)
        self._done.made += 1
        with suppress(OSError):
            clip.place.failed.unlink(missing_ok=True)
