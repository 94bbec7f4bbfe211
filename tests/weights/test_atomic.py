"""Folders appear whole or not at all, also with two runs at once, failing disks, links and Ctrl-C."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cogvideox
import pytest
from cogvideox.errors import CheckpointError
from cogvideox.weights import atomic
from cogvideox.weights.atomic import (
    abandon_folder,
    begin_folder,
    commit_folder,
    new_folder,
    readable_size,
    write_text_atomically,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(final: Path, text: str, *, overwrite: bool = False) -> None:
    with new_folder(final, 1, overwrite=overwrite) as partial:
        (partial / "file").write_text(text)


def fail_at(monkeypatch: pytest.MonkeyPatch, method: str, error: BaseException, when: str) -> None:
    """Let one call of a method of Path fail: that on a path whose name ends so."""
    real = getattr(Path, method)

    def call(path: Path, *arguments: Any) -> Any:
        if path.name.endswith(when):
            raise error
        return real(path, *arguments)

    monkeypatch.setattr(Path, method, call)


def test_a_folder_appears_whole_and_alone(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "out"
    with new_folder(final, 1) as partial:
        assert not final.exists()
        (partial / "file").write_text("new")
    assert (final / "file").read_text() == "new"
    assert names(final.parent) == ["out"]
    write(final, "newer", overwrite=True)
    assert (final / "file").read_text() == "newer"
    assert names(final.parent) == ["out"]


def test_a_failed_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out", 1) as partial:
        (partial / "file").write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_two_runs_on_one_output(tmp_path: Path) -> None:
    """The second would delete, and let the first publish, a half-written folder."""
    final = tmp_path / "out"
    partial = begin_folder(final, 1)
    (partial / "file").write_text("first")
    with pytest.raises(CheckpointError, match=rf"another process is writing .*out \(process {os.getpid()} on host "):
        begin_folder(final, 1)
    other = in_another_process(final)
    assert other.returncode == 2 and f"(process {os.getpid()} on host " in other.stdout
    assert "wait for it, or name another place" in other.stdout
    assert names(tmp_path) == [".out.lock", ".out.partial"]
    commit_folder(partial, final)
    abandon_folder(partial)  # too late to do anything
    assert (final / "file").read_text() == "first"
    assert names(tmp_path) == ["out"]
    assert "exists and is not empty" in in_another_process(final).stdout


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    killed = in_another_process(tmp_path / "out", "kill")
    assert killed.returncode == -signal.SIGKILL
    assert names(tmp_path) == [".out.lock", ".out.partial"]
    write(tmp_path / "out", "second")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["file"]


@pytest.mark.parametrize("renames", [1, 2])
def test_a_kill_around_the_second_rename_of_a_replacement(tmp_path: Path, renames: int) -> None:
    """One folder is whole at every moment: the old one is brought back, or the new one stays."""
    write(tmp_path / "out", "old")
    killed = in_another_process(tmp_path / "out", "kill", renames)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "out").exists() == (renames == 2) and (tmp_path / ".out.replaced" / "file").read_text() == "old"
    with pytest.raises(CheckpointError, match="out exists and is not empty"):
        begin_folder(tmp_path / "out", 1)
    assert names(tmp_path / "out") == (["file"] if renames == 1 else ["half"])
    write(tmp_path / "out", "newer", overwrite=True)
    assert names(tmp_path) == ["out"]


def test_an_output_that_comes_while_waiting_for_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = atomic._lock

    def slow(partial: Path, final: Path) -> None:
        final.mkdir()
        (final / "file").write_text("of another")
        real(partial, final)

    monkeypatch.setattr(atomic, "_lock", slow)
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        begin_folder(tmp_path / "out", 1)
    assert names(tmp_path) == ["out"]


def test_disks_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    write(tmp_path / "out", "new")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (2**10 * 412, "412 KiB"), (2**20 * 1.5, "1.5 MiB"), (2**30 * 11.04, "11 GiB")],
)
def test_sizes_for_people(num_bytes: float, text: str) -> None:
    assert readable_size(num_bytes) == text
    assert readable_size(num_bytes * 2**40).endswith("TiB") or num_bytes == 0


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """As on a disk with so much space: a write beyond it fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_block_that_runs_out_of_space(tmp_path: Path) -> None:
    with (
        largest_file(1000),
        pytest.raises(
            CheckpointError, match=r"writing .*/\.out\.partial failed: File too large; 1\.95 KiB needed, .* free"
        ),
        new_folder(tmp_path / "out", 2000) as partial,
    ):
        (partial / "file").write_bytes(bytes(2000))
    assert names(tmp_path) == []


