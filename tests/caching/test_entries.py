"""An entry is whole or not there, and what changed in it is found."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cogvideox.caching.claims import claim
from cogvideox.caching.contexts import ContextStore
from cogvideox.caching.entries import read_entry, write_entry
from cogvideox.caching.keys import Recipe
from cogvideox.data.survey import NotCachedError
from cogvideox.errors import DataError

TENSORS = {
    "mean": torch.arange(24.0).view(2, 3, 4),
    "log_variance": torch.full((2, 3, 4), -3.0, dtype=torch.bfloat16),
    "first_frame": torch.arange(12, dtype=torch.uint8).view(3, 2, 2),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    written = tmp_path / "ab" / "abc.safetensors"
    write_entry(written, TENSORS, {"key": "abc", "bucket": "5x16x32"})
    return written


def test_what_was_written_is_read(file: Path) -> None:
    entry = read_entry(file, "abc")
    assert entry.facts == {"key": "abc", "bucket": "5x16x32"}
    assert all(torch.equal(entry.tensors[name], value) for name, value in TENSORS.items())
    assert {name: value.dtype for name, value in entry.tensors.items()} == {n: v.dtype for n, v in TENSORS.items()}
    assert os.listdir(file.parent) == ["abc.safetensors"]


def test_every_flipped_bit_is_found(file: Path) -> None:
    """One in every byte of the file, header and data."""
    content = file.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        file.write_bytes(changed)
        with pytest.raises(DataError, match="damaged"):
            read_entry(file, "abc")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_file_cut_short_is_found(file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=r"damaged.*fill the cache again"):
        read_entry(file, "abc")


def test_an_entry_under_another_name(file: Path) -> None:
    with pytest.raises(DataError, match="holds another entry, abc"):
        read_entry(file, "abd")
    with pytest.raises(NotCachedError):
        read_entry(file.with_name("none.safetensors"), "none")


def test_a_context_of_another_caption_or_another_encoder(tmp_path: Path) -> None:
    """Copied to the name of another caption, of another recipe or into another cache: found in each case."""
    here = ContextStore(str(tmp_path / "here"), Recipe.of("contexts", "t5", encoder="a"), (2, 3))
    there = replace(here, root=str(tmp_path / "there"))
    other = replace(here, recipe=Recipe.of("contexts", "t5", encoder="b"))
    here.write("a cat", torch.ones(2, 3))
    written = here.place("a cat")[1]
    for store, caption in ((here, "a dog"), (there, "a dog"), (other, "a cat")):
        place = store.place(caption)[1]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(written, place)
        with pytest.raises(DataError, match=rf"{place} is damaged \(it holds another entry, {written.stem}\)"):
            store.read(caption)
    place = there.place("a cat")[1]
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(written, place)  # the same caption and encoder: it is the same entry
    assert torch.equal(there.read("a cat"), torch.ones(2, 3))
    write_entry(place, {"context": torch.ones(2, 3)}, {"key": place.stem, "caption": "a dog"})
    with pytest.raises(DataError, match=rf"{place}: is not the context of 'a cat'"):
        there.read("a cat")


def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two may make the same entry there; neither removes what the other one has begun."""
    file = tmp_path / "latents" / "r" / "ab" / "abc.safetensors"
    file.parent.mkdir(parents=True)
    begun = file.with_name(f"{file.name}.host-1.partial")
    begun.write_bytes(b"half")
    for number in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):

        def refuse(*_: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", refuse)
        taken = claim(str(tmp_path), file)
        assert taken is not None and not taken.is_effective and begun.exists()
        taken.release()
    assert not list((tmp_path / "claims").iterdir())


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 100 bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, small_files: None) -> None:
    with pytest.raises(DataError, match=r"can't be written: .*needed, .* free.*goes on from there"):
        write_entry(tmp_path / "ab" / "abc.safetensors", TENSORS, {"key": "abc"})
    assert os.listdir(tmp_path / "ab") == []


def test_a_place_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "ab").write_text("")
    with pytest.raises(DataError, match=r"can't be written: (Not a directory|File exists)"):
        write_entry(tmp_path / "ab" / "abc.safetensors", TENSORS, {"key": "abc"})
