"""Whole sampling runs on the tiny family: files, repeatability, LoRA strength, and processes that share the work."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import sample_video
import tiny
import torch
from cogvideox.config.load import load_config
from cogvideox.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NotFiniteError,
    OutOfMemoryError,
    ShapeError,
    run_cli,
)
from cogvideox.model.build import build_model
from cogvideox.model.loading import base_reference, load_transformer
from cogvideox.parallel.groups import ProcessGroups, start_process_groups
from cogvideox.sampling.batches import VideoFormat
from cogvideox.sampling.jobs import plan_jobs
from cogvideox.sampling.prompts import Prompt
from cogvideox.sampling.run import (
    build_sampler,
    load_for_sampling,
    run_sampling,
    sample_batches,
    sample_latents,
)
from cogvideox.vae.autoencoder import VideoAutoencoder
from cogvideox.weights.runs import record_start
from cogvideox.weights.sat_folder import read_checkpoint, write_checkpoint
from processes import run_processes
from safetensors.torch import load_file

ALONE = ProcessGroups(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
PROMPTS = ["a red square moves left", "a blue square moves up", "a white square moves down"]
FORMAT = VideoFormat(num_latent_frames=3, height=tiny.HEIGHT, width=tiny.WIDTH, fps=8)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFamily:
    return tiny.write_family(tmp_path_factory.mktemp("family") / "tiny", num_clips=0)


def settings(family: tiny.TinyFamily, output: Path, **args: Any) -> list[str]:
    """Overrides for a short run."""
    return tiny.sample_overrides(family, output, **{"prompts": PROMPTS, **args})


def run(family: tiny.TinyFamily, output: Path, groups: ProcessGroups = ALONE, **args: Any) -> list[Path]:
    config = load_config([str(family.model_yaml)], settings(family, output, **args), "sample")
    return run_sampling(config, groups)


def latents(output: Path) -> dict[str, torch.Tensor]:
    return {str(path.parent.relative_to(output)): load_file(path)["latent"] for path in output.rglob("*.safetensors")}


@pytest.fixture(scope="module")
def reference(family: tiny.TinyFamily, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("reference")
    run(family, output, num_samples=2, save_latents=True)
    return output


def test_folders_and_files(reference: Path) -> None:
    files = sorted(str(path.relative_to(reference)) for path in reference.rglob("*") if path.is_file())
    names = [f"{n}_{prompt.replace(' ', '_')}/{k}/" for n, prompt in enumerate(PROMPTS) for k in range(2)]
    assert files == sorted(name + file for name in names for file in ("000000.mp4", "latent.safetensors"))
    values = list(latents(reference).values())
    assert all(value.shape == (3, 16, 4, 6) for value in values)
    assert all(not torch.equal(one, two) for i, one in enumerate(values) for two in values[:i])


@pytest.mark.parametrize("batch_size", [2, 6])
def test_batches_do_not_change_the_videos(
    family: tiny.TinyFamily, reference: Path, tmp_path: Path, batch_size: int
) -> None:
    run(family, tmp_path, num_samples=2, only_save_latents=True, batch_size=batch_size)
    ours, theirs = latents(tmp_path), latents(reference)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-4)
    assert not list(tmp_path.rglob("*.mp4"))


def sample_rank(model_yaml: str, overrides: list[str]) -> list[str]:
    groups = start_process_groups("cpu")
    try:
        return [str(path) for path in run_sampling(load_config([model_yaml], overrides, "sample"), groups)]
    finally:
        groups.shut_down()


@pytest.mark.slow
def test_two_processes_make_every_video_once(family: tiny.TinyFamily, reference: Path, tmp_path: Path) -> None:
    overrides = settings(family, tmp_path, num_samples=2, only_save_latents=True)
    shares = run_processes(sample_rank, 2, str(family.model_yaml), overrides)
    assert [len(share) for share in shares] == [3, 3] and len(set(shares[0] + shares[1])) == 6
    ours, theirs = latents(tmp_path), latents(reference)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-4)


def test_nothing_is_overwritten_unless_asked(family: tiny.TinyFamily, tmp_path: Path) -> None:
    run(family, tmp_path, prompts=PROMPTS[:1])
    with pytest.raises(DataError, match=r"1 of 1 outputs exist already: .*000000.mp4; set args.overwrite=true"):
        run(family, tmp_path, prompts=PROMPTS[:1], seed=1)
    video = next(tmp_path.rglob("*.mp4"))
    before = video.read_bytes()
    run(family, tmp_path, prompts=PROMPTS[:1], seed=1, overwrite=True)
    assert video.read_bytes() != before


def test_saved_latents_are_those_of_the_video(family: tiny.TinyFamily, reference: Path) -> None:
    """Decoding them gives the frames of the mp4; they carry no scale factor."""
    config = load_config([str(family.model_yaml)], settings(family, reference), "sample")
    model = load_for_sampling(config.model, config.sample_args, torch.device("cpu"))
    jobs = plan_jobs([Prompt(text) for text in PROMPTS], 2, 42, reference)
    expected = sample_latents(model, build_sampler(config.model.sampler_config), jobs[:1], FORMAT)[0]
    torch.testing.assert_close(load_file(jobs[0].latent_path)["latent"] * 1.15258426, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def lora(family: tiny.TinyFamily, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of alpha 8 and rank 2, alone in a checkpoint that names the family as its base."""
    folder = tmp_path_factory.mktemp("lora")
    section = tiny.model_section(family, {"r": 2, "lora_alpha": 8.0})
    tree = {"model": section}
    config = load_config([str(tiny.write_yaml(folder / "lora.yaml", tree))], [], "sample", partial=True)
    model = build_model(config.model, device="cpu", dtype=torch.float32, seed=0)
    tiny.randomise(model.transformer, seed=9)
    adapters = {name: value for name, value in model.state_dict().items() if ".matrix_" in name}
    extra = {"lora": {"r": 2, "alpha": 8.0}, "base": base_reference(family.transformer)}
    write_checkpoint(folder / "run", 5, adapters, extra)
    return folder


