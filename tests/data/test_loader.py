"""Batches: the same global data for every split, exact resume, failures, evaluation."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from cogvideox import stopping
from cogvideox.data.bucket_plan import BucketPlan
from cogvideox.data.clips import ClipDecoder
from cogvideox.data.dataset import VideoDataset, build_dataset
from cogvideox.data.loader import AnyBatch, build_evaluation_loader, build_loader
from cogvideox.data.media import Media
from cogvideox.data.plans import StreamPosition
from cogvideox.data.rows import ClipBatch, Rows, drawn
from cogvideox.data.sample import Sample
from cogvideox.data.timing import ClipSpec
from cogvideox.errors import DataError, run_cli
from data.clip_files import read_number, render, render_pair
from data.fake_readers import ScriptedReader
from programs import wait_until

SPEC = ClipSpec((8, 8), 8, 5)


def scripted(folder: Path, names: list[str], max_failed_share: float = 0.5, timeout_s: float = 600.0) -> VideoDataset:
    samples = tuple(
        Sample(Media(str(folder / name)), (f"caption {name}",), index * 7 + 1) for index, name in enumerate(names)
    )
    reader = ClipDecoder(SPEC, ScriptedReader())
    plan = BucketPlan((SPEC.bucket,))
    return VideoDataset(samples, reader, plan, clip_timeout_s=timeout_s, max_failed_share=max_failed_share)


def letters(count: int) -> list[str]:
    return [chr(ord("A") + index) for index in range(count)]


def clips_of(batch: AnyBatch) -> ClipBatch:
    return batch if isinstance(batch, ClipBatch) else batch.batch


def rows(batch: AnyBatch) -> list[tuple[int, int, str, int]]:
    grey = clips_of(batch).video.flatten(1).float().mean(1).int().tolist()
    return list(zip(batch.rows.sample_ids.tolist(), batch.rows.epochs.tolist(), batch.rows.captions, grey, strict=True))


def global_batches(
    dataset: VideoDataset, world_size: int, micro: int, steps: int, **options: int
) -> list[list[tuple[int, int, str, int]]]:
    """What all processes together get in each micro step."""
    loaders = [build_loader(dataset, micro, rank, world_size, num_workers=0, **options) for rank in range(world_size)]
    return [[row for loader in loaders for row in rows(next(loader))] for _ in range(steps)]


def test_batch_fields(tmp_path: Path) -> None:
    with build_loader(scripted(tmp_path, letters(5)), 2, seed=3, num_workers=0) as loader:
        assert loader.position.total == 0
        batch = next(loader)
    assert batch.video.shape == (2, 5, 3, 8, 8) and batch.video.dtype == torch.uint8 and batch.video.is_contiguous()
    assert batch.rows.sample_ids.dtype == batch.rows.epochs.dtype == batch.rows.positions.dtype == torch.int64
    assert batch.rows.positions.tolist() == [0, 1] and batch.rows.counted.tolist() == [True, True]
    assert batch.rows.epoch == 0 and batch.rows.bucket == SPEC.bucket and len(batch.rows) == 2
    for caption, path, row in zip(batch.rows.captions, batch.rows.sources, batch.video, strict=True):
        assert caption == f"caption {Path(path).name}" and row.unique().tolist() == [ord(Path(path).name)]
    assert loader.position == batch.rows.after == StreamPosition(2, {"5x8x8": 2})
    assert batch.to("cpu").video is batch.video


def test_every_split_of_a_global_batch_holds_the_same(tmp_path: Path) -> None:
    dataset = scripted(tmp_path, letters(7))
    whole = global_batches(dataset, 1, 4, 6, seed=5)
    assert global_batches(dataset, 2, 2, 6, seed=5) == whole
    assert global_batches(dataset, 4, 1, 6, seed=5) == whole
    accumulated = global_batches(dataset, 1, 1, 24, seed=5)
    assert [[row for part in accumulated[step * 4 : step * 4 + 4] for row in part] for step in range(6)] == whole
    halves = global_batches(dataset, 2, 1, 12, seed=5)
    assert [sorted(halves[2 * step] + halves[2 * step + 1]) for step in range(6)] == [sorted(batch) for batch in whole]
    assert global_batches(dataset, 1, 4, 6, seed=6) != whole


def test_every_epoch_holds_every_sample_once_across_batch_borders(tmp_path: Path) -> None:
    seen = Counter(
        (row[0], row[1]) for batch in global_batches(scripted(tmp_path, letters(5)), 1, 3, 5) for row in batch
    )
    assert len(seen) == 15 and set(seen.values()) == {1}


def test_fewer_samples_than_rows(tmp_path: Path) -> None:
    (batch,) = global_batches(scripted(tmp_path, letters(2)), 1, 5, 1)
    assert [epoch for _, epoch, _, _ in batch] == [0, 0, 1, 1, 2]
    assert len({row[:2] for row in batch}) == 5


def test_resume_goes_on_at_the_exact_sample(tmp_path: Path) -> None:
    dataset = scripted(tmp_path, letters(5))
    whole = global_batches(dataset, 2, 2, 8, seed=9)
    with build_loader(dataset, 2, 0, 2, seed=9, num_workers=0) as loader:
        for _ in range(3):
            next(loader)
        position = loader.position
    assert position.total == 12
    assert global_batches(dataset, 2, 2, 5, seed=9, start=position) == whole[3:]
    # Also on another number of processes.
    assert global_batches(dataset, 1, 4, 5, seed=9, start=position) == whole[3:]


def test_position_counts_what_was_handed_out_not_what_was_read_ahead(tmp_path: Path) -> None:
    dataset = scripted(tmp_path, letters(6))
    with build_loader(dataset, 2, num_workers=2, seed=1) as loader:
        ahead = [rows(next(loader)) for _ in range(4)]
        assert loader.position.total == 8
        assert loader.read_by["scripted"] >= 8
    assert ahead == global_batches(dataset, 1, 2, 4, seed=1)
    loader.close()


def test_failed_files_are_replaced_alike_on_every_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [*letters(6), "broken-1", "broken-2"]
    dataset = scripted(tmp_path, names)
    whole = global_batches(dataset, 1, 4, 6)
    assert all("broken" not in caption for batch in whole for _, _, caption, _ in batch)
    assert "broken-1: broken on purpose" in caplog.text and caplog.text.count("left out from now on") == 2
    assert global_batches(dataset, 2, 2, 6) == whole
    assert global_batches(dataset, 4, 1, 6) == whole
    # The substitute is the next good sample of the epoch.
    good = global_batches(scripted(tmp_path, names), 1, 8, 1)[0]
    order = [row[2] for row in good]
    with build_loader(dataset, 8, num_workers=0) as loader:
        next(loader)
        assert sorted(Path(path).name for path in loader.failures) == ["broken-1", "broken-2"]
    assert Counter(order).most_common(1)[0][1] >= 2


def test_a_failed_file_is_tried_once(tmp_path: Path) -> None:
    with build_loader(scripted(tmp_path, [*letters(3), "broken"]), 2, num_workers=0) as loader:
        for _ in range(8):
            next(loader)
    assert (tmp_path / "broken.reads").read_text() == "x"


def test_a_hanging_file_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of eight samples it comes at positions 4 and 13: it isn't asked for again before it has failed.
    dataset = scripted(tmp_path, [*letters(7), "hang"])
    started, real = tmp_path / "hang.reads", time.monotonic
    monkeypatch.setattr("cogvideox.data.pool.time.monotonic", lambda: real() + 1000 * started.exists())
    with build_loader(dataset, 2, num_workers=1) as loader:
        batches = [next(loader) for _ in range(4)]
        (reason,) = loader.failures.values()
    assert reason.endswith("hang: not decoded within clip_timeout_s=600 s")
    assert all("hang" not in caption for batch in batches for caption in batch.rows.captions)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_failures_stop_the_run(tmp_path: Path, num_workers: int) -> None:
    dataset = scripted(tmp_path, [*letters(7), "broken-1", "broken-2", "broken-3"], max_failed_share=0.2)
    message = "3 of 10 videos failed to decode, more than max_failed_share=0.2 allows; the last: .*broken on purpose"
    with build_loader(dataset, 5, num_workers=num_workers) as loader, pytest.raises(DataError, match=message):
        for _ in range(5):
            next(loader)


def test_a_clip_that_turns_out_too_short_is_no_decoding_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = [*letters(4), "short-1", "short-2", "short-3"]
    dataset = scripted(tmp_path, names, max_failed_share=0.0)
    skipping = replace(dataset, short_clips="skip")
    with build_loader(skipping, 7, num_workers=0) as loader:
        assert not any("short" in caption for caption in next(loader).rows.captions)
    assert caplog.text.count("short-1: spans 0.25 s (3 frames at 8.00 fps)") == 1
    with (
        build_loader(dataset, 7, num_workers=0) as loader,
        pytest.raises(DataError, match=r"short-\d: spans 0.25 s .*; data.short_clips=skip leaves such clips out"),
    ):
        next(loader)


def test_all_failed(tmp_path: Path) -> None:
    dataset = scripted(tmp_path, ["broken-1", "broken-2"], max_failed_share=1.0)
    with (
        build_loader(dataset, 1, num_workers=0) as loader,
        pytest.raises(DataError, match=r"none of the 2 videos can be used; the last: .*broken-2"),
    ):
        next(loader)


def test_refused_sizes(tmp_path: Path) -> None:
    dataset = scripted(tmp_path, letters(2))
    with pytest.raises(DataError, match="3 processes but 2 samples; use at most 2 processes, or more clips"):
        build_loader(dataset, 1, 0, 3)
    with pytest.raises(DataError, match="the micro batch size is 0; it has to be at least 1"):
        build_loader(dataset, 0)
    with pytest.raises(DataError, match="the micro batch size is -1"):
        build_evaluation_loader(dataset, -1)


@pytest.mark.parametrize(("world_size", "micro"), [(1, 1), (1, 3), (2, 2), (3, 1), (7, 2)])
def test_evaluation_counts_every_sample_once(tmp_path: Path, world_size: int, micro: int) -> None:
    dataset = scripted(tmp_path, letters(5))
    loaders = [build_evaluation_loader(dataset, micro, rank, world_size, num_workers=0) for rank in range(world_size)]
    for _ in range(2):
        passes = [list(loader) for loader in loaders]
        assert {len(batches) for batches in passes} == {len(loaders[0])}
        assert {batch.video.shape[0] for batches in passes for batch in batches} == {micro}
        counted = [
            row
            for batch in itertools.chain(*passes)
            for row, counts in zip(rows(batch), batch.rows.counted, strict=True)
            if counts
        ]
        assert sorted(row[0] for row in counted) == dataset.sample_ids().tolist()
        assert {row[1] for row in counted} == {0}


def test_evaluation_does_not_count_substitutes(tmp_path: Path) -> None:
    dataset = scripted(tmp_path, ["A", "broken", "C"])
    for num_workers in (0, 1):
        batches = list(build_evaluation_loader(dataset, 1, num_workers=num_workers))
        assert [batch.rows.captions for batch in batches] == [("caption A",), ("caption C",), ("caption C",)]
        assert [batch.rows.counted.item() for batch in batches] == [True, False, True]


def test_leaving_an_evaluation_pass_early_ends_its_workers(tmp_path: Path) -> None:
    for batch in build_evaluation_loader(scripted(tmp_path, letters(4)), 1, num_workers=1):
        assert batch.rows.captions == ("caption A",)
        break


def test_random_start_is_a_function_of_seed_epoch_and_sample(tmp_path: Path) -> None:
    for name in "ab":
        render_pair(tmp_path / f"{name}.mp4", name, num_frames=60)
    dataset = build_dataset([tmp_path], ClipSpec((48, 96), 30, 5, random_start=True), reader="pyav", num_workers=0)

    def starts(seed: int, world_size: int) -> dict[tuple[int, int], int]:
        found = {}
        for rank in range(world_size):
            with build_loader(dataset, 2 // world_size, rank, world_size, seed, num_workers=0) as loader:
                for _ in range(4):
                    batch = next(loader)
                    for sample, epoch, clip in zip(
                        batch.rows.sample_ids.tolist(), batch.rows.epochs.tolist(), batch.video, strict=True
                    ):
                        shown = [read_number(frame.permute(1, 2, 0).numpy()) for frame in clip]
                        assert shown == list(range(shown[0], shown[0] + 5))
                        found[sample, epoch] = shown[0]
        return found

    first = starts(1, 1)
    assert len(first) == 8 and len(set(first.values())) > 4
    assert starts(1, 2) == first
    assert starts(2, 1) != first


def test_real_files_through_processes_equal_those_read_here(tmp_path: Path) -> None:
    for index in range(4):
        render_pair(tmp_path / f"{index}.mp4", f"clip {index}", num_frames=20 + index)
    render(tmp_path / "narrow.mp4", num_frames=20, size=(64, 48))
    spec = ClipSpec((16, 24), 8, 5)
    dataset = build_dataset([tmp_path], spec, reader="decord", missing_captions="empty", num_workers=0)
    with build_loader(dataset, 5, num_workers=1) as there, build_loader(dataset, 5, num_workers=0) as here:
        first, second = next(there), next(here)
        assert here.read_by == {"decord": 4, "pyav": 1}
    assert torch.equal(first.video, second.video) and first.rows.captions == second.rows.captions


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_run_that_is_asked_to_stop_does_not_wait_for_a_batch(tmp_path: Path, num_workers: int) -> None:
    """The only clip hangs for ten minutes."""
    dataset = scripted(tmp_path, ["hang"])

    def ask_when_it_reads() -> None:
        wait_until((tmp_path / "hang.reads").exists, "the reader")
        stopping.request(signal.SIGTERM, "SIGTERM")

    def main(argv: object) -> None:
        with stopping.deferred(), build_loader(dataset, 1, num_workers=num_workers) as loader:
            threading.Thread(target=ask_when_it_reads).start()
            next(loader)

    assert run_cli(main, []) == 143


def test_workers_leave_signals_to_the_process_that_started_them(tmp_path: Path) -> None:
    """A terminal, Slurm and kill send them to the whole group, and the clips that are under way are still wanted."""
    with build_loader(scripted(tmp_path, letters(4)), 1, num_workers=1) as loader:
        next(loader)
        (worker,) = [each for each in psutil.Process().children() if "cogvideox.data.worker" in each.cmdline()]
        for number in stopping.SIGNALS:
            worker.send_signal(number)
        for _ in range(6):
            next(loader)
        assert worker.is_running() and loader.failures == {}


def identity(rows: Rows) -> tuple[list[int], list[int]]:
    return rows.sample_ids.tolist(), rows.epochs.tolist()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_randomness_is_drawn_beside_for_what_the_batch_holds(tmp_path: Path, num_workers: int) -> None:
    """In a thread, also where a substitute stands in for a broken file; the batches are those without a draw."""
    names = [*letters(3), "broken"]
    threads = set()

    def draw(rows: Rows) -> tuple[list[int], list[int]]:
        threads.add(threading.current_thread().name)
        return identity(rows)

    dataset = scripted(tmp_path, names)
    with build_loader(dataset, 2, seed=3, num_workers=num_workers, draw=draw) as loader:
        batches = [next(loader) for _ in range(5)]
    assert [drawn(batch, pytest.fail)[1] for batch in batches] == [identity(batch.rows) for batch in batches]
    assert {name.split("_")[0] for name in threads} == {"draw"}
    with build_loader(dataset, 2, seed=3, num_workers=0) as plain:
        same = [next(plain) for _ in range(5)]
    assert [rows(batch) for batch in batches] == [rows(batch) for batch in same]
    assert drawn(same[0], identity)[1] == identity(same[0].rows), "without a thread it is drawn when asked for"


@pytest.mark.parametrize("num_workers", [0, 1])
def test_many_micro_batches_do_not_wait_for_their_noise(tmp_path: Path, num_workers: int) -> None:
    """The step begins with the first of them while others are drawn, one after the other."""
    may_go_on, begun = threading.Event(), []

    def draw(rows: Rows) -> int:
        begun.append(rows.after.total)
        assert may_go_on.wait(60)
        return rows.after.total

    with build_loader(scripted(tmp_path, letters(5)), 1, num_workers=num_workers, draw=draw) as loader:
        batches = [next(loader) for _ in range(4)]
        assert begun == [1]
        may_go_on.set()
        assert [drawn(batch, pytest.fail)[1] for batch in batches] == [1, 2, 3, 4]


def test_a_draw_that_fails_is_known_to_who_needs_it(tmp_path: Path) -> None:
    def draw(rows: Rows) -> None:
        raise ArithmeticError("no noise")

    with build_loader(scripted(tmp_path, letters(2)), 1, num_workers=1, draw=draw) as loader:
        batch = next(loader)
        with pytest.raises(ArithmeticError, match="no noise"):
            drawn(batch, pytest.fail)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_evaluation_draws_beside_too(tmp_path: Path, num_workers: int) -> None:
    """Every pass, and its threads end with it, also when it is left early."""
    loader = build_evaluation_loader(scripted(tmp_path, letters(5)), 2, num_workers=num_workers, draw=identity)
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == 3
        assert [drawn(batch, pytest.fail)[1] for batch in batches] == [identity(batch.rows) for batch in batches]
    for batch in loader:
        assert drawn(batch, pytest.fail)[1] == identity(batch.rows)
        break
    del batch
    wait_until(lambda: not beside(), "the threads to end")


def beside() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith(("draw", "read-ahead"))]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_failures_stop_an_evaluation(tmp_path: Path, num_workers: int) -> None:
    dataset = scripted(tmp_path, ["A", "broken-1", "broken-2"], max_failed_share=0.4)
    with pytest.raises(DataError, match="2 of 3 videos failed to decode"):
        list(build_evaluation_loader(dataset, 1, num_workers=num_workers, draw=identity))
    wait_until(lambda: not beside(), "the threads to end")
