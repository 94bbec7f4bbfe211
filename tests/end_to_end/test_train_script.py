"""train_video.py as users start it: mistakes end in one clear line, status 2 and nothing written; several processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import tiny
import train_video
from cogvideox.errors import run_cli

ROOT = Path(__file__).resolve().parents[2]


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def fail(settings, tmp_path, capfd):
    """Run the script in this process with a mistake in its arguments; the one line it prints."""

    def run(*arguments: str, load: str | None = None) -> str:
        before = everything_below(tmp_path)
        status = run_cli(train_video.main, ["--base", str(settings), f"args.save={tmp_path / 'runs'}", *arguments])
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert status == 2 and len(lines) == 1
        assert everything_below(tmp_path) == before
        return lines[0]

    return run


def test_a_right_start_ends_with_status_0(settings, tmp_path, capfd):
    largest = str(2**63 - 1)
    arguments = ["--base", str(settings), f"args.save={tmp_path / 'runs'}", "args.train_iters=1", "--seed", largest]
    tiny.write_clips(tmp_path / "clips", 2)
    caption = next((tmp_path / "clips").glob("*.txt"))
    caption.write_text("a red square moves left " * 5)
    clips = [f"args.{key}=[{tmp_path / 'clips'}]" for key in ("train_data", "valid_data")]
    assert run_cli(train_video.main, [*arguments, *clips]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"seed: {largest}" in (folder / "training_config.yaml").read_text()
    said = capfd.readouterr().err
    assert f"{caption.with_suffix('.mp4')}: 26 tokens, the text encoder reads 12" in said
    assert "held out and trained on: 2 (kept)" in said


def test_check_stops_before_anything_is_built(settings, tmp_path, capfd):
    assert run_cli(train_video.main, ["--base", str(settings), "--check", f"args.save={tmp_path}"]) == 0
    assert "configuration is valid" in capfd.readouterr().out and not list(tmp_path.iterdir())


def test_check_reads_the_prompts_of_previews(fail):
    message = fail("--check", "args.eval_prompts=['a red square@@start.png']")
    assert "args.eval_prompts, line 1: 'prompt@@image' is for image-to-video models" in message


def test_fp16_without_cuda(fail):
    message = fail("deepspeed.fp16.enabled=true")
    assert "fp16 training needs a CUDA device; on the CPU use bf16.enabled" in message


def test_missing_load_path(fail):
    assert "no such file or folder: /nowhere/transformer" in fail("args.load=/nowhere/transformer")


def test_fine_tuning_without_weights(fail):
    message = fail("args.load=null")
    assert "args.load: missing" in message and "args.mode=pretrain" in message


def test_empty_data_folder(fail, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no video" in fail(f"args.train_data=[{tmp_path / 'empty'}]")


def test_missing_data_folder(fail):
    assert "/nowhere/clips" in fail("args.train_data=[/nowhere/clips]")


def test_missing_resume(fail):
    assert "args.resume: latest, but" in fail("args.resume=latest")


def test_save_folder_below_a_file(fail, tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file, a folder is needed" in fail(f"args.save={tmp_path / 'file' / 'runs'}")


def test_save_folder_without_permission(fail, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "no permission to write in" in fail()


def test_save_folder_without_space(fail, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 100, 0))
    assert "not enough space for" in fail()


def test_truncated_weights(fail, family, tmp_path):
    whole = (family.transformer / "1" / "mp_rank_00_model_states.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    assert "is truncated or damaged" in fail(f"args.load={tmp_path / 'half.pt'}")


def test_data_is_judged_before_weights_are_loaded(fail, tmp_path):
    (tmp_path / "broken.pt").write_bytes(b"x")
    message = fail("data.fps=1", f"args.load={tmp_path / 'broken.pt'}")
    assert message == "error: none of the videos is usable"


def test_contradicting_batch_sizes(fail):
    message = fail("deepspeed.train_batch_size=5")
    assert "deepspeed.train_batch_size: 5 is not" in message


def test_zero_3(fail):
    assert "stage 3 is not supported" in fail("deepspeed.zero_optimization.stage=3")


def launch(settings: Path, save: Path, *arguments: str, processes: int) -> dict[str, object]:
    """Start the script with torchrun; the answer of the first process's run folder."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += [str(ROOT / "sat" / "train_video.py"), "--base", str(settings), f"args.save={save}", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    return {"status": done.returncode, "error": done.stderr}


def test_two_processes_have_the_losses_of_one(settings, train, tmp_path):
    common = (
        "args.eval_split=0.4",  # 3 clips: they do not divide evenly
        "args.eval_prompts=['a red square moves up','a blue square moves left']",
        "deepspeed.zero_optimization.stage=2",
        "args.train_iters=3",
    )
    one = Path(train(*common, "deepspeed.train_micro_batch_size_per_gpu=4")["run_folder"])
    done = launch(settings, tmp_path / "pair", *common, processes=2)
    assert done["status"] == 0, done["error"]
    (two,) = (tmp_path / "pair").iterdir()
    ours, theirs = tiny.read_lines(one), tiny.read_lines(two)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for name in ("train_loss", "valid_loss", "grad_norm"):
        values = [[line[name] for line in lines if name in line] for lines in (ours, theirs)]
        # fp32 sums in another order: a few units in the last place per step, amplified by the updates.
        assert values[0] == pytest.approx(values[1], rel=5e-5), name
    assert len(list((two / "samples" / "3").iterdir())) == 2
    assert sorted(path.name for path in (two / "3" / "training_state").iterdir()) == [
        "rank_00000.pt",
        "rank_00001.pt",
    ]


def test_more_processes_than_clips_is_refused(settings, family):
    import torch
    from cogvideox.config.load import load_config
    from cogvideox.errors import DataError
    from cogvideox.parallel.groups import ProcessGroups
    from cogvideox.training.data_sets import check_enough, prepare_data

    train, _ = prepare_data(load_config([str(settings)], [], "train"))
    groups = ProcessGroups(rank=0, world_size=9, local_rank=0, device=torch.device("cpu"))
    with pytest.raises(DataError, match="9 processes but only 8 usable clips to train on: start at most 8"):
        check_enough(train, groups)


@pytest.mark.slow
def test_tasks_of_srun_are_one_run(settings, tmp_path):
    """Nothing but Slurm's variables says that there are two of them; each for itself would make a run folder."""
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    job |= {"SLURM_STEP_NUM_NODES": "1", "SLURM_NTASKS": "2", "OMP_NUM_THREADS": "1"}
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    command = [sys.executable, str(ROOT / "sat" / "train_video.py"), "--base", str(settings), f"args.save={tmp_path}"]
    tasks = [
        subprocess.Popen(
            [*command, "args.train_iters=2"],
            env={**environment, **job, "SLURM_PROCID": rank, "SLURM_LOCALID": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    written = [task.communicate(timeout=240)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], written
    assert len(list(tmp_path.iterdir())) == 1
    assert "effective batch 4 = 2 per process x 1 accumulated x 2 processes" in written[0]
