"""What changed between two configurations."""

from __future__ import annotations

from pathlib import Path

import pytest
from cogvideox.config.compare import changed_settings
from cogvideox.errors import ConfigError


def test_changes_of_values_lists_and_whole_sections(tmp_path: Path) -> None:
    before = "model: {scale: 0.7, image: null}\nargs: {data: [a, b], seed: 1}\n"
    after = "model: {scale: 1.0, image: null}\nargs: {data: [a], seed: 1}\ndeepspeed: {fp16: {enabled: true}}\n"
    saved = tmp_path / "training_config.yaml"
    saved.write_text(before)
    assert changed_settings(saved, after) == {
        "model.scale": (0.7, 1.0),
        "args.data": (["a", "b"], ["a"]),
        "deepspeed.fp16.enabled": (None, True),
    }
    saved.write_text(after)
    assert changed_settings(saved, after) == {}


@pytest.mark.parametrize("content", [b"\x80\x02}q\x00", b"a: [", b"[" * 5000, b"a: !!python/name:os.system ''"])
def test_a_saved_file_that_is_no_yaml(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "training_config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"training_config\.yaml"):
        changed_settings(tmp_path / "training_config.yaml", "a: 1")
