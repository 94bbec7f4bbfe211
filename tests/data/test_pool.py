"""Decoding that hangs, crashes or errs, in processes and in this one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cogvideox.data.clips import ClipDecoder, ProbeJob, ReadDone, ReadJob
from cogvideox.data.decode import ClipInfo
from cogvideox.data.media import Media
from cogvideox.data.pool import ProcessPool, Task, open_pool
from cogvideox.data.timing import ClipSpec
from cogvideox.errors import DataError
from data.fake_readers import ScriptedReader

SPEC = ClipSpec((8, 8), 8, 5)
# Never reached by honest jobs, however busy the machine: clocks are moved on instead.
TIMEOUT_S = 600.0


def run(pool: object, folder: Path, names: list[str]) -> dict[object, object]:
    for name in names:
        into = {"video": torch.zeros(5, 3, 8, 8, dtype=torch.uint8)}
        pool.submit(Task(name, ReadJob(Media(str(folder / name)), 1, SPEC.bucket, 0, 0), into))  # type: ignore[attr-defined]
    return dict(pool.next_result() for _ in names)  # type: ignore[attr-defined]


def reasons(results: dict[object, object], folder: Path) -> dict[object, str]:
    return {name: result.reason.removeprefix(f"{folder}/{name}: ") for name, result in results.items()}  # type: ignore[attr-defined]


def test_every_job_comes_back_from_processes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pool = open_pool(ClipDecoder(SPEC, ScriptedReader()), 2, TIMEOUT_S)
    try:
        results = run(pool, tmp_path, ["a", "broken", "bug", "b", "crash", "c"])
        assert {results.pop(name) for name in "abc"} == {ReadDone("scripted")}
        assert reasons(results, tmp_path) == {
            "broken": "broken on purpose",
            "crash": "the decoding process died with status 3",
            "bug": "the decoding process died with status 1",
        }
        assert "a mistake in a reader" in capfd.readouterr().err
        # And it goes on after all that.
        assert run(pool, tmp_path, ["d"]) == {"d": ReadDone("scripted")}
    finally:
        pool.close()


def test_a_process_that_hangs_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, real = tmp_path / "hang.reads", time.monotonic
    monkeypatch.setattr("cogvideox.data.pool.time.monotonic", lambda: real() + 1000 * started.exists())
    pool = open_pool(ClipDecoder(SPEC, ScriptedReader()), 1, TIMEOUT_S)
    try:
        results = run(pool, tmp_path, ["a", "hang", "b"])
    finally:
        pool.close()
    assert results.pop("a") == results.pop("b") == ReadDone("scripted")
    assert reasons(results, tmp_path) == {"hang": "not decoded within clip_timeout_s=600 s"}


def test_every_job_comes_back_without_processes(tmp_path: Path) -> None:
    decoder = ClipDecoder(SPEC, ScriptedReader())
    pool = open_pool(decoder, 0, TIMEOUT_S)
    results = run(pool, tmp_path, ["a", "broken", "b"])
    assert results.pop("a") == results.pop("b") == ReadDone("scripted")
    assert reasons(results, tmp_path) == {"broken": "broken on purpose"}
    results = run(open_pool(decoder, 0, 0.3), tmp_path, ["hang"])
    assert reasons(results, tmp_path) == {"hang": "not decoded within clip_timeout_s=0.3 s"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_mistake_in_a_reader_is_a_failure_without_processes(tmp_path: Path) -> None:
    results = run(open_pool(ClipDecoder(SPEC, ScriptedReader()), 0, TIMEOUT_S), tmp_path, ["bug"])
    assert reasons(results, tmp_path) == {"bug": "the decoder failed, see the traceback above"}


def test_clips_arrive_in_their_memory(tmp_path: Path) -> None:
    batch = torch.zeros(2, 5, 3, 8, 8, dtype=torch.uint8)
    pool = open_pool(ClipDecoder(SPEC, ScriptedReader()), 1, TIMEOUT_S)
    try:
        pool.submit(Task(0, ProbeJob(Media(str(tmp_path / "x")))))
        for row, name in enumerate("pq"):
            pool.submit(
                Task(row + 1, ReadJob(Media(str(tmp_path / name)), 1, SPEC.bucket, 0, 0), {"video": batch[row]})
            )
        results = dict(result for result in (pool.next_result() for _ in range(3)) if result)
    finally:
        pool.close()
    info = results[0]
    assert isinstance(info, ClipInfo) and (info.width, info.height, info.num_frames, info.fps) == (16, 16, 49, 8.0)
    assert batch[0].unique().tolist() == [ord("p")] and batch[1].unique().tolist() == [ord("q")]


def test_processes_end_with_the_pool_and_with_the_parent(tmp_path: Path) -> None:
    pool = ProcessPool(ClipDecoder(SPEC, ScriptedReader()), 1, TIMEOUT_S)
    run(pool, tmp_path, ["x"])
    pid = pool._processes[0]._process.pid
    pool.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    # A parent that is killed while its worker hangs in a decoder.
    script = (
        "import os, sys, torch\n"
        "from data.fake_readers import ScriptedReader\n"
        "from cogvideox.data.clips import *\nfrom cogvideox.data.pool import *\n"
        "from cogvideox.data.media import Media\nfrom cogvideox.data.timing import ClipSpec\n"
        "pool = ProcessPool(ClipDecoder(ClipSpec((8, 8), 8, 5), ScriptedReader()), 1, 600.0)\n"
        "into, bucket = {'video': torch.zeros(5, 3, 8, 8, dtype=torch.uint8)}, ClipSpec((8, 8), 8, 5).bucket\n"
        "[pool.submit(Task(n, ReadJob(Media(sys.argv[1] + n), 1, bucket, 0, 0), into)) for n in ('x', 'hang')]\n"
        "pool.next_result(); pool._hand_out()\n"
        "print(pool._processes[0]._process.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    command = [sys.executable, "-c", script, str(tmp_path / "orphan-")]
    orphan = int(subprocess.run(command, env=environment, capture_output=True, check=False).stdout)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.kill(orphan, 0)
        except ProcessLookupError:
            return
        if "Z" in Path(f"/proc/{orphan}/stat").read_text().rpartition(")")[2].split()[0]:
            return  # dead, and nobody in this container collects orphans
        time.sleep(0.2)
    pytest.fail("the worker outlived its parent")


def test_workers_do_not_import_the_heavy_packages(tmp_path: Path) -> None:
    heavy = ("sat", "deepspeed", "transformers", "omegaconf", "decord", "pyarrow")
    code = f"import sys, cogvideox.data.worker; print([name for name in {heavy} if name in sys.modules])"
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path), PYTHONSAFEPATH="1")
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert result.stdout.strip() == "[]"


def test_a_worker_that_can_not_start_is_said_at_once() -> None:
    class Local(ScriptedReader):
        """Not importable in another process."""

    Local.__qualname__ = "Nowhere"
    Local.__module__ = "data.fake_readers"
    import data.fake_readers as module

    module.Nowhere = Local  # type: ignore[attr-defined]
    pool = open_pool(ClipDecoder(SPEC, Local()), 1, TIMEOUT_S)
    del module.Nowhere  # type: ignore[attr-defined]
    try:
        pool.submit(Task(0, ProbeJob(Media("x"))))
        with pytest.raises(RuntimeError, match=r"a decoding process could not start \(exit status 1\)"):
            pool.next_result()
    finally:
        pool.close()


def test_stop_waiting_ends_a_wait() -> None:
    pool = ProcessPool(ClipDecoder(SPEC, ScriptedReader()), 1, 600.0)
    pool.stop_waiting()
    assert pool.next_result() is None
    pool.close()


@pytest.mark.parametrize(
    ("arguments", "message"), [((-1, 1.0), "num_workers is -1"), ((0, 0.0), "clip_timeout_s is 0.0")]
)
def test_refused(arguments: tuple[int, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_pool(ClipDecoder(SPEC, ScriptedReader()), *arguments)
