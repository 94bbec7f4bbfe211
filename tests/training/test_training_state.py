"""What a process needs to go on is read without trust: one line for every kind of damage, and a way out."""

from __future__ import annotations

import copy
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cogvideox.errors import CheckpointError
from cogvideox.training.training_state import TrainingState, read_state, state_file, write_state
from cogvideox.weights.integrity import FileChecks
from cogvideox.weights.manifest import write_checkpoint_manifest
from cogvideox.weights.sat_folder import STATES_FILE, read_checkpoint, write_states
from safetensors.torch import save_file
from training.toy import build, section, train

WEIGHTS = {"model.diffusion_model.a": torch.arange(300.0), "model.diffusion_model.b": torch.ones(7).bfloat16()}


def trained(stage: int = 0, **extra: Any) -> dict[str, Any]:
    engine = build(section(stage, **extra))
    train(engine, range(1, 3))
    return copy.deepcopy(engine.capture())


@pytest.fixture(scope="module")
def optimizer() -> dict[str, Any]:
    return trained()


@pytest.fixture
def folder(tmp_path: Path, optimizer: dict[str, Any]) -> Path:
    """An iteration folder of two processes, after an earlier one."""
    (tmp_path / "2").mkdir()
    folder = tmp_path / "4"
    folder.mkdir()
    files = [write_states(folder, 4, WEIGHTS, {})]
    files += [write_state(folder, rank, TrainingState(4, 32, "abc", 2, optimizer)) for rank in (0, 1)]
    write_checkpoint_manifest(folder, 4, files)
    return folder


def test_round_trip(folder: Path, optimizer: dict[str, Any]) -> None:
    state = read_state(folder, 1)
    assert (state.step, state.position, state.data, state.processes) == (4, 32, "abc", 2)
    for number, moments in optimizer["base"]["state"].items():
        assert torch.equal(state.optimizer["base"]["state"][number]["exp_avg"], moments["exp_avg"])


def _set(*path: Any) -> Callable[[dict[str, Any]], Any]:
    """The last of `path` becomes the value at the others; without others it replaces everything."""

    def change(content: dict[str, Any]) -> Any:
        *keys, last, value = path
        inner = content
        for key in keys:
            inner = inner[key]
        inner[last] = value
        return content

    return change


def _without(*path: Any) -> Callable[[dict[str, Any]], Any]:
    def change(content: dict[str, Any]) -> Any:
        *keys, last = path
        inner = content
        for key in keys:
            inner = inner[key]
        del inner[last]
        return content

    return change


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a list": (lambda content: [content], r"it holds a list, a dict is expected"),
    "a tensor": (lambda content: torch.ones(3), r"it holds a Tensor"),
    "another format": (_set("format", 2), r"its format is 2, this version reads 1"),
    "no step": (_without("step"), r"'step' is None, a number from 0 is expected"),
    "step -1": (_set("step", -1), r"'step' is -1"),
    "step 1.5": (_set("step", 1.5), r"'step' is 1\.5"),
    "step true": (_set("step", True), r"'step' is True"),
    "a step of tensors": (_set("step", torch.ones(2)), r"'step' is a tensor of torch.float32"),
    "position below 0": (_set("position", -8), r"'position' is -8"),
    "position as text": (_set("position", "8"), r"'position' is a str"),
    "no processes": (_set("processes", 0), r"'processes' is 0, a number from 1"),
    "data": (_set("data", 5), r"'data' is 5, a text is expected"),
    "no optimizer": (_without("optimizer"), r"'optimizer' is a NoneType"),
    "no kind": (_without("optimizer", "kind"), r"'kind' of its optimizer is None, a str is expected"),
    "no base": (_set("optimizer", "base", []), r"'base' of its optimizer is a list, a dict is expected"),
    "masters": (_set("optimizer", "masters", [torch.ones(2, dtype=torch.int64)]), r"a master weight is a tensor"),
    "scale": (_set("optimizer", "loss_scale", {"cur_scale": "x"}), r"the loss scale is no number"),
    "groups": (_set("optimizer", "base", "param_groups", {}), r"'param_groups' of its optimizer is no list"),
    "a group": (_set("optimizer", "base", "param_groups", [{"lr": 1}]), r"'param_groups' of its optimizer is no list"),
    "no state": (_without("optimizer", "base", "state"), r"'state' of its optimizer is no dict"),
    "moments": (_set("optimizer", "base", "state", 0, 3), r"the moments of parameter 0 are no named tensors"),
    "a moment": (_without("optimizer", "base", "state", 0, "exp_avg"), r"the moments of parameter 0"),
    "integers": (
        _set("optimizer", "base", "state", 0, "exp_avg", torch.ones(2, dtype=torch.int32)),
        r"the moments of parameter 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_no_training_state(folder: Path, name: str) -> None:
    change, message = DAMAGES[name]
    file = state_file(folder, 0)
    torch.save(change(torch.load(file, weights_only=True)), file)
    with pytest.raises(CheckpointError, match=rf"args\.resume: .*rank_00000\.pt is no training .*{message}") as caught:
        read_state(folder, 0)
    assert f"resume from an earlier iteration with args.resume={folder.parent / '2'}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:1000]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_text("not a checkpoint"),
        lambda file: file.unlink(),
        lambda file: save_file({"a": torch.ones(2)}, file),
        lambda file: zipfile.ZipFile(file, "w").close(),
    ],
)
def test_files_that_cannot_be_read(folder: Path, damage: Callable[[Path], object]) -> None:
    damage(state_file(folder, 1))
    (folder.parent / "2").rmdir()
    with pytest.raises(CheckpointError, match=r"args\.resume: .*rank_00001\.pt") as caught:
        read_state(folder, 1)
    assert f"start a new run from its weights with args.load={folder}" in str(caught.value)
    assert "\n" not in str(caught.value)