def test_lora_checkpoints_run_on_their_base_at_the_given_strength(
    family: tiny.TinyFamily, lora: Path, tmp_path: Path
) -> None:
    """Without lora_config: rank and alpha come from the checkpoint."""
    results = {}
    for name, load, more in (
        ("base", family.transformer, {}),
        ("zero", lora / "run", {"lora_strength": 0.0}),
        ("half", lora / "run", {"lora_strength": 0.5}),
        ("full", lora / "run", {}),
    ):
        run(family, tmp_path / name, load=load, prompts=PROMPTS[:1], only_save_latents=True, **more)
        (results[name],) = latents(tmp_path / name).values()
    torch.testing.assert_close(results["zero"], results["base"], rtol=1e-5, atol=1e-5)
    assert (results["half"] - results["base"]).abs().max() > 1e-3
    assert (results["full"] - results["half"]).abs().max() > 1e-3


def test_lora_configuration_and_checkpoint_together_give_the_same(family: tiny.TinyFamily, lora: Path) -> None:
    with_node = load_config([str(lora / "lora.yaml")], settings(family, lora, load=lora / "run"), "sample")
    without = load_config([str(family.model_yaml)], settings(family, lora, load=lora / "run"), "sample")
    one, two = (
        load_for_sampling(c.model, c.sample_args, torch.device("cpu")).state_dict() for c in (with_node, without)
    )
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_runs_are_found_by_name(family: tiny.TinyFamily, lora: Path, tmp_path: Path) -> None:
    """As in training: `latest`, an experiment's name, a run folder whose `latest` names what is not there."""
    style = tmp_path / "style-06-01-12-00"
    shutil.copytree(lora / "run", style)
    record_start(style, "style", 0, "process 1 on host a")
    (style / "latest").write_text("9")
    common = {"prompts": PROMPTS[:1], "only_save_latents": True, "save": tmp_path}
    run(family, tmp_path / "path", load=style / "5", **common)
    for load in ("latest", "style", style):
        run(family, tmp_path / "found", load=load, overwrite=True, **common)
        (found,), (expected,) = (latents(tmp_path / each).values() for each in ("found", "path"))
        assert torch.equal(found, expected)
    with pytest.raises(
        CheckpointError, match=r"args\.load: motion: no such file or folder, and .* holds no run of 'mot"
    ):
        run(family, tmp_path / "none", load="motion", **common)


def test_a_base_that_was_moved(family: tiny.TinyFamily, lora: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(lora / "run")
    base = {**checkpoint.extra["base"], "path": "/nowhere/transformer"}
    moved = tmp_path / "run"
    write_checkpoint(moved, 5, checkpoint.module, {**checkpoint.extra, "base": base})
    common = {"prompts": PROMPTS[:1], "only_save_latents": True}
    with pytest.raises(CheckpointError, match=r"it is not there\. .* args\.base_model=PATH in training and sampling"):
        run(family, tmp_path / "out", load=moved, **common)
    run(family, tmp_path / "out", load=moved, base_model=family.transformer, **common)
    assert len(latents(tmp_path / "out")) == 1


def test_strength_without_adapters_is_refused(family: tiny.TinyFamily, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"args.lora_strength is 0.5, but .* holds no LoRA adapters"):
        run(family, tmp_path, lora_strength=0.5)


def test_fp16_on_the_cpu_is_refused_before_anything_is_written(family: tiny.TinyFamily, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fp16 needs a CUDA device"):
        run(family, tmp_path / "out", fp16=True)
    assert not (tmp_path / "out").exists()


def test_bf16_runs(family: tiny.TinyFamily, tmp_path: Path) -> None:
    (folder,) = run(family, tmp_path, bf16=True, prompts=PROMPTS[:1])
    assert (folder / "000000.mp4").stat().st_size > 0


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((40, 48), "multiples of 16, not \\[40, 48\\]; nearest: \\[32, 48\\]"),
        ((32, 8), "multiples of 16, not \\[32, 8\\]; nearest: \\[32, 16\\]"),
    ],
)
def test_illegal_sizes_name_the_nearest_legal_ones(
    family: tiny.TinyFamily, tmp_path: Path, size: tuple[int, int], message: str
) -> None:
    config = load_config([str(family.model_yaml)], settings(family, tmp_path), "sample")
    model = load_for_sampling(config.model, config.sample_args, torch.device("cpu"))
    form, jobs = VideoFormat(3, *size, fps=8), plan_jobs([Prompt(PROMPTS[0])], 1, 0, tmp_path)
    with pytest.raises(ShapeError, match=message):
        sample_batches(model, build_sampler(config.model.sampler_config), [(form, jobs)])
    assert not list(tmp_path.iterdir())


