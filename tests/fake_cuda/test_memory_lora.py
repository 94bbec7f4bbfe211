"""LoRA: memory and work of a step of every published model at its size, against what docs/memory.md says, to the
byte."""

from __future__ import annotations

from typing import Any

import pytest
from fake_cuda.figures_agree import DEFAULT, OTHERS, check_memory, check_work, count_method

pytestmark = pytest.mark.timeout(1200)  # a process of minutes on a busy machine, for all tests of this file


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    return count_method("lora", DEFAULT)


@pytest.mark.parametrize("model", DEFAULT)
def test_memory(found: dict[str, Any], model: str) -> None:
    check_memory(found[model], model, "lora")


@pytest.mark.parametrize("model", DEFAULT)
def test_work(found: dict[str, Any], model: str) -> None:
    check_work(found[model], model, "lora")


@pytest.mark.slow
def test_image_to_video() -> None:
    for model, answer in count_method("lora", OTHERS).items():
        check_memory(answer, model, "lora")
        check_work(answer, model, "lora")