RESTORING: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "shape": (_set("base", "state", 0, "exp_avg", torch.ones(2, 2)), r"exp_avg of parameter 0 has the shape \[2, 2\]"),
    "step": (_set("base", "state", 0, "step", torch.ones(3)), r"step of parameter 0 has the shape \[3\]"),
    "rate": (_set("base", "param_groups", 0, "lr", "x"), r"its lr is 'x', this run's is "),
    "infinite": (_set("base", "param_groups", 0, "weight_decay", float("inf")), r"weight_decay is inf"),
    "betas": (_set("base", "param_groups", 0, "betas", (0.9,)), r"betas is \(0\.9,\), this run's is \(0\.9, 0\.95\)"),
    "groups": (_without("base", "param_groups", 0), r"the optimizer state does not fit this run's trainable weights"),
    "kind": (_set("kind", "Lion"), r"saved by Lion, this run uses"),
}


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("name", RESTORING)
def test_states_that_do_not_fit_the_optimizer(name: str, stage: int) -> None:
    change, message = RESTORING[name]
    state = change(trained(stage))
    with pytest.raises(CheckpointError, match=message) as caught:
        build(section(stage)).restore(state)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["bit", "page"])
def test_damage_anywhere_is_refused_or_without_effect(folder: Path, kind: str) -> None:
    """In every file of a checkpoint: what a resumed run reads is refused, or is what was saved."""
    files = [folder / STATES_FILE, folder / "manifest.json", state_file(folder, 0), state_file(folder, 1)]
    generator, outcomes = random.Random(8), {}
    for file in files:
        good = file.read_bytes()
        for _ in range(40):
            file.write_bytes(damaged(good, kind, generator))
            outcomes.setdefault(file.name, []).append(_resumes(folder))
            file.write_bytes(good)
    assert _resumes(folder)
    for file in files[:1] + files[2:]:
        assert not any(outcomes[file.name]), file
    assert kind == "bit" or not any(outcomes["manifest.json"])


def damaged(good: bytes, kind: str, generator: random.Random) -> bytes:
    """One bit turned, or (up to) a page of zeros where there was something else."""
    bad = bytearray(good)
    if kind == "bit":
        bad[generator.randrange(len(bad))] ^= 1 << generator.randrange(8)
    while bad == good:
        start = generator.randrange(0, len(bad), 512)
        bad[start : start + 4096] = bytes(min(4096, len(bad) - start))
    return bytes(bad)


def _resumes(folder: Path) -> bool:
    """Whether both processes read it without an error; then it has to be what was saved."""
    try:
        with FileChecks([folder / STATES_FILE, state_file(folder, 0), state_file(folder, 1)]) as checks:
            module = read_checkpoint(folder).module
            states = [read_state(folder, rank) for rank in (0, 1)]
            checks.wait()
    except CheckpointError as error:
        assert "\n" not in str(error)
        return False
    assert all(torch.equal(module[name], value) for name, value in WEIGHTS.items())
    assert all((state.step, state.position, state.data) == (4, 32, "abc") for state in states)
    return True
