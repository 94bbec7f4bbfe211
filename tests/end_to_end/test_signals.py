"""A run that is asked to stop saves what it has, says where, and goes on from there with the command that it prints."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny
import train_video
from cogvideox import stopping
from cogvideox.errors import run_cli
from cogvideox.training import checkpoint
from programs import SAMPLE, TRAIN, started, wait_until

LONG = ("args.train_iters=100000", "args.num_workers=0")
# A preview of 1000 steps takes long enough to be met.
PREVIEW = ("args.eval_prompts=['a red square moves up']", "args.sample_steps=1000")
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


def newest_run(save: Path) -> Path | None:
    return next(iter(save.glob("tiny-*")), None)


def steps_of(save: Path) -> int:
    """How many steps the run has logged."""
    run = newest_run(save)
    file = None if run is None else run / "metrics.jsonl"
    return 0 if file is None or not file.exists() else file.read_text().count("train_loss")


@pytest.fixture
def interrupt(settings: Path, tmp_path: Path, capfd: Any) -> Callable[..., tuple[int, str]]:
    """Train in this process and send it a signal as soon as `event` holds; status and what was written."""

    def run(number: signal.Signals, event: Callable[[], object], *overrides: str) -> tuple[int, str]:
        def send() -> None:
            wait_until(event, "the event")
            os.kill(os.getpid(), number)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        arguments = ["--base", str(settings), f"args.save={tmp_path / 'runs'}", *LONG, *overrides]
        status = run_cli(train_video.main, arguments)
        sender.join()
        return status, capfd.readouterr().err

    return run


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_training(interrupt, tmp_path, number):
    status, written = interrupt(number, lambda: steps_of(tmp_path / "runs") >= 2)
    assert status == 75
    run = newest_run(tmp_path / "runs")
    step = int((run / "latest").read_text())
    assert step >= 2 and (run / str(step) / "training_state").is_dir()
    assert len([line for line in tiny.read_lines(run) if "train_loss" in line]) == step
    said = re.search(
        r"^interrupted \((\w+)\); step (\d+) of 100000 is finished and saved in (.*); go on with:", written, re.M
    )
    assert said is not None and said.groups() == (number.name, str(step), str(run / str(step)))


def test_the_printed_command_goes_on(interrupt, settings, tmp_path):
    _, written = interrupt(signal.SIGTERM, lambda: steps_of(tmp_path / "runs") >= 1)
    words = shlex.split(written.rpartition("go on with:\n")[2])
    run = newest_run(tmp_path / "runs")
    step = int((run / "latest").read_text())
    assert words[:2] == ["bash", words[1]] and words[1].endswith("finetune_single_gpu.sh")
    assert run_cli(train_video.main, ["--base", *words[2:], f"args.train_iters={step + 1}"]) == 0
    assert (run / "latest").read_text() == str(step + 1)


def test_a_signal_in_a_preview_before_the_first_step(interrupt, tmp_path):
    save = tmp_path / "runs"  # TensorBoard's file is opened before the first preview, and behind all that is loaded
    status, written = interrupt(signal.SIGTERM, lambda: list(save.glob("*/tensorboard/*")), *PREVIEW)
    assert status == 128 + signal.SIGTERM
    assert "interrupted (SIGTERM); no step was finished, nothing was saved" in written
    assert not list((tmp_path / "runs").rglob("*.mp4")) and not (newest_run(tmp_path / "runs") / "latest").exists()


def test_a_signal_in_a_preview_after_some_steps(interrupt, tmp_path):
    """The first preview has three steps, so that the run gets past it; the second one would take long."""
    overrides = (*PREVIEW, "args.sample_steps=1000", "args.eval_interval=2")
    status, written = interrupt(signal.SIGINT, lambda: steps_of(tmp_path / "runs") >= 2, *overrides)
    assert status == 75 and "step 2 of 100000 is finished and saved" in written
    assert not (newest_run(tmp_path / "runs") / "samples" / "2").exists()


@pytest.mark.parametrize("part", ["write_states", "write_state", "write_checkpoint_manifest", "commit_iteration"])
def test_a_signal_in_the_middle_of_a_save(interrupt, settings, tmp_path, monkeypatch, part):
    """The save is finished as if nothing had come, and not begun again: one whole checkpoint, which goes on."""
    saving, calls = threading.Event(), []
    real = getattr(checkpoint, part)

    def slow(*arguments: Any) -> Any:
        calls.append(part)
        saving.set()
        wait_until(stopping.requested, "the signal")
        return real(*arguments)

    monkeypatch.setattr(checkpoint, part, slow)
    status, written = interrupt(signal.SIGTERM, saving.is_set, "args.save_interval=2")
    run = newest_run(tmp_path / "runs")
    assert status == 75 and "step 2 of 100000 is finished and saved" in written
    assert calls == [part] and (run / "latest").read_text() == "2"
    assert sorted(each.name for each in run.iterdir() if each.is_dir()) == ["2", "tensorboard"]
    monkeypatch.undo()
    resumed = ["--base", str(settings), f"args.save={tmp_path / 'runs'}", f"args.resume={run}", "args.train_iters=3"]
    assert run_cli(train_video.main, resumed) == 0 and (run / "latest").read_text() == "3"


def test_a_signal_while_loading_ends_at_once(interrupt, tmp_path, monkeypatch):
    """Nothing has been written, so there is nothing to wait for."""
    from cogvideox.training import starting_weights

    loading = threading.Event()

    def hang(*_: object, bases: object) -> None:
        loading.set()
        threading.Event().wait(200)

    monkeypatch.setattr(starting_weights, "load_transformer", hang)
    status, written = interrupt(signal.SIGTERM, loading.is_set)
    assert status == 128 + signal.SIGTERM and "interrupted (SIGTERM); nothing was saved" in written
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def training(settings: Path, tmp_path: Path) -> list[str]:
    """The words that start a long training."""
    return [TRAIN, "--base", str(settings), f"args.save={tmp_path / 'runs'}", *LONG]


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["launcher", "rank 0", "rank 1"])
@pytest.mark.parametrize("number", SIGNALS)
def test_two_processes_stop_together(training, tmp_path, number, whom):
    with started(tmp_path, *training, processes=2) as program:
        program.wait_for("step 3/")
        ranks = program.ranks()
        assert len(ranks) == 2
        receiver = {"launcher": program.process, "rank 0": ranks[0], "rank 1": ranks[1]}[whom]
        receiver.send_signal(number)
        assert program.status() == 75
        assert program.output.count("interrupted (") == 1 and "Traceback" not in program.output
        run = newest_run(tmp_path / "runs")
        step = (run / "latest").read_text()
        assert f"step {step} of 100000 is finished and saved in {run / step}" in program.output
        assert "NPROC=2 bash" in program.output


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [PREVIEW, ("args.eval_prompts=['a','b','red']", "args.sample_steps=1000")])
def test_two_processes_leave_a_preview_together(training, tmp_path, overrides):
    """With one prompt, the second process waits for the first one."""
    with started(tmp_path, *training, *overrides, processes=2) as program:
        program.wait_for("run folder")
        program.ranks()[1].send_signal(signal.SIGTERM)
        assert program.status() == 128 + signal.SIGTERM
        assert program.output.count("nothing was saved") == 1 and program.output.count("interrupted (") == 1
        assert "Traceback" not in program.output


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [None, TORCHRUN], ids=["ours", "torchrun"])
def test_ranks_end_with_their_killed_launcher(training, tmp_path, launcher):
    with started(tmp_path, *training, processes=2, launcher=launcher) as program:
        program.wait_for("step 3/")
        ranks = program.ranks()
        program.process.kill()
        wait_until(lambda: not any(rank.is_running() for rank in ranks), "the end of both")
        assert "interrupted (its launcher has ended)" in program.output
        assert (newest_run(tmp_path / "runs") / "latest").exists()


@pytest.mark.slow
def test_torchrun_passes_the_signal_on(training, tmp_path):
    with started(tmp_path, *training, processes=2, launcher=TORCHRUN) as program:
        program.wait_for("step 3/")
        program.process.terminate()
        assert program.status() != 0
        assert "is finished and saved in" in program.output
        assert (newest_run(tmp_path / "runs") / "latest").exists()


@pytest.mark.slow
def test_a_run_outlives_the_shell_that_started_it(settings, tmp_path):
    """nohup and `&`: no launcher waits for it, and SIGHUP of the closed terminal is ignored."""
    words = [sys.executable, TRAIN, "--base", str(settings), f"args.save={tmp_path / 'runs'}", "args.train_iters=200"]
    done = subprocess.run(
        ["bash", "-c", f"nohup {shlex.join(words)} > {tmp_path}/output.txt 2>&1 & echo $!"],
        capture_output=True, text=True, check=True, start_new_session=True,
    )  # fmt: skip
    process = psutil.Process(int(done.stdout))
    wait_until(lambda: steps_of(tmp_path / "runs") >= 2, "two steps")
    process.send_signal(signal.SIGHUP)
    psutil.wait_procs([process], 200)
    assert (newest_run(tmp_path / "runs") / "latest").read_text() == "200"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_others_with_one_line(training, tmp_path, rank):
    with started(tmp_path, *training, processes=2) as program:
        program.wait_for("step 3/")
        ranks = program.ranks()
        ranks[rank].kill()
        assert program.status(60) == 128 + signal.SIGKILL
        assert f"error: rank {rank} (process {ranks[rank].pid} on " in program.output
        assert program.output.count("error: ") == 1 and "Traceback" not in program.output


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_ends_the_others_in_time(training, tmp_path, rank):
    with started(tmp_path, *training, "args.collective_timeout_s=15", processes=2) as program:
        program.wait_for("step 3/")
        ranks = program.ranks()
        ranks[rank].suspend()
        assert program.status(120) == 2
        assert f"error: rank {rank} (process {ranks[rank].pid} on " in program.output
        assert "has shown no sign of life for 15 s (args.collective_timeout_s)" in program.output
        assert "Traceback" not in program.output


@pytest.mark.slow
def test_a_second_signal_does_not_wait_for_another_process(training, tmp_path):
    with started(tmp_path, *training, processes=2) as program:
        program.wait_for("step 3/")
        program.ranks()[1].suspend()  # so that the first one can't stop in order
        program.process.terminate()
        wait_until(lambda: program.process.terminate() or program.process.poll() is not None, "the end")
        assert program.status() == 128 + signal.SIGTERM


SAMPLING = (
    "args.num_steps=1000",
    "args.sampling_image_size=[32,48]",
    "args.sampling_num_frames=3",
    "args.prompts=[red, green, blue, white]",
    "args.device=cpu",
)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", SIGNALS)
def test_sampling_drops_the_video_under_way(family, tmp_path, processes, number):
    out = tmp_path / "out"
    words = [SAMPLE, "--base", str(family.model_yaml), f"args.load={family.transformer}", f"args.output_dir={out}"]
    with started(tmp_path, *words, *SAMPLING, processes=processes) as program:
        wait_until(lambda: list(out.rglob("*.mp4")), "the first video")
        (program.ranks()[-1] if processes > 1 else program.process).send_signal(number)
        assert program.status() == 75
        videos = [path for path in out.rglob("*") if path.is_file()]
        assert 1 <= len(videos) < 4 and all(path.name == "000000.mp4" for path in videos)
        assert f"interrupted ({number.name}" in program.output and "Traceback" not in program.output
        assert f"{len(videos)} of 4 videos are finished, below {out}" in program.output
