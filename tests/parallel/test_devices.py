"""A GPU is found without torch where torch finds one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cogvideox.errors import ConfigError
from cogvideox.parallel.devices import (
    choose_allocator,
    device_index,
    has_gpu,
    leave_device_to_deepspeed,
    refuse_shared,
)

ROOT = Path(__file__).resolve().parents[2]


def test_agrees_with_torch() -> None:
    assert has_gpu() == torch.cuda.is_available()


@pytest.mark.parametrize("local_rank, count, index", [(0, 8, 0), (7, 8, 7), (0, 1, 0), (3, 1, 0), (7, 1, 0)])
def test_the_device_of_a_process(local_rank: int, count: int, index: int) -> None:
    assert device_index(12, local_rank, count) == index


def test_more_processes_than_devices() -> None:
    with pytest.raises(ConfigError, match=r"process 12 is number 4 on this machine and sees 4 CUDA devices; start at"):
        device_index(12, 4, 4)


def test_one_device_for_two_processes() -> None:
    refuse_shared([("a", "GPU-1"), ("a", "GPU-2"), ("b", "GPU-1")])
    with pytest.raises(ConfigError, match=r"processes 1 and 2 have the same CUDA device \(GPU-2 of a\); start at most"):
        refuse_shared([("a", "GPU-1"), ("a", "GPU-2"), ("a", "GPU-2")])


def test_deepspeed_takes_the_device_that_was_chosen() -> None:
    """It reads LOCAL_RANK, and insists on Open MPI's being the same."""
    environment = {"LOCAL_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "3"}
    leave_device_to_deepspeed(environment, 0)
    assert environment == {"LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    environment = {"LOCAL_RANK": "3"}
    leave_device_to_deepspeed(environment, 0)
    assert environment == {"LOCAL_RANK": "0"}


NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


@pytest.mark.parametrize("given", [{}, {"PYTORCH_CUDA_ALLOC_CONF": " "}])
def test_the_allocator_may_join_blocks(given: dict[str, str]) -> None:
    environment = dict(given)
    choose_allocator(environment)
    assert environment == dict.fromkeys(NAMES[:2], "expandable_segments:True")


@pytest.mark.parametrize("name", NAMES)
def test_what_the_user_says_about_the_allocator_stands(name: str) -> None:
    environment = {name: "max_split_size_mb:512"}
    choose_allocator(environment)
    assert environment == {name: "max_split_size_mb:512"}


def test_torch_reads_one_of_the_names() -> None:
    """Whatever its version: a name that it no longer read would be without effect, and nobody would see it."""
    library = Path(torch.__file__).parent / "lib" / "libc10.so"
    assert any(name.encode() + b"\0" in library.read_bytes() for name in NAMES[:2])


def test_both_programs_choose_it_before_torch_is_imported() -> None:
    """And it changes nothing on the CPU: a tensor is made with it, without a word."""
    code = (
        "import runpy, sys, warnings; sys.path.insert(0, 'sat'); sys.argv = ['x', '--base', 'missing.yaml']\n"
        "for name in ('train_video', 'sample_video'):\n"
        "    try: runpy.run_path(f'sat/{name}.py', run_name='__main__')\n"
        "    except SystemExit as end: assert end.code == 2\n"
        "import os\n"
        "assert 'torch' not in sys.modules and os.environ['PYTORCH_ALLOC_CONF'] == 'expandable_segments:True'\n"
        "warnings.simplefilter('error'); import torch; assert torch.ones(3).sum() == 3"
    )
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
