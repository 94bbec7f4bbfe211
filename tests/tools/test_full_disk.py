"""No tool leaves half a result where the disk takes no more: one line, and what was there before."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import convert_lora
import convert_weight_hf2sat
import convert_weight_sat2hf
import extract_lora
import merge_lora
import pytest
from cogvideox.errors import CheckpointError
from tiny_checkpoints import Checkpoints

Main = Callable[[Sequence[str]], object]


@contextmanager
def full_disk() -> Iterator[None]:
    """Files of 3 KB at most, as on a disk that has so much left."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (merge_lora.main, ("--adapter", "RUN")),
        (convert_lora.main, ("RUN", "--to", "diffusers")),
        (convert_lora.main, ("RUN", "--to", "comfyui")),
        (convert_lora.main, ("RUN", "--to", "sat", "--base", "BASE")),
        (extract_lora.main, ("OLD", "--base", "BASE", "--rank", "2")),
        (convert_weight_sat2hf.main, ("--checkpoint", "RUN", "--only", "lora")),
        (convert_weight_sat2hf.main, ("--checkpoint", "RUN", "--merge_lora")),
    ],
)
def test_nothing_is_left(checkpoints: Checkpoints, tmp_path: Path, main: Main, arguments: Sequence[str]) -> None:
    places = {"RUN": checkpoints.run, "BASE": checkpoints.family.transformer, "OLD": checkpoints.old_lora}
    given = [str(places.get(word, word)) for word in arguments]
    expected = pytest.raises(CheckpointError, match=r"writing \S+ failed: (File too large|the disk took no more)")
    with full_disk(), expected as caught:
        main([*given, "--output_path", str(tmp_path / "out")])
    assert "\n" not in str(caught.value) and "inline_container" not in str(caught.value)
    assert "free on the disk of" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_import_keeps_its_finished_parts_only(exported: Callable[[str], Path], tmp_path: Path) -> None:
    """It goes on from there when it is called again."""
    source = str(exported("2b"))
    with full_disk(), pytest.raises(CheckpointError, match=r"writing \S+ failed: File too large"):
        convert_weight_hf2sat.main([source, "--output_path", str(tmp_path / "out")])
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["conversion.json"]
