"""Filling a cache: once for each clip, however many processes do it and whenever they are killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from cogvideox.caching.claims import abandoned, claim
from cogvideox.caching.entries import read_entry
from cogvideox.caching.options import CacheOptions
from cogvideox.config.load import load_config
from cogvideox.data.header_cache import cache_file
from cogvideox.errors import DataError
from processes import run_processes

Fill = Callable[..., None]
Entries = Callable[[str], list[Path]]


def contents(files: list[Path]) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in files}


def test_a_full_cache_is_left_as_it_is(fill: Fill, entries: Entries, caplog: pytest.LogCaptureFixture) -> None:
    fill("2b")
    before = contents(entries("latents"))
    assert len(before) == 6 and len(entries("contexts")) == 6
    with caplog.at_level("INFO", logger="cogvideox"):
        fill("2b")
    assert "0 clips encoded" in caplog.text and "6 were there" in caplog.text
    assert contents(entries("latents")) == before


def test_identical_clips_are_stored_once(fill: Fill, clips: Path, entries: Entries, tmp_path: Path) -> None:
    twice = tmp_path / "twice"
    shutil.copytree(clips, twice)
    for file in sorted(clips.iterdir()):
        shutil.copyfile(file, twice / f"again_{file.name}")
    fill("2b", f"args.train_data=[{twice}]")
    assert len(entries("latents")) == 6


def test_what_cannot_be_read_is_listed_and_training_leaves_it_out(
    fill: Fill,
    train: Callable[..., list[float]],
    clips: Path,
    entries: Entries,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "some"
    shutil.copytree(clips, folder)
    broken = sorted(folder.glob("*.mp4"))[2]
    words = (f"args.train_data=[{folder}]", "data.max_failed_share=0.2", "args.train_iters=4")
    fill("2b", *words, f"args.cache={tmp_path / 'first'}")
    # Damage that the survey's memory doesn't tell of: same size, same time.
    for remembered in (cache_file(str(tmp_path / "cache")), cache_file()):  # with a cache, and without one
        assert remembered is not None
        remembered.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "first" / "headers.sqlite3", remembered)
    stamp = broken.stat()
    broken.write_bytes(bytes(stamp.st_size))
    os.utime(broken, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with caplog.at_level("INFO", logger="cogvideox"):
        fill("2b", *words)
    assert f"no latents of {broken}" in caplog.text and len(entries("latents")) == 5
    assert train("2b", *words) == train("2b", *words, "args.cache=null")
    failed = next((tmp_path / "cache" / "latents").glob("*/*/*.failed"))
    one = entries("latents")[0]
    shutil.copyfile(failed, one.with_suffix(".failed"))  # under another clip's name it leaves nothing out
    one.rename(tmp_path / "kept")
    with pytest.raises(DataError, match="lacks the latents of 1 of 6 clips"):
        train("2b", *words)
    (tmp_path / "kept").rename(one)
    with pytest.raises(DataError, match=r"1 of 6 clips can't be read, more than data.max_failed_share=0.05"):
        fill("2b", words[0], "data.max_failed_share=0.05")


def test_a_claim_has_one_owner_and_dies_with_it(tmp_path: Path) -> None:
    file = tmp_path / "latents" / "r" / "ab" / "abc.safetensors"
    file.parent.mkdir(parents=True)
    left = file.with_name(f"{file.name}.host-1.partial")
    left.write_bytes(b"half")
    first = claim(str(tmp_path), file)
    assert first is not None and claim(str(tmp_path), file) is None
    assert not left.exists(), "what a killed process left goes when somebody makes the entry"
    first.release()
    (tmp_path / "claims" / "dead.lock").write_text("process 1 on host a")
    assert [each.name for each in abandoned(str(tmp_path))] == ["dead.lock"]
    again = claim(str(tmp_path), file)
    assert again is not None
    again.release()
    assert not list((tmp_path / "claims").iterdir())


def test_a_folder_without_permission(fill: Fill) -> None:
    """One in which nobody may write, the superuser neither."""
    with pytest.raises(DataError, match=r"can't be written: (Permission denied|Operation not permitted|Read-only)"):
        fill("2b", "args.cache=/sys/cache")


def test_a_file_where_the_cache_should_be(fill: Fill, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(DataError, match=r"can't be written: Not a directory .*args.cache names another folder"):
        fill("2b")


def test_verify_finds_rot_and_entries_of_other_clips(
    fill: Fill, filled: Callable[[str], None], entries: Entries
) -> None:
    filled("2b")
    fill("2b", verify=6)
    one, other = entries("latents")[:2]
    content = bytearray(one.read_bytes())
    content[-1] ^= 1
    one.write_bytes(content)
    with pytest.raises(DataError, match=rf"1 of 6 entries are wrong:\n{one} is damaged"):
        fill("2b", verify=6)
    one.unlink()
    fill("2b")
    shutil.copyfile(other, one)
    with pytest.raises(DataError, match=rf"1 of 6 entries are wrong:\n{one} is damaged .*another entry, {other.stem}"):
        fill("2b", verify=6)
    one.unlink()
    fill("2b")
    kept, key = read_entry(other, other.stem), other.stem
    from cogvideox.caching.entries import write_entry

    write_entry(other, {**kept.tensors, "mean": -kept.tensors["mean"]}, {**kept.facts, "key": key})
    with pytest.raises(DataError, match=rf"{other}: holds something else"):
        fill("2b", verify=6)


def test_damage_is_found_when_training_reads(
    filled: Callable[[str], None], train: Callable[..., list[float]], entries: Entries, caplog: pytest.LogCaptureFixture
) -> None:
    filled("2b")
    for file in entries("latents"):
        content = bytearray(file.read_bytes())
        content[-5] ^= 64
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"is damaged \(its checksum is wrong\): remove it"):
        train("2b")


def test_stat_and_prune(
    fill: Fill,
    filled: Callable[[str], None],
    clips: Path,
    entries: Entries,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled("2b")
    fill("2b", "args.cache_dtype=bf16")
    half = tmp_path / "half"
    half.mkdir()
    for file in sorted(clips.glob("*.mp4"))[:3]:
        shutil.copy2(file, half)
        shutil.copy2(file.with_suffix(".txt"), half)
    fill("2b", stat=True)
    text = capsys.readouterr().out
    assert text.count("6 entries") == 3 and text.count("(another configuration)") == 1 and "3d-vae.pt" in text
    kept, words = contents([*entries("latents"), *entries("contexts")]), f"args.train_data=[{half}]"
    fill("2b", words, prune=True)
    assert "with --yes they are" in capsys.readouterr().out
    assert contents([*entries("latents"), *entries("contexts")]) == kept
    fill("2b", words, prune=True, yes=True)
    assert len(entries("latents")) == 6 + 3 and len(entries("contexts")) <= 3
    fill("2b", words, verify=3)


# -- processes ---------------------------------------------------------------------------------------------------------


def _start(settings: Path, cache: Path) -> int:
    """Fill a cache in a fork, which has everything imported; its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 2
    try:
        words = [f"args.cache={cache}", "args.mode=pretrain", "args.load=null"]
        from cogvideox.training.fill_cache import run_cache_command

        run_cache_command(load_config([str(settings)], words, "train"), CacheOptions())
        status = 0
    except BaseException:  # noqa: BLE001 (the process ends here, and says why)
        _errors(cache).write_text(traceback.format_exc(), encoding="utf-8")
    finally:
        os._exit(status)


