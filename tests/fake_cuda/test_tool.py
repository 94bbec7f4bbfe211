"""`python tools/memory.py`: what it prints for a small model, and one line for what is wrong."""

from __future__ import annotations

import re

import memory
import pytest
from cogvideox.errors import run_cli
from fake_cuda.programs import ROOT, run

pytestmark = pytest.mark.timeout(1200)  # a process of minutes on a busy machine, for all tests of this file

TOOL = ROOT / "tools" / "memory.py"
DEMO = ("--base", "configs/demo_lora.yaml", "configs/demo_sft.yaml")


def gib(text: str, title: str) -> float:
    match = re.search(rf"^ *{re.escape(title)} +([\d.]+)", text, re.MULTILINE)
    assert match is not None, f"{title} in\n{text}"
    return float(match.group(1))


@pytest.fixture(scope="module")
def small() -> str:
    """The demo's model with fewer layers; its text encoder is in the repository."""
    done = run(TOOL, *DEMO, "--gpus", "2", "model.network_config.params.num_layers=2")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_says_the_peak_by_part(small: str) -> None:
    assert "counted, not measured: configs/demo_lora.yaml configs/demo_sft.yaml" in small
    assert "one of 2 GPUs" in small and "x 64 x 96" in small and "not counted: fragmentation" in small
    peak = gib(small, "peak of training")
    phases = [gib(small, title) for title in ("VAE encodes clips", "forward", "backward", "checkpoint is saved")]
    assert 0 < max(phases) <= peak <= gib(small, "with preview videos")
    assert "fits 24, 32, 40, 48, 80, 96, 141 GB" in small


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give the files of a training run"),
        (("--table", "more"), "--table takes no other words"),
        ((*DEMO, "--gpus", "none"), "--gpus: 'none' is no number of GPUs; give one from 1 to 4096"),
        ((*DEMO, "--gpus"), "--gpus: '' is no number of GPUs"),
        ((*DEMO, "--gpus=0"), "--gpus: '0' is no number of GPUs"),
        (("--base", "configs/none.yaml"), "configs/none.yaml"),
        ((*DEMO, "data.max_num_frames=50"), "must be 4k + 1, not 50"),
        ((*DEMO, "deepspeed.zero_optimization.stage=3"), "3"),
        pytest.param(
            (*DEMO, "model.conditioner_config.params.encoder.params.model_dir=nowhere"),
            "model_dir: no nowhere/config.json",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            (*DEMO, "deepspeed.train_batch_size=7", "--gpus", "2"),
            "train_batch_size: 7 is not",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_is_wrong_is_one_line(words: tuple[str, ...], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_cli(memory.main, words) == 2
    out, err = capfd.readouterr()
    (line,) = [each for each in err.splitlines() if each.startswith("error: ")]
    assert not out
    assert message in line


@pytest.mark.slow
def test_of_each_phase_the_larger_bucket_counts() -> None:
    """9 frames have most tokens; 5 larger ones have most pixels for a VAE that takes 4 frames at a time."""
    sizes = "model.network_config.params.modules.pos_embed_config.params.resize=interpolate"
    words = (*DEMO, sizes, "model.first_stage_config.params.encode_chunk_frames=4")
    found = [run(TOOL, *words, f"data.buckets={each}").stdout for each in ("[[9,64,96]]", "[[5,80,112]]")]
    both = run(TOOL, *words, "data.buckets=[[9,64,96],[5,80,112]]").stdout
    assert "micro batch 8 x 9 x 64 x 96 and x 5 x 80 x 112" in both
    for title in ("VAE encodes clips", "forward", "backward", "peak of training"):
        assert gib(both, title) == max(gib(each, title) for each in found)
    assert gib(found[0], "VAE encodes clips") < gib(found[1], "VAE encodes clips")
