"""The tables of docs/memory.md and README.md are those of the figures, and the figures are what arithmetic says."""

from __future__ import annotations

from pathlib import Path

import pytest
from cogvideox.errors import ConfigError
from fake_cuda.counting import ALL
from simulated_cuda.cards import GIB, fitting, smallest
from simulated_cuda.published import LAYOUTS, ROOT, key
from simulated_cuda.table import BEGIN, END, PAGES, read_figures, with_table

# Masters and two moments in fp32. Each of up to 2,000 tensors may fill a last block of 512 bytes, here or among the
# weights, and has a count of steps.
BYTES, MOST_PADDING = 12, 2000 * 4 * 512


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_the_figures(page: str) -> None:
    file = ROOT / page
    assert file.read_text(encoding="utf-8") == with_table(file, read_figures()), "run: python tools/memory.py --table"


def test_a_page_without_marks_is_told(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for text in ("nothing", BEGIN, f"{END} {BEGIN}"):
        page.write_text(text)
        with pytest.raises(ConfigError, match="are missing, between which the table belongs"):
            with_table(page, {})


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: key(*layout))
def test_weights_and_optimizer_take_what_arithmetic_says(name: str, layout: tuple[int, int]) -> None:
    """Weights in 16 bits; the optimizer's state is shared out by ZeRO. 2B is in fp16, which runs with stage 1 for 0."""
    gpus, stage = layout
    memory = read_figures()[name][key(gpus, stage)]["memory"]
    expected = BYTES * memory["trained"] / 2 / (gpus if stage or name.startswith("2b") else 1)
    assert abs(memory["optimizer"] - expected) <= MOST_PADDING


@pytest.mark.parametrize("name", ALL)
def test_every_phase_holds_what_stays(name: str) -> None:
    for layout in LAYOUTS:
        memory = read_figures()[name][key(*layout)]["memory"]
        stays = sum(memory[part] for part in ("frozen", "trained", "optimizer", "vae", "text_encoder"))
        for phase in ("forward", "backward", "VAE encode", "save"):
            assert memory["peaks"][phase] > stays, f"{phase} of {key(*layout)}"


def test_cards_have_a_margin() -> None:
    assert smallest(21 * GIB) == "24 GB" and fitting(21 * GIB)[0] == 24
    assert smallest(22 * GIB) == "32 GB"  # 22 x 1.05 + 1.5 = 24.6
    assert smallest(200 * GIB) == "more than 141 GB" and fitting(200 * GIB) == []
