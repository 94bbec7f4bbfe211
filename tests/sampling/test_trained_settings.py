"""Sampling with other settings than those that the weights were trained with is said; nothing else is."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from cogvideox.config.load import load_config
from cogvideox.sampling import trained_settings
from cogvideox.sampling.run import load_for_sampling
from cogvideox.sampling.trained_settings import warn_of_changes
from cogvideox.training.run_folder import write_config

NETWORK = "model.network_config.params"
POSITIONS = f"{NETWORK}.modules.pos_embed_config.params"
VAE = "model.first_stage_config.params"
Said = Callable[..., list[str]]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFamily:
    return tiny.write_family(tmp_path_factory.mktemp("family") / "tiny", num_clips=0)


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What the module says; scripts that other tests ran may have left handlers of their own."""
    texts: list[str] = []
    logger, handler = logging.getLogger(trained_settings.__name__), logging.Handler()
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.propagate = False
    yield texts
    logger.propagate = True
    logger.removeHandler(handler)


@pytest.fixture
def said(family: tiny.TinyFamily, tmp_path: Path, warnings: list[str]) -> Said:
    """What is said of sampling with these overrides, after training one of the families with the others."""

    def said(sampling: list[str], training: list[str] | None = None, name: str = "2b") -> list[str]:
        run = write_run(family, tmp_path / "run", training or [], name)
        model = tiny.write_yaml(tmp_path / "model.yaml", {"model": tiny.model_section(family, family=name)})
        config = load_config([str(model)], sampling, "sample", partial=True)
        warn_of_changes(config.model, run)
        return sorted(change for text in warnings for change in text.split(": ", 1)[1].split("; "))

    return said


def write_run(family: tiny.TinyFamily, run: Path, overrides: list[str], name: str = "2b") -> Path:
    """A run folder as training leaves it, with the family's weights as its checkpoint."""
    shutil.copytree(family.transformer, run)
    tree = tiny.train_settings(family, run.parent, name)
    config = load_config([str(tiny.write_yaml(run.parent / "train.yaml", tree))], overrides, "train")
    write_config(run, config)
    return run


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("2b", ["model.scale_factor=0.7"], ["model.scale_factor trained with 1.15258426, sampling with 0.7"]),
        (
            "2b",
            ["model.schedule_config.params.shift_scale=1.0", "model.schedule_config.params.beta_end=0.02"],
            [
                "model.schedule_config.params.beta_end trained with 0.012, sampling with 0.02",
                "model.schedule_config.params.shift_scale trained with 3.0, sampling with 1.0",
            ],
        ),
        (
            "2b",
            [f"{POSITIONS}.height_interpolation=1.875"],
            [f"{POSITIONS}.height_interpolation trained with 1.0, sampling with 1.875"],
        ),
        (
            "5b",
            [f"{POSITIONS}.resize=interpolate", f"{NETWORK}.latent_width=12"],
            [
                f"{NETWORK}.latent_width trained with 6, sampling with 12",
                f"{POSITIONS}.resize trained with slice, sampling with interpolate",
            ],
        ),
        ("5b", [f"{POSITIONS}.theta=5000"], [f"{POSITIONS}.theta trained with 10000.0, sampling with 5000.0"]),
        ("5b_i2v", ["model.image_latent_scale=1"], ["model.image_latent_scale trained with 0.7, sampling with 1.0"]),
        ("1.5_i2v", [f"{NETWORK}.ofs=0"], [f"{NETWORK}.ofs trained with 2.0, sampling with 0.0"]),
        (
            "1.5_i2v",
            ["model.image_latent_scale=null"],
            ["model.image_latent_scale trained with 1.0, sampling with 0.7"],
        ),
    ],
)
def test_what_no_tensor_says(said: Said, name: str, changes: list[str], expected: list[str]) -> None:
    assert said(changes, name=name) == expected


@pytest.mark.parametrize(
    ("name", "sampling", "training"),
    [
        # Defaults that one of the two writes out, and other ways to write the same.
        ("2b", [f"{NETWORK}.patch_size=[1,2,2]", "model.schedule_config.params.beta_start=0.00085"], []),
        ("2b", [f"{NETWORK}.text_length=12"], [f"{POSITIONS}.time_interpolation=1", f"{NETWORK}.ofs=1.0"]),
        ("5b_i2v", ["model.image_latent_scale=0.7"], ["model.image_latent_scale=null"]),
        # What may differ.
        ("2b", ["model.compile_model=true", "model.not_trainable_prefixes=[]"], ["args.checkpoint_activations=true"]),
        (
            "2b",
            [f"{VAE}.ckpt_path=x", f"{VAE}.tile_size=[64,64]", f"{VAE}.offload_chunks=true"],
            ["model.conditioner_config.params.encoder.params.model_dir=./elsewhere"],
        ),
        ("2b", ["args.num_steps=9", "model.sampler_config.params.spacing=linear_quadratic"], []),
        ("2b", [], ["model.conditioner_config.params.caption_dropout=0", "model.lr_scale=0.5"]),
        ("5b_i2v", ["model.noised_image_dropout=0"], []),
        # Larger sizes than in training.
        ("5b", [f"{NETWORK}.num_frames=17", f"{NETWORK}.latent_height=8"], []),
        ("2b", [f"{POSITIONS}.resize=interpolate"], []),
    ],
)  # fmt: skip
def test_what_computes_the_same(said: Said, name: str, sampling: list[str], training: list[str]) -> None:
    assert said(sampling, training, name) == []


def test_sampling_a_run_warns_once_and_published_weights_never_do(
    family: tiny.TinyFamily, tmp_path: Path, warnings: list[str]
) -> None:
    run = write_run(family, tmp_path / "run", [])
    for load in (run, family.transformer):
        given = [f"args.load={load}", "args.prompts=[a]", "args.device=cpu", "model.scale_factor=0.7"]
        given += [f"args.sampling_image_size=[{tiny.HEIGHT},{tiny.WIDTH}]", "args.sampling_num_frames=3"]
        config = load_config([str(family.model_yaml)], given, "sample")
        load_for_sampling(config.model, config.sample_args, torch.device("cpu"))
    expected = "model.scale_factor trained with 1.15258426, sampling with 0.7"
    assert warnings == [f"these weights were trained with other settings ({run}/training_config.yaml): {expected}"]


def test_only_the_first_process_warns(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert said(["model.scale_factor=0.7"]) == []


def test_settings_that_cannot_be_read_are_said(family: tiny.TinyFamily, tmp_path: Path, warnings: list[str]) -> None:
    """Such as those of another program, or half of a file."""
    run = write_run(family, tmp_path / "run", [])
    config = load_config([str(family.model_yaml)], [], "sample", partial=True)
    tree: dict[str, Any] = yaml.safe_load((run / "training_config.yaml").read_text())
    tree["model"]["network_config"]["target"] = "elsewhere.Network"
    for text in (yaml.safe_dump(tree), "model: {", "model: {}", "[]", "", "\0"):
        (run / "training_config.yaml").write_text(text)
        warn_of_changes(config.model, run)
        assert warnings.pop().startswith(
            f"not compared with the settings of training, {run}/training_config.yaml can't be"
        )
        assert not warnings
