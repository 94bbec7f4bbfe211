"""A damaged file ends a resumed run before its first step, sampling before the first video, a conversion before its
folder appears. What a user changed on purpose does not."""

from __future__ import annotations

import importlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import check_weights
import convert_weight_hf2sat
import convert_weight_sat2hf
import pytest
import tiny
import torch
from cogvideox.config.load import load_config
from cogvideox.errors import CheckpointError
from cogvideox.model.files import model_files
from cogvideox.parallel.groups import ProcessGroups, start_process_groups
from cogvideox.sampling.run import run_sampling
from cogvideox.training.starting_weights import files_to_check
from cogvideox.weights.hashes import FAST, hash_of
from processes import run_processes
from training.test_training_state import damaged

Train = Callable[..., dict[str, object]]
ADAPTERS, STATE = "2/mp_rank_00_model_states.pt", "2/training_state/rank_00000.pt"


@pytest.fixture
def run(train: Train) -> Path:
    """The run folder of two iterations."""
    return Path(str(train("args.train_iters=2", "args.save_interval=1")["run_folder"]))


@pytest.fixture
def converted(family: tiny.TinyFamily, tmp_path: Path) -> tiny.TinyFamily:
    """The family as hf2sat leaves one: with a manifest of all files at its top."""
    copy = tiny.TinyFamily(tmp_path / "converted")
    shutil.copytree(family.folder, copy.folder, ignore=shutil.ignore_patterns("manifest.json", "clips"))
    records = [
        {"path": file.relative_to(copy.folder).as_posix(), "bytes": file.stat().st_size, FAST: hash_of(file, FAST)}
        for file in sorted(copy.folder.rglob("*"))
        if file.is_file() and file.suffix != ".yaml"
    ]
    (copy.folder / "conversion.json").write_text(json.dumps({"inputs": [], "outputs": records}))
    tiny.write_yaml(copy.model_yaml, {"model": tiny.model_section(copy)})
    return copy


def sample(yaml: Path, load: Path, output: Path, *more: str) -> None:
    size = f"args.sampling_image_size=[{tiny.HEIGHT},{tiny.WIDTH}]"
    given = [size, "args.prompts=[a red square]", "args.sampling_num_frames=3", "args.num_steps=1", "args.device=cpu"]
    config = load_config([str(yaml)], [*given, f"args.load={load}", f"args.output_dir={output}", *more], "sample")
    run_sampling(config, start_process_groups("cpu"))


def convert(yaml: Path, load: Path, output: Path) -> None:
    convert_weight_sat2hf.main(["--checkpoint", str(load), "--base", str(yaml), "--output_path", str(output)])


@pytest.fixture
def uses(train: Train, family: tiny.TinyFamily, tmp_path: Path) -> Callable[[Path], Iterator[Callable[[], object]]]:
    """What one does with a run folder; each must fail, and leave nothing."""

    def get(run: Path) -> Iterator[Callable[[], object]]:
        yield lambda: train("args.train_iters=3", f"args.resume={run}")
        yield lambda: sample(family.model_yaml, run, tmp_path / "videos")
        yield lambda: convert(family.model_yaml, run, tmp_path / "pipeline")

    return get


def flip(file: Path, share: float = 0.5) -> None:
    content = bytearray(file.read_bytes())
    content[int(len(content) * share)] ^= 4
    file.write_bytes(content)


def test_a_damaged_checkpoint(run, uses, tmp_path, capsys):
    before = sorted(run.rglob("*"))
    flip(run / ADAPTERS)
    for use in uses(run):
        with pytest.raises(CheckpointError, match=r"2/mp_rank_00_model_states\.pt is damaged, it is not what was writ"):
            use()
    assert sorted(run.rglob("*")) == before and not list(tmp_path.glob("pipeline*"))
    assert not list((tmp_path / "videos").rglob("*.mp4"))
    with pytest.raises(CheckpointError, match="1 of 4 files are damaged"):
        check_weights.main([str(run)])
    assert f"DAMAGED  {run / ADAPTERS} is damaged" in capsys.readouterr().out


def test_a_damaged_training_state_concerns_resuming_alone(run, uses, tmp_path):
    flip(run / STATE)
    resume, *others = uses(run)
    with pytest.raises(CheckpointError, match=rf"rank_00000\.pt is damaged.*take an earlier iteration: {run / '1'}"):
        resume()
    for use in others:
        use()
    assert list((tmp_path / "videos").rglob("*.mp4")) and (tmp_path / "pipeline" / "conversion.json").is_file()


