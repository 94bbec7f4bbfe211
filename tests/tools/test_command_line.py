"""What the command lines of all tools refuse alike."""

from __future__ import annotations

import convert_lora
import convert_weight_hf2sat
import convert_weight_sat2hf
import merge_lora
import pytest
from cogvideox.errors import ConfigError

LONG = "x" * 5000


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (convert_lora.main, [LONG, "--to", "comfyui", "--output_path", "out"]),
        (convert_lora.main, ["a\0b", "--to", "comfyui", "--output_path", "out"]),
        (convert_weight_hf2sat.main, ["source", "--output_path", LONG]),
        (convert_weight_sat2hf.main, ["--checkpoint", LONG, "--output_path", "out"]),
        (merge_lora.main, ["--adapter", "a", "--base", LONG, "--output_path", "out"]),
    ],
)
def test_names_that_no_file_can_have(main: object, words: list[str]) -> None:
    assert callable(main)
    with pytest.raises(ConfigError, match="is no name that a file or folder can have; see --help") as error:
        main(words)
    assert len(str(error.value)) < 400
