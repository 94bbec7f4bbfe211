"""An index of shards stays in its folder; weights that are no floats are not converted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cogvideox.errors import CheckpointError
from cogvideox.weights.model_folder import check_same_dtype, find_weights, weight_map
from safetensors.torch import save_file


def write_index(folder: Path, weights: object) -> Path:
    folder.mkdir(exist_ok=True)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weights}))
    return index


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/passwd", "a/../../x", "sub/x.safetensors", "..", ".", "", "a\\b"],
)
def test_an_index_that_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "secret.safetensors")
    write_index(tmp_path / "model", {"w": name})
    with pytest.raises(CheckpointError, match=r"index\.json (was refused: it lists|names) .* no file"):
        find_weights(tmp_path / "model")


@pytest.mark.parametrize("weights", [None, [], {}, {"w": 1}, {"w": ["x"]}, "x"])
def test_an_index_of_something_else(tmp_path: Path, weights: object) -> None:
    with pytest.raises(CheckpointError, match=r"index\.json has no weight_map"):
        weight_map(write_index(tmp_path, weights))


def test_shards_that_are_links(tmp_path: Path) -> None:
    """As in a cache of the Hugging Face hub."""
    (tmp_path / "blobs").mkdir()
    save_file({"w": torch.ones(1)}, tmp_path / "blobs" / "abc")
    write_index(tmp_path / "model", {"w": "m.safetensors"})
    (tmp_path / "model" / "m.safetensors").symlink_to(tmp_path / "blobs" / "abc")
    assert find_weights(tmp_path / "model")[1] == [tmp_path / "model" / "m.safetensors"]


@pytest.mark.parametrize("kind", [torch.int8, torch.complex64, torch.float8_e4m3fn])
def test_weights_that_are_no_floats(kind: torch.dtype) -> None:
    tensors = {"a": torch.ones(2), "b.weight": torch.ones(2).to(kind)}
    with pytest.raises(CheckpointError, match=r"model stores b\.weight as .*: a quantised file"):
        check_same_dtype(tensors, None, "model")


def test_floats_of_8_bits_are_converted_when_told(kind: torch.dtype = torch.float8_e4m3fn) -> None:
    check_same_dtype({"a": torch.ones(2).to(kind)}, torch.bfloat16, "model")
    with pytest.raises(CheckpointError, match="quantised"):
        check_same_dtype({"a": torch.ones(2, dtype=torch.int8)}, torch.bfloat16, "model")
