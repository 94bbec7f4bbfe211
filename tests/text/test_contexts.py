"""Contexts that are remembered are those that the encoder gives for the caption alone, once per machine."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from cogvideox.errors import DataError
from cogvideox.text.conditioner import Conditioner
from cogvideox.text.contexts import ContextFile, own_context_file
from cogvideox.text.encoders import T5Encoder
from processes import run_processes
from text.tiny_t5 import build_tiny_t5

SHAPE = (12, 16)
LONG = "a red square moves over the textured ground " * 1250  # 10,000 words
CAPTIONS = ["a red square moves left", "", LONG, "the blue circle", "Ein rotes Quadrat, \u2028 \U0001f600"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_t5(tmp_path_factory.mktemp("t5") / "t5")


def conditioner_in(folder: Path, dtype: torch.dtype) -> Conditioner:
    return Conditioner(T5Encoder(str(folder), max_length=SHAPE[0])).move("cpu", dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backwards", [False, True])
def test_a_context_is_the_encoders_to_the_bit_whatever_is_encoded_beside_it(
    folder: Path, dtype: torch.dtype, backwards: bool
) -> None:
    conditioner = conditioner_in(folder, dtype)
    expected = [conditioner.encode([caption]) for caption in CAPTIONS]
    conditioner.remember(own_context_file([*CAPTIONS, *CAPTIONS[:2]], SHAPE, dtype))
    for caption in CAPTIONS[::-1] if backwards else CAPTIONS:
        conditioner.encode_once(caption)
    conditioner.free()
    for caption, context in zip(CAPTIONS, expected, strict=True):
        assert torch.equal(conditioner.encode([caption]), context) and context.dtype == dtype
    together = conditioner.encode(CAPTIONS[::-1])
    assert torch.equal(together, torch.cat(expected[::-1]))


def test_what_comes_first_is_encoded_then_and_once(folder: Path) -> None:
    conditioner = conditioner_in(folder, torch.float32)
    conditioner.remember(own_context_file(CAPTIONS[:2], SHAPE, torch.float32))
    calls: list[Any] = []
    conditioner.encoder.register_forward_hook(lambda _, given, __: calls.append(given[0]))
    for _ in range(2):
        conditioner.encode([CAPTIONS[1], CAPTIONS[0], CAPTIONS[1]])
    assert calls == [[CAPTIONS[1]], [CAPTIONS[0]]]
    conditioner.encode([CAPTIONS[3], CAPTIONS[0]])  # one that nobody announced
    assert calls[2:] == [[CAPTIONS[3], CAPTIONS[0]]]


def test_a_copy_is_handed_out(folder: Path) -> None:
    conditioner = conditioner_in(folder, torch.float32)
    conditioner.remember(own_context_file(CAPTIONS, SHAPE, torch.float32))
    first = conditioner.encode(CAPTIONS[:1], device=torch.device("cpu"))
    kept = first.clone()
    first.zero_()
    assert torch.equal(conditioner.encode(CAPTIONS[:1]), kept)
    dropped = conditioner.encode(CAPTIONS[:2], torch.tensor([False, True]), torch.device("cpu"))
    assert (dropped[0] == 0).all() and not (dropped[1] == 0).all()
    assert torch.equal(conditioner.encode(CAPTIONS[:1]), kept)


def test_an_encoder_of_another_type_is_cast(folder: Path) -> None:
    """On a CPU, T5 computes in fp32 for a model in fp16."""
    conditioner = conditioner_in(folder, torch.float32)
    exact = conditioner.encode(CAPTIONS[:1])
    conditioner.remember(own_context_file(CAPTIONS, SHAPE, torch.float16))
    assert torch.equal(conditioner.encode(CAPTIONS[:1]), exact.half())


def test_a_caption_that_nobody_encoded_is_an_error_of_ours(folder: Path) -> None:
    conditioner = conditioner_in(folder, torch.float32)
    conditioner.remember(own_context_file(CAPTIONS, SHAPE, torch.float32))
    conditioner.free()
    with pytest.raises(AssertionError, match="given up before it has seen 'a red square moves left'"):
        conditioner.encode(CAPTIONS[:1])
    with pytest.raises(AssertionError, match=r"given up before it has seen all of \['up'\]"):
        conditioner.encode(["up"])


def test_size_is_that_of_whole_contexts() -> None:
    contexts = own_context_file(["a"] * 3 + ["b", "c"], (226, 4096), torch.bfloat16)
    assert contexts.num_bytes == 4096 + 3 * 226 * 4096 * 2
    assert own_context_file([], SHAPE, torch.bfloat16).num_bytes == 4096
    many = own_context_file([str(n) for n in range(5000)], (1, 1), torch.float32)
    assert many.num_bytes == 2 * 4096 + 5000 * 4
    for row in (0, 4095, 4999):
        many.fill(str(row), lambda row=row: torch.tensor([[float(row)]]))
    assert many.read(["4999", "0", "4095"]).flatten().tolist() == [4999.0, 0.0, 4095.0]


def test_too_little_room_is_said_before_anything_is_encoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", full)
    message = r"contexts of 2 captions need 3\.7 MB in .*, where .* are free \(No space.*\); set TMPDIR to .*=device"
    with pytest.raises(DataError, match=message):
        own_context_file(["a", "b"], (226, 4096), torch.bfloat16)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"no temporary file for the contexts .*nowhere.*; set TMPDIR"):
        own_context_file(["a"], (226, 4096), torch.bfloat16)


def fill_slowly(place: Path, names: list[str]) -> tuple[list[str], float]:
    """What this process encoded of all captions, each taking a while, and the sum of what it then reads."""
    contexts, mine = ContextFile(place.open("r+b"), names, (1, 4), torch.float32), []
    for name in names:

        def encode(name: str = name) -> torch.Tensor:
            mine.append(name)
            time.sleep(0.02)
            return torch.full((1, 4), float(name))

        contexts.fill(name, encode)
    return mine, float(contexts.read(names).sum())


@pytest.mark.slow
def test_processes_share_the_file_and_encode_each_caption_once(tmp_path: Path) -> None:
    place, names = tmp_path / "contexts", [str(n) for n in range(30)]
    place.touch()
    answers = run_processes(fill_slowly, 3, place, names)
    assert sorted((name for mine, _ in answers for name in mine), key=int) == names
    assert {total for _, total in answers} == {4.0 * sum(range(30))}


def test_a_process_that_is_killed_while_it_encodes_leaves_the_row_to_the_next(tmp_path: Path) -> None:
    place = tmp_path / "contexts"
    place.touch()
    contexts = ContextFile(place.open("r+b"), ["a"], (1, 1), torch.float32)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:

        def stuck() -> torch.Tensor:
            os.write(write_end, b"x")
            return torch.full((1, 1), time.sleep(100) or 2.0)

        try:
            ContextFile(place.open("r+b"), ["a"], (1, 1), torch.float32).fill("a", stuck)
        finally:
            os._exit(1)
    os.read(read_end, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    contexts.fill("a", lambda: torch.ones(1, 1))
    assert contexts.read(["a"]).item() == 1.0
