"""What `--check` finds beyond the configuration, without loading anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from cogvideox.config.load import load_config
from cogvideox.config.schema import Config
from cogvideox.errors import ConfigError, DataError
from cogvideox.training import preflight
from cogvideox.training.preflight import check_data, check_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFamily:
    """Clips and paths; no weights, for nothing reads them."""
    paths = tiny.TinyFamily(tmp_path_factory.mktemp("family"))
    tiny.write_clips(paths.clips, 4)
    for folder in (paths.transformer, paths.t5, paths.vae):
        folder.mkdir(parents=True)
    return paths


@pytest.fixture(scope="module")
def settings(family: tiny.TinyFamily) -> Path:
    return tiny.write_yaml(family.folder / "lora.yaml", tiny.train_settings(family, family.folder / "runs"))


@pytest.fixture
def load(settings: Path) -> Any:
    def load(*overrides: str) -> Config:
        return load_config([str(settings)], list(overrides), "train")

    return load


def check(settings: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """`train_video.py --check`, which must import neither torch nor SAT."""
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import train_video; from cogvideox.errors import run_cli; "
        "status = run_cli(train_video.main, sys.argv[1:]); "
        "print(sorted({'torch', 'sat', 'transformers', 'deepspeed', 'decord'} & set(sys.modules))); sys.exit(status)"
    )
    command = [sys.executable, "-c", code, str(ROOT / "sat"), "--check", "--base", str(settings), *overrides]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=dict(os.environ))


def test_the_check_looks_at_clips_without_torch(settings: Path, family: tiny.TinyFamily) -> None:
    done = check(settings)
    assert done.returncode == 0, done.stderr
    assert f"data: 4 of 4 videos usable, from {family.clips}" in done.stdout
    assert f"tools/check_dataset.py --base {settings} --output report.html\n" in done.stdout
    assert done.stdout.splitlines()[-2:] == ["the configuration is valid", "[]"]
    assert not (family.folder / "runs").exists()


def test_the_tool_that_checks_files_looks_at_clips_too(settings: Path, family: tiny.TinyFamily) -> None:
    command = [sys.executable, str(ROOT / "tools" / "check_config.py"), "--together", "--paths", str(settings)]
    good = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert good.returncode == 0, good.stderr
    assert good.stdout.startswith(f"data: 4 of 4 videos usable, from {family.clips}\n")
    assert good.stdout.splitlines()[-1] == f"valid for training: {settings}"


def test_every_clip_too_short(load: Any) -> None:
    config = load("data.max_num_frames=49", "model.network_config.params.num_frames=49")
    with pytest.raises(DataError, match="none of the videos is usable") as caught:
        check_data(config)
    assert "data.short_clips=pad repeats their last frame instead; data.max_num_frames=17" in str(caught.value)


def test_folders_and_captions(load: Any, family: tiny.TinyFamily, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no video"):
        check_data(load(f"args.train_data=[{tmp_path}/empty]"))
    with pytest.raises(DataError, match="its clips would count twice"):
        check_data(load(f"args.train_data=[{family.clips},{family.clips}/]"))
    with pytest.raises(DataError, match="its clips would count twice"):
        check_data(load(f"args.train_data=[{family.folder},{family.clips}]"))
    tiny.write_clips(tmp_path / "clips", 2)
    caption = next((tmp_path / "clips").glob("*.txt"))
    caption.unlink()
    with pytest.raises(
        DataError, match=rf"1 of 2 videos can't be used, .*{caption.stem}.mp4: no {caption.name} beside"
    ):
        check_data(load(f"args.train_data=[{tmp_path}/clips]"))
    with pytest.raises(DataError, match=f"no {caption.name} beside"):
        check_data(load(f"args.valid_data=[{tmp_path}/clips]"))


def test_held_out_clips(load: Any, family: tiny.TinyFamily, tmp_path: Path) -> None:
    clip = sorted(family.clips.glob("*.mp4"))[0]
    for file in (clip, clip.with_suffix(".txt")):
        (tmp_path / file.name).symlink_to(file)
    text = "\n".join(check_data(load(f"args.valid_data=[{tmp_path}]")))
    assert "data: 4 of 4" in text and "data: 1 of 1" in text
    assert f"held out and trained on: 1 (kept)\n    {tmp_path}/{clip.name}: in train_data too, as {clip}" in text
    with pytest.raises(DataError, match=r"holding out 0.9 of 4 samples leaves none to train on"):
        check_data(load("args.eval_split=0.9"))


def test_the_time_budget(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write_clips(tmp_path / "clips", 3)
    config = load(f"args.train_data=[{tmp_path}/clips]")
    monkeypatch.setattr(preflight, "CHECK_BUDGET_S", 0.0)
    text = "\n".join(check_data(config))
    assert "data: 0 of 0 videos usable" in text and "0 of 3 videos were looked at" in text
    assert "the next --check goes on from there" in text
    monkeypatch.undo()
    assert "looked at" not in "\n".join(check_data(config))
    monkeypatch.setattr(preflight, "CHECK_BUDGET_S", 0.0)  # all are remembered now
    assert "data: 3 of 3 videos usable" in "\n".join(check_data(config))


@pytest.mark.parametrize(
    ("device", "gpu", "is_right"),
    [
        ("cpu", True, False),
        ("auto", False, False),
        ("auto", True, True),
        ("cuda", False, True),  # a check on a machine that only starts runs
    ],
)
def test_fp16(load: Any, monkeypatch: pytest.MonkeyPatch, device: str, gpu: bool, is_right: bool) -> None:
    monkeypatch.setattr(preflight, "has_gpu", lambda: gpu)
    config = load(f"args.device={device}", "deepspeed.fp16.enabled=true")
    if is_right:
        assert check_run(config)
    else:
        expected = r"fp16 training needs a CUDA device; on the CPU use bf16.enabled.*has one: args.device=cuda"
        with pytest.raises(ConfigError, match=expected):
            check_run(config)
    assert check_run(load(f"args.device={device}"))