def test_what_a_user_changes_is_no_damage(run, uses):
    (run / "latest").write_text("1")
    (run / "1" / "notes.txt").write_text("better than 2")
    (run / "2" / "manifest.json").unlink()
    for use in uses(run):
        use()


@pytest.mark.parametrize("name", ["vae/3d-vae.pt", "transformer/1/mp_rank_00_model_states.pt", "t5/model.safetensors"])
def test_damage_in_a_converted_folder(converted, tmp_path, name):
    flip(converted.folder / name)
    for use in (sample, convert):
        with pytest.raises(CheckpointError, match=rf"{Path(name).name} is damaged.* by .*conversion\.json"):
            use(converted.model_yaml, converted.transformer, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("tool", ["merge_lora", "convert_lora", "extract_lora"])
def test_damaged_adapters_in_every_tool(run, tmp_path, tool):
    flip(run / ADAPTERS, 0.9)
    given = {"merge_lora": ["--adapter"], "convert_lora": ["--to", "diffusers"], "extract_lora": ["--rank", "2"]}
    with pytest.raises(CheckpointError, match=r"2/mp_rank_00_model_states\.pt"):
        importlib.import_module(tool).main([*given[tool], str(run), "--output_path", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_a_damaged_pipeline_is_not_converted_back(converted, tmp_path, part):
    convert(converted.model_yaml, converted.transformer, tmp_path / "pipeline")
    file = max((tmp_path / "pipeline" / part).glob("*.safetensors"), key=lambda each: each.stat().st_size)
    flip(file, 0.8)
    command = [str(tmp_path / "pipeline"), "--output_path", str(tmp_path / "back"), "--only", part]
    with pytest.raises(CheckpointError, match=rf"{file.name} is damaged"):
        convert_weight_hf2sat.main(command)
    assert [file.name for file in (tmp_path / "back").rglob("*") if file.is_file()] == ["conversion.json"]


def test_files_of_others_on_request(family, tmp_path):
    """The VAE of the family was written by torch alone; the bit is one of a weight's last, which no loader sees."""
    copy = tiny.TinyFamily(tmp_path / "copy")
    shutil.copytree(family.folder, copy.folder, ignore=shutil.ignore_patterns("clips"))
    tiny.write_yaml(copy.model_yaml, {"model": tiny.model_section(copy)})
    flip(copy.vae)
    sample(copy.model_yaml, copy.transformer, tmp_path / "videos")
    with pytest.raises(CheckpointError, match=r"3d-vae\.pt is damaged \(Bad CRC-32"):
        sample(copy.model_yaml, copy.transformer, tmp_path / "more", "args.verify_weights=true")


def test_each_file_is_checked_once_on_a_machine(run, settings, tmp_path):
    """Ranks 0 and 1 on one machine, 2 and 3 on another; each has an own slice of the optimizer's state."""
    states = [run / "2" / "training_state" / f"rank_{rank:05d}.pt" for rank in range(4)]
    for state in states[1:]:
        shutil.copy(states[0], state)
    config = load_config([str(settings)], [f"args.save={tmp_path}"], "train")
    groups = [ProcessGroups(rank, 4, rank % 2, torch.device("cpu")) for rank in range(4)]
    files = [files_to_check(config, run, run / "2", each) for each in groups]
    shared = model_files(config.model, run)
    assert {file.name for file in shared} >= {"mp_rank_00_model_states.pt", "3d-vae.pt", "model.safetensors"}
    assert files == [[*shared, states[0]], [states[1]], [*shared, states[2], states[0]], [states[3]]]


def _sample_rank(yaml: Path, load: Path, output: Path) -> str:
    try:
        sample(yaml, load, output, "args.num_samples=2")
    except CheckpointError as error:
        return str(error)
    return "sampled"


@pytest.mark.slow
def test_all_processes_end_together(converted, tmp_path):
    flip(converted.vae)
    answers = run_processes(_sample_rank, 2, converted.model_yaml, converted.transformer, tmp_path / "videos")
    assert answers[0] == answers[1] and "3d-vae.pt is damaged" in answers[0]
    assert not list((tmp_path / "videos").rglob("*.mp4"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bit", "page"])
def test_damage_anywhere(run, uses, kind):
    """Every file of a checkpoint, by every use: refused, or (where the use doesn't read it) without effect."""
    generator = random.Random(5)
    for name in (ADAPTERS, STATE, "2/manifest.json"):
        good = (run / name).read_bytes()
        for _ in range(8):
            (run / name).write_bytes(damaged(good, kind, generator))
            for index, use in enumerate(uses(run)):
                if name == ADAPTERS or (name == STATE and index == 0):
                    with pytest.raises(CheckpointError):
                        use()
        (run / name).write_bytes(good)
