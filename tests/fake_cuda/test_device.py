"""The simulated device by itself: what it counts, what it lets the host read, and what it takes over from torch."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fake_cuda.programs import answers

pytestmark = pytest.mark.timeout(1200)  # a process of minutes on a busy machine, for all tests of this file


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return json.loads(answers("units.py")[0])  # type: ignore[no-any-return]


def test_bytes_live_as_long_as_a_storage(facts: dict[str, Any]) -> None:
    """4000 bytes are 8 blocks of 512, 3200 are 7; a view holds its storage; the CPU's don't count."""
    assert facts["counting"] == [4096, 4096, 4096 + 3584, 4096 + 3584, 0, 0]


def test_a_peak_belongs_to_the_innermost_phase(facts: dict[str, Any]) -> None:
    assert facts["phases"]["outer"] == 1024 and facts["phases"]["inner"] == 1024 + 2048


def test_views_and_empty_memory_are_no_work(facts: dict[str, Any]) -> None:
    assert facts["launches"] == [2, 4096 + 3 * 2048]


def test_modules_and_data_move_as_on_a_real_device(facts: dict[str, Any]) -> None:
    assert facts["moved"] == [True, "cuda:0", "torch.bfloat16", "cpu"]


def test_pinned_memory_is_remembered(facts: dict[str, Any]) -> None:
    assert facts["pinned"] == [True, True, True, False]


def test_the_host_reads_that_all_is_finite(facts: dict[str, Any]) -> None:
    assert facts["reads"] == [True, False, False, 1.0, [True, True, True]]


def test_attention_has_no_matrix_of_scores(facts: dict[str, Any]) -> None:
    """The result in bf16, a sum per row in fp32, and two seeds."""
    expected = 4096 * 64 * 2 + 4096 * 4
    assert all(expected <= found <= expected + 2048 for found in facts["attention"])


def test_free_memory_is_what_nothing_lives_in(facts: dict[str, Any]) -> None:
    assert facts["free"] is True


def test_an_autoencoder_takes_what_the_meta_device_says(facts: dict[str, Any]) -> None:
    """tools/vae_memory.py counts without blocks of 512 bytes; a few dozen tensors are alive at a peak."""
    encode, decode, encode_on_meta, decode_on_meta = facts["vae"]
    assert 0 <= encode - encode_on_meta < 512 * 64 and 0 <= decode - decode_on_meta < 512 * 64


def test_programs_that_it_starts_are_as_usual(facts: dict[str, Any]) -> None:
    assert facts["preload"] == ""
