"""Whose a run folder is, which is the newest, and which of its checkpoints is taken."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
from cogvideox.errors import CheckpointError
from cogvideox.weights.runs import find_runs, find_weights, newest_iteration, read_run, record_start, whole_iterations

ME = "process 1 on host a"


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("cogvideox"), "propagate", True)
    caplog.set_level("INFO", logger="cogvideox")
    return caplog


def checkpoint(run: Path, iteration: int | str, *, state: bool = True, at: int = 0) -> Path:
    """A checkpoint by its names; the newest of the run's, unless `at` gives its time in seconds."""
    folder = run / str(iteration)
    folder.mkdir(parents=True)
    weights = folder / "mp_rank_00_model_states.pt"
    weights.touch()
    if state:
        (folder / "training_state").mkdir()
        (folder / "training_state" / "rank_00000.pt").touch()
    (run / "latest").write_text(str(iteration))
    for file in (weights, run / "latest") if at else ():
        os.utime(file, (at, at))
    return folder


def old_run(save: Path, name: str, at: int, *iterations: int) -> Path:
    """A run folder without a record, as versions before wrote it."""
    run = save / name
    run.mkdir()
    for iteration in iterations:
        checkpoint(run, iteration, at=at)
    config = run / "training_config.yaml"
    config.touch()
    os.utime(config, (at, at))
    return run


def new_run(save: Path, name: str, experiment: str, *iterations: int) -> Path:
    run = save / name
    run.mkdir()
    record_start(run, experiment, 0, ME)
    for iteration in iterations:
        checkpoint(run, iteration)
    return run


def names(save: Path, experiment: str | None) -> list[str]:
    return [run.folder.name for run in find_runs(save, experiment)]


@pytest.mark.parametrize("name", ["style", "style-v2", "st*", "[a-z]*", "?tyle", "style-06-01-12-00", "a b", "stil-ü"])
def test_only_runs_of_the_experiment_count(tmp_path: Path, name: str) -> None:
    others = ["style", "style-v2", "st*", "[a-z]*", "?tyle", "style-06-01-12-00", "a b", "stil-ü", "sty", "xstyle"]
    for number, each in enumerate(others):
        old_run(tmp_path, f"{each}-06-02-13-0{number}", 1000 + number, 1)
        new_run(tmp_path, f"{each}-06-03-14-0{number}-2", each, 1)
    number = others.index(name)
    assert names(tmp_path, name) == [f"{name}-06-03-14-0{number}-2", f"{name}-06-02-13-0{number}"]
    assert len(names(tmp_path, None)) == 2 * len(others)


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    for name in ("style-notes", "style-06-01-12", "merged", "style-06-01-12-00-copy"):
        old_run(tmp_path, name, 1000, 1)
    (tmp_path / "style-06-01-12-00").mkdir()
    (tmp_path / "style-06-01-12-01").write_text("a file")
    assert names(tmp_path, "style") == names(tmp_path, None) == []
    assert names(tmp_path / "nowhere", "style") == []
    assert read_run(tmp_path / "style-06-01-12-00") is None


def test_the_newest_is_the_one_started_or_resumed_last(tmp_path: Path) -> None:
    first = new_run(tmp_path, "a-06-01-12-00", "a", 1)
    second = new_run(tmp_path, "a-06-02-12-00", "a", 1)
    assert names(tmp_path, "a") == [second.name, first.name]
    record_start(first, "a", 1, ME)
    assert names(tmp_path, "a") == [first.name, second.name]
    record = json.loads((first / "run.json").read_text())
    assert [start["step"] for start in record["starts"]] == [0, 1] and record["starts"][0]["owner"] == ME


