"""A training that is killed again and again, at any moment, and resumed each time is the one that was never stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import cogvideox
import pytest
import tiny
import torch

COMMON = (
    "args.train_iters=20",
    "args.save_interval=1",
    "args.keep_last=2",
    "args.lr_schedule=cosine",
    "model.network_config.params.modules.lora_config.params.lora_dropout=0.2",
)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_again_and_again(settings: Path, tmp_path: Path, seed: int) -> None:
    paths = (Path(cogvideox.__file__).parents[1], Path(tiny.__file__).parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(settings), str(tmp_path), str(seed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=850, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    kills = int(done.stdout.splitlines()[-1])
    assert kills >= 4
    (whole,), (killed,) = ((tmp_path / name).iterdir() for name in ("whole", "killed"))
    straight, resumed = tiny.read_states(whole), tiny.read_states(killed)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    optimizers = [
        torch.load(run / "20" / "training_state" / "rank_00000.pt", weights_only=True)["optimizer"]["base"]["state"]
        for run in (whole, killed)
    ]
    for index, state in optimizers[0].items():
        assert all(torch.equal(value, optimizers[1][index][name]) for name, value in state.items())
    assert sorted(path.name for path in killed.iterdir() if path.name.isdecimal()) == ["19", "20"]
    assert not [path.name for path in killed.iterdir() if path.name.startswith(".")]


def _train(settings: str, save: Path, *overrides: str) -> int:
    """Start a training in a child, which has everything imported; its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 2
    try:
        config = load_config([settings], [*COMMON, f"args.save={save}", *overrides], "train")
        Trainer(config, start_process_groups("cpu")).fit()
        status = 0
    finally:
        os._exit(status)


def _starts(save: Path) -> int:
    return sum(file.read_text().count('"owner"') for file in save.glob("*/run.json"))


def _step(save: Path) -> int:
    return max((int(file.read_text()) for file in save.glob("*/latest")), default=0)


def _main(settings: str, folder: Path, seed: int) -> int:
    draw = random.Random(seed)
    _, status = os.waitpid(_train(settings, folder / "whole"), 0)
    assert status == 0, "the training that nobody stops"
    save, kills = folder / "killed", 0
    while True:
        starts, step = _starts(save), _step(save)
        pid = _train(settings, save, *(["args.resume=latest"] if starts else []))
        saves, more, found = draw.randint(0, 5), draw.uniform(0, 0.1), 0
        while not found and (_starts(save) == starts or _step(save) < step + saves):
            time.sleep(0.002)
            found, status = os.waitpid(pid, os.WNOHANG)
        if not found:
            time.sleep(more)
            found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            assert status == 0, f"not resumed after {kills} kills"
            print(kills)
            return 0
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills += 1


if __name__ == "__main__":
    from cogvideox.config.load import load_config
    from cogvideox.parallel.groups import start_process_groups
    from cogvideox.training.trainer import Trainer
    from torch.utils import tensorboard  # noqa: F401  imported once, for all children

    sys.exit(_main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