def _errors(cache: Path) -> Path:
    return cache.with_suffix(".error")


def _wait(pids: list[int], cache: Path) -> None:
    """Until all have ended well."""
    ends = [os.waitpid(pid, 0)[1] for pid in pids]
    assert ends == [0] * len(pids), _errors(cache).read_text(encoding="utf-8") if _errors(cache).exists() else ends


def _entries(folder: Path) -> dict[str, tuple[dict[str, str], dict[str, list[float]]]]:
    """What is in a cache; safetensors writes metadata in any order."""
    found = {file.stem: read_entry(file, file.stem) for file in folder.glob("*/*/*/*.safetensors")}
    return {
        key: (each.facts, {n: v.flatten().tolist() for n, v in each.tensors.items()}) for key, each in found.items()
    }


def _two_fill_one_cache_and_are_killed(settings: Path, folder: Path, kills: int) -> None:
    """Runs in a process without threads, which may fork."""
    both, alone, left = folder / "both", folder / "alone", folder / "killed"
    begun = time.monotonic()
    _wait([_start(settings, alone)], alone)
    took = time.monotonic() - begun
    expected = _entries(alone)
    _wait([_start(settings, both) for _ in range(2)], both)
    assert _entries(both) == expected and len(expected) == 12

    draw, killed = random.Random(7), 0
    while killed < kills:
        pids = [_start(settings, left) for _ in range(draw.choice((1, 1, 2)))]
        time.sleep(draw.uniform(0, took))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        there = _entries(left)
        assert all(expected[key] == each for key, each in there.items()), f"after {killed} kills"
        if len(there) == len(expected):
            shutil.rmtree(left)
    _wait([_start(settings, left)], left)
    assert _entries(left) == expected
    assert not list(left.glob("**/*.partial")) and not list(left.glob("claims/*"))


@pytest.mark.timeout(600)
def test_two_fill_one_cache_and_are_killed(settings_of: Callable[[str], Path], tmp_path: Path) -> None:
    run_processes(_two_fill_one_cache_and_are_killed, 1, settings_of("2b"), tmp_path, 2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_a_hundred_times(settings_of: Callable[[str], Path], tmp_path: Path) -> None:
    run_processes(_two_fill_one_cache_and_are_killed, 1, settings_of("2b"), tmp_path, 100, timeout_s=850)
