"""Archives that torch.save never writes are refused in one line, before torch maps them."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cogvideox.errors import CheckpointError
from cogvideox.weights.torch_file import load_file

Records = list[tuple[str, bytes]]
STATE = {"module": {"a": torch.arange(12.0), "b": torch.ones(4, dtype=torch.bfloat16)}}


def records_of(path: Path) -> Records:
    with zipfile.ZipFile(path) as archive:
        return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]


def write(path: Path, records: Records, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records:
            archive.writestr(name, content)
    return path


@pytest.fixture
def records(tmp_path: Path) -> Records:
    torch.save(STATE, tmp_path / "good.pt")
    return records_of(tmp_path / "good.pt")


def test_written_anew_it_is_read(tmp_path: Path, records: Records) -> None:
    read = load_file(write(tmp_path / "w.pt", records))
    assert torch.equal(read["module"]["a"], STATE["module"]["a"])


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: [*found, found[-1]], r"has two records"),
        (lambda found: [(n, c[:-8] if n.endswith("data/0") else c) for n, c in found], "takes 48 bytes of record '0'"),
        (lambda found: [each for each in found if not each[0].endswith("data/1")], "record '1', which has None"),
    ],
)
def test_records_that_do_not_fit(
    tmp_path: Path, records: Records, change: Callable[[Records], Records], message: str
) -> None:
    """A shorter record would be completed with the bytes that follow it."""
    path = write(tmp_path / "w.pt", change(records))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_file(path)
    assert "\n" not in str(caught.value)


def test_compressed_records(tmp_path: Path, records: Records) -> None:
    with pytest.raises(CheckpointError, match="is compressed"):
        load_file(write(tmp_path / "w.pt", records, zipfile.ZIP_DEFLATED))


def test_overlapping_records(tmp_path: Path, records: Records) -> None:
    """The length of the extra field before the data, made longer: the record ends inside the next one."""
    path = write(tmp_path / "w.pt", records)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = next(each for each in archive.infolist() if each.filename.endswith("data/0"))
    content[entry.header_offset + 28 : entry.header_offset + 30] = struct.pack("<H", 16)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="'good/data/0' overlaps the next one"):
        load_file(path)


class _Call:
    """Pickled, this calls a function when it is read."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> object:
        return self.call


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(1).expand(2**20, 2**20), r"'module\.w' of shape .* has only 4 bytes"),
        (torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (5,)), "is no plain tensor but torch.sparse_coo"),
        (torch.ones(3, device="meta"), "is no plain tensor but torch.strided, torch.float32, meta"),
        (_Call(torch.FloatTensor, 2**28), "its tensors take|was refused"),
        (_Call(bytearray, 2**62), "is truncated or damaged"),
    ],
)
def test_what_takes_more_than_the_file_has(tmp_path: Path, value: object, message: str) -> None:
    torch.save({"module": {"w": value}}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_file(tmp_path / "w.pt")
    assert "\n" not in str(caught.value)


def test_views_and_tied_weights_are_plain(tmp_path: Path) -> None:
    table = torch.arange(20.0)
    torch.save({"a": table[2:8], "b": table, "c": table.view(4, 5).t(), "d": torch.empty(0)}, tmp_path / "w.pt")
    read = load_file(tmp_path / "w.pt")
    assert read["a"].tolist() == table[2:8].tolist() and read["c"].shape == (5, 4)


def test_a_pickle_with_a_huge_memo(tmp_path: Path, records: Records) -> None:
    """C's unpickler would fill 64 GB for this one byte code."""
    bomb = pickle.PROTO + b"\x02" + pickle.NONE + pickle.LONG_BINPUT + struct.pack("<I", 2**32 - 1) + pickle.STOP
    changed = [(name, bomb if name.endswith("data.pkl") else content) for name, content in records]
    assert load_file(write(tmp_path / "w.pt", changed)) is None


def test_dicts_inside_each_other(tmp_path: Path) -> None:
    """Every level twice in the next: walked once each, not 2^60 times."""
    value: object = {"w": torch.ones(1)}
    for _ in range(60):
        value = {"a": value, "b": value}
    torch.save(value, tmp_path / "w.pt")
    assert load_file(tmp_path / "w.pt").keys() == {"a", "b"}