def test_a_block_that_can_not_read_its_source(tmp_path: Path) -> None:
    with (
        pytest.raises(CheckpointError, match=r"^\S*/gone: No such file or directory$"),
        new_folder(tmp_path / "out", 1),
    ):
        (tmp_path / "gone").read_bytes()
    assert names(tmp_path) == []


FULL = r"writing .*out failed: No space left on device; 1 bytes needed, [\d.]+ \w+ free on the disk of \S+; nothing was"


@pytest.mark.parametrize("where", ["fsync", "rename"])
def test_a_failing_disk_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    error = OSError(errno.ENOSPC, "No space left on device")
    if where == "rename":
        fail_at(monkeypatch, "rename", error, ".out.partial")
    else:
        monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(error))
    with pytest.raises(CheckpointError, match=FULL):
        write(tmp_path / "out", "new")
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_the_old_folder_comes_back_when_the_new_one_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    write(tmp_path / "out", "old")
    fail_at(monkeypatch, "rename", error, ".out.partial")
    with pytest.raises((CheckpointError, KeyboardInterrupt)):
        write(tmp_path / "out", "new", overwrite=True)
    assert (tmp_path / "out" / "file").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_link_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a folder on a large disk, say."""
    (tmp_path / "large" / "out").mkdir(parents=True)
    (tmp_path / "small").mkdir()
    link = tmp_path / "small" / "out"
    link.symlink_to(tmp_path / "large" / "out")
    asked = []
    real = atomic.check_writable
    monkeypatch.setattr(atomic, "check_writable", lambda folder, size: (asked.append(folder), real(folder, size)))
    with new_folder(link, 1) as partial:
        assert partial.parent == tmp_path / "large"
        (partial / "file").write_text("new")
    assert asked == [tmp_path / "large"]
    assert link.is_symlink()
    assert (link / "file").read_text() == "new"
    assert names(tmp_path / "small") == names(tmp_path / "large") == ["out"]


def test_a_link_to_nowhere(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"out is a link to .*gone, which is not there: make it, or remove the"):
        begin_folder(tmp_path / "out", 1)
    assert names(tmp_path) == ["out"]


def test_a_text_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text_atomically(tmp_path / "latest", "1")
    error = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(error))
    with pytest.raises(
        CheckpointError, match=r"latest failed: No space left on device; 1 bytes needed, [\d.]+ \w+ free"
    ):
        write_text_atomically(tmp_path / "latest", "2")
    assert (tmp_path / "latest").read_text() == "1"
    assert names(tmp_path) == ["latest"]


def in_another_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """This file as a script."""
    environment = os.environ | {"PYTHONPATH": str(Path(cogvideox.__file__).parents[1])}
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def _main(final: Path, *, kill: bool, renames: int) -> int:
    """Write a folder; `kill` ends the process when the folder is half, or after so many renames of its replacement."""
    try:
        partial = begin_folder(final, 1, overwrite=renames > 0)
    except CheckpointError as error:
        print(error)
        return 2
    (partial / "half").write_text("x")
    if kill and not renames:
        os.kill(os.getpid(), signal.SIGKILL)
    real, done = Path.rename, []

    def rename(path: Path, target: Path) -> Path:
        done.append(real(path, target))
        if len(done) == renames:
            os.kill(os.getpid(), signal.SIGKILL)
        return done[-1]

    Path.rename = rename  # type: ignore[method-assign, assignment]
    commit_folder(partial, final)
    return 0


def test_a_place_of_the_system_is_no_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc and the like say that they have no bytes at all."""
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: namedtuple("usage", "total used free")(0, 0, 0))
    with pytest.raises(CheckpointError, match=rf"cannot write to {tmp_path}/out: {tmp_path} belongs to the system"):
        atomic.check_writable(tmp_path / "out", 0)


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), kill="kill" in sys.argv, renames=int((sys.argv[3:] or ["0"])[0])))