def test_build_sampler_takes_another_number_of_steps(family: tiny.TinyFamily) -> None:
    node = tiny.model_section(family)["sampler_config"]
    assert build_sampler(node).num_steps == 3 and build_sampler(node, 5).num_steps == 5


def test_script(family: tiny.TinyFamily, tmp_path: Path) -> None:
    arguments = [
        "--base",
        str(family.model_yaml),
        *settings(family, tmp_path / "out", prompts=PROMPTS[:1]),
        "--seed",
        "3",
    ]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert run_cli(sample_video.main, [*arguments, "--check"]) == 0
    assert "valid" in said.getvalue() and not (tmp_path / "out").exists()
    assert run_cli(sample_video.main, arguments) == 0
    assert len(list((tmp_path / "out").rglob("*.mp4"))) == 1


def test_script_ends_with_status_2_for_a_mistake(
    family: tiny.TinyFamily, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a ship@@ship.png")
    given = settings(family, tmp_path / "out", prompts=[], input_type="txt", input_file=file)
    assert run_cli(sample_video.main, ["--base", str(family.model_yaml), *given]) == 2
    assert "line 1: 'prompt@@image' is for image-to-video models" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_loading_for_training_and_for_sampling_agree(family: tiny.TinyFamily, tmp_path: Path) -> None:
    config = load_config([str(family.model_yaml)], settings(family, tmp_path), "sample")
    sampled = load_for_sampling(config.model, config.sample_args, torch.device("cpu"))
    trained = build_model(config.model, device="cpu", dtype=torch.float32, seed=0)
    load_transformer(trained, family.transformer)
    state = trained.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in sampled.state_dict().items())
    assert not sampled.training and not any(p.requires_grad for p in sampled.parameters())


def test_the_sampler_is_set_from_the_command_line(family: tiny.TinyFamily, tmp_path: Path) -> None:
    sampler = "model.sampler_config.params."
    given = [*settings(family, tmp_path, num_steps=8), f"{sampler}spacing=linear_quadratic", f"{sampler}linear_steps=3"]
    config = load_config([str(family.model_yaml)], [*given, f"{sampler}guidance_batch=split"], "sample")
    built = build_sampler(config.model.sampler_config)
    assert (built.num_steps, built.spacing, built.linear_steps, built.guidance_batch) == (
        8,
        "linear_quadratic",
        3,
        "split",
    )
    with pytest.raises(ConfigError, match=r"spacing.*must be one of trailing, linear_quadratic, not 'linear'"):
        load_config([str(family.model_yaml)], [*given, f"{sampler}spacing=linear"], "sample")


def test_numbers_that_are_none_are_no_black_video(family: tiny.TinyFamily, tmp_path: Path) -> None:
    module = dict(read_checkpoint(family.transformer).module)
    name = next(name for name in module if name.endswith("layers.1.mlp.dense_h_to_4h.weight"))
    module[name] = module[name].clone().index_fill_(0, torch.tensor([0]), 3e38)
    folder = tmp_path / "overflowing"
    folder.mkdir()
    torch.save({"module": module}, folder / "mp_rank_00_model_states.pt")
    with pytest.raises(NotFiniteError, match=r"'a red square moves left' came to NaN .*float32: .*args\.bf16=true"):
        run(family, tmp_path / "out", load=folder)
    assert not list((tmp_path / "out").rglob("*.mp4"))


def test_too_little_memory_is_one_line_with_what_helps(
    family: tiny.TinyFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB. GPU 0 has ... 1.2 GiB is free.")

    monkeypatch.setattr(VideoAutoencoder, "decode_chunks", exhausted)
    with pytest.raises(OutOfMemoryError, match=r"Tried to allocate 9.00 GiB.* 1.2 GiB is free\).*guidance_batch=split"):
        run(family, tmp_path / "out")
