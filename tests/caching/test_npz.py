"""Latents as other programs store them: written, read, and refused where they are of something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from cogvideox.errors import ConfigError, DataError

Fill = Callable[..., None]


@pytest.fixture
def exported(fill: Fill, filled: Callable[[str], None], tmp_path: Path) -> Path:
    filled("5b_i2v")
    fill("5b_i2v", export_to=str(tmp_path / "npz"))
    return tmp_path / "npz"


def change(file: Path, **arrays: object) -> None:
    with np.load(file) as old:
        np.savez(file, **{**old, **arrays})  # type: ignore[arg-type]


def test_what_was_exported_is_imported(
    exported: Path, fill: Fill, train: Callable[..., list[float]], clips: Path, tmp_path: Path
) -> None:
    names = {file.stem for file in clips.glob("*.mp4")}
    for kind in ("latent", "text"):
        assert {file.stem for file in (exported / kind).glob("*.npz")} == names
    with np.load(next((exported / "latent").glob("*.npz"))) as file:
        assert file["latent_mean"].shape == file["latent_std"].shape == (3, 16, 4, 6)
        assert file["fps"] == tiny.FPS and file["ori_size"].tolist() == [tiny.HEIGHT, tiny.WIDTH]
    other = f"args.cache={tmp_path / 'other'}"
    for file in (exported / "latent").glob("0*.npz"):  # the other order
        with np.load(file) as old:
            turned = {name: old[name].transpose(1, 0, 2, 3) for name in ("latent_mean", "latent_std")}
        change(file, **turned)
    fill("5b_i2v", other, import_from=str(exported))
    assert train("5b_i2v", other) == pytest.approx(train("5b_i2v"), rel=1e-6)
    fill("5b_i2v", other, verify=6)


def test_files_of_something_else_are_refused(exported: Path, fill: Fill, tmp_path: Path) -> None:
    other = f"args.cache={tmp_path / 'other'}"
    first = min((exported / "latent").glob("*.npz"))
    with np.load(first) as file:
        mean = file["latent_mean"]
    for array, message in (
        (1.7 * mean, r"differ from this VAE's by 70% .*scale factor; nothing was imported"),
        (mean[:2], r"latent_mean is \[2, 16, 4, 6\]; .* are \[3, 16, 4, 6\] here"),
        (np.full_like(mean, np.nan), "have to be finite"),
    ):
        change(first, latent_mean=array)
        with pytest.raises(DataError, match=message):
            fill("5b_i2v", other, import_from=str(exported))
    np.savez(first, mean=mean)
    with pytest.raises(DataError, match="has no latent_mean and no latent_std; it holds mean"):
        fill("5b_i2v", other, import_from=str(exported))
    first.write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(DataError, match=r"is no .npz file that can be read"):
        fill("5b_i2v", other, import_from=str(exported))
    assert not list((tmp_path / "other").glob("latents/*/*/*.safetensors"))


def test_nothing_is_overwritten_and_a_wrong_folder_is_named(exported: Path, fill: Fill, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is there already: export into a new folder"):
        fill("5b_i2v", export_to=str(exported))
    with pytest.raises(ConfigError, match="is not a folder"):
        fill("5b_i2v", import_from=str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no .npz file of these clips; the first one would be .*latent.*\.npz"):
        fill("5b_i2v", import_from=str(tmp_path / "empty"))