def test_a_record_follows_its_folder(tmp_path: Path) -> None:
    run = new_run(tmp_path, "a-06-01-12-00", "a", 1)
    copy = tmp_path / "copy of a"
    copy.mkdir()
    (copy / "run.json").write_text((run / "run.json").read_text())
    assert names(tmp_path, "a") == [run.name, copy.name]
    run.rename(tmp_path / "renamed")
    assert sorted(names(tmp_path, "a")) == [copy.name, "renamed"]


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"experiment": 3}', '{"experiment": "b", "starts": [1]}', "\0ÿ"])
def test_a_damaged_record_leaves_the_name(tmp_path: Path, text: str) -> None:
    run = old_run(tmp_path, "a-06-01-12-00", 1000, 1)
    (run / "run.json").write_text(text, encoding="latin-1")
    assert names(tmp_path, "a") == [run.name] and names(tmp_path, "b") == []


def test_the_checkpoint_that_latest_names(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "a-06-01-12-00"
    for iteration in (2, 10, "10-ema"):
        checkpoint(run, iteration)
    assert list(whole_iterations(run)) == [2, 10]
    assert newest_iteration(run) == run / "10-ema"
    (run / "latest").write_text("\ufeff2\n", encoding="utf-8")  # put there by a person, after 10 was written
    assert newest_iteration(run) == run / "2"
    assert not said.text


def test_a_save_that_was_killed_before_it_wrote_latest(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "a-06-01-12-00"
    for iteration in (2, 4):
        checkpoint(run, iteration)
    (run / "latest").write_text("2")
    os.utime(run / "latest", (1000, 1000))
    assert newest_iteration(run) == run / "4"
    assert "latest names 2, but 4 was saved after it and is whole: taking that" in said.text


@pytest.mark.parametrize("text", ["4", "", "../4", "x" * 5000, "4\n2", "\x00"])
def test_latest_that_names_nothing(tmp_path: Path, said: pytest.LogCaptureFixture, text: str) -> None:
    run = tmp_path / "a-06-01-12-00"
    for iteration in (1, 2):
        checkpoint(run, iteration)
    (run / "4").mkdir()
    (run / "latest").write_text(text)
    assert newest_iteration(run) == run / "2"
    assert "taking 2, the newest" in said.text and len(said.records) == 1


def test_checkpoints_without_the_state_of_training(tmp_path: Path) -> None:
    run = tmp_path / "a-06-01-12-00"
    checkpoint(run, 1)
    checkpoint(run, 2, state=False)
    assert newest_iteration(run) == run / "2"
    assert newest_iteration(run, with_state=True) == run / "1"
    assert newest_iteration(tmp_path) is None


def test_what_load_means(tmp_path: Path, said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    older = new_run(tmp_path, "style-06-01-12-00", "style", 2, 4)
    newer = new_run(tmp_path, "style-06-02-12-00", "style")
    other = old_run(tmp_path, "other-06-01-12-00", 1000, 7)
    save = str(tmp_path)
    assert find_weights("style", save) == older / "4"
    assert f"{newer} has no checkpoint: looking at the run before it" in said.text
    assert f"args.load: style is {older / '4'}" in said.text
    assert find_weights("latest", save) == find_weights("latest", save, "style") == older / "4"
    assert find_weights("latest", save, "other") == find_weights(str(other), save) == other / "7"
    published = tmp_path / "published"
    checkpoint(published, 1, state=False)
    for path in (published, published / "1", older / "2", older / "2" / "mp_rank_00_model_states.pt"):
        assert find_weights(str(path), save) == path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "style").mkdir()  # what is there goes before a name
    assert find_weights("style", save) == Path("style")


def test_load_that_means_nothing(tmp_path: Path) -> None:
    save = str(tmp_path)
    with pytest.raises(CheckpointError, match=r"^args\.load: latest, but \S+ holds no run$"):
        find_weights("latest", save)
    new_run(tmp_path, "style-06-02-12-00", "style")
    new_run(tmp_path, "other-06-02-12-00", "other", 1)
    with pytest.raises(CheckpointError, match=r"sty: no such file or folder, and \S+ holds no run of 'sty'; there are"):
        find_weights("sty", save)
    with pytest.raises(CheckpointError, match=r"holds no run of 'style' with a checkpoint; there are runs of other$"):
        find_weights("style", save)
