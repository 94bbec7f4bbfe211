"""The cache that the page expects, against one that was filled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import check_dataset
import pytest
import tiny
from cogvideox.caching.options import CacheOptions
from cogvideox.config.load import load_config
from doctor.conftest import write_clip
from safetensors import safe_open

BUCKETS = "data.buckets=[[9, 32, 48], [5, 32, 32]]"
CASES = {
    "plain": ("2b", []),
    "held out": ("2b", ["args.eval_split=0.4", "data.random_start=true", "args.cache_views=3"]),
    "windows": ("2b", ["data.windows=all", "args.cache_dtype=bf16"]),
    "buckets": ("2b", [BUCKETS, "data.captions=random"]),
    "first frames": ("5b_i2v", []),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of two shapes; two samples of one file; a caption that comes twice."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for number in range(4):
        size = (32, 48) if number % 2 else (48, 48)
        write_clip(folder / f"{number}.mp4", "unused", number, frames=20 + 4 * number, size=size)
        rows.append({"video": f"{number}.mp4", "caption": ["one of two", f"number {number}"]})
    rows.append({"video": "0.mp4", "caption": "once more"})
    (folder / "clips.json").write_text(json.dumps(rows))
    return folder


@pytest.mark.parametrize("case", CASES)
def test_it_is_what_a_cache_takes(case: str, family_of: tiny.FamilyOf, folder: Path, tmp_path: Path) -> None:
    from cogvideox.training.fill_cache import run_cache_command

    family, words = CASES[case]
    content = tiny.train_settings(family_of(family), tmp_path / "runs", family)
    content["args"] |= {"train_data": [str(folder / "clips.json")], "cache": str(tmp_path / "cache")}
    content["args"].pop("eval_prompts", None)
    settings = tiny.write_yaml(tmp_path / "lora.yaml", content)
    page = tmp_path / "report.json"
    check_dataset.main(["--base", str(settings), *words, "--no-pictures", "--json", str(page)])
    facts: dict[str, Any] = json.loads(page.read_text())["parts"][0]
    run_cache_command(
        load_config([str(settings)], [*words, "args.mode=pretrain", "args.load=null"], "train"), CacheOptions()
    )
    for kind, count, size in (("latents", "clips", "moments_bytes"), ("contexts", "captions", "contexts_bytes")):
        files = list((tmp_path / "cache" / kind).glob("*/*/*.safetensors"))
        assert (len(files), sum(map(tensor_bytes, files))) == (facts["cache"][count], facts["cache"][size]), kind
        assert all(file.stat().st_size - tensor_bytes(file) < 1000 for file in files)
    by_bucket = sum(each["cache_bytes"] for each in facts["buckets"])
    assert facts["cache"]["clips"] > 0 and by_bucket == facts["cache"]["moments_bytes"]


def tensor_bytes(file: Path) -> int:
    with safe_open(file, "pt") as entry:
        return sum(value.numel() * value.element_size() for value in map(entry.get_tensor, entry.keys()))
