"""Files that we wrote are compared with their manifests; damage is named, and what a user changed is no damage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cogvideox.errors import CheckpointError
from cogvideox.weights.checksums import check_own_checksums
from cogvideox.weights.hashes import FAST, hash_of
from cogvideox.weights.integrity import FileChecks, check_digest
from cogvideox.weights.manifest import find_record
from cogvideox.weights.sat_folder import STATES_FILE, write_checkpoint
from safetensors.torch import save_file

STATE = {"model.diffusion_model.a": torch.arange(3000.0).view(30, 100), "model.diffusion_model.b": torch.ones(5)}


def flip(file: Path, position: int, bit: int = 3) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << bit
    file.write_bytes(content)


def check(*files: Path, verify: bool = False) -> None:
    with FileChecks(files, verify=verify) as checks:
        checks.wait()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with two checkpoints."""
    for iteration in (10, 20):
        write_checkpoint(tmp_path / "run", iteration, STATE, {})
    return tmp_path / "run"


def test_a_checkpoint_has_the_hash_of_its_file(run: Path) -> None:
    file = run / "20" / STATES_FILE
    manifest = json.loads((run / "20" / "manifest.json").read_text())
    record = {"path": STATES_FILE, "bytes": file.stat().st_size, FAST: hash_of(file, FAST)}
    assert manifest == {"iteration": 20, "inputs": [], "outputs": [record]}
    check(file)


def test_every_byte_counts(run: Path) -> None:
    """Also those that reading skips: the padding between tensors, and the tensors themselves."""
    file = run / "20" / STATES_FILE
    good = file.read_bytes()
    for position in range(0, len(good), 97):
        flip(file, position, position % 8)
        with pytest.raises(CheckpointError, match=r"model_states\.pt is damaged, it is not what was written"):
            check(file)
        file.write_bytes(good)
    check(file)


def test_the_message_names_the_file_and_the_ways_out(run: Path) -> None:
    file = run / "20" / STATES_FILE
    file.write_bytes(file.read_bytes()[:-4096] + bytes(4096))
    with pytest.raises(CheckpointError) as caught:
        check(file)
    text = str(caught.value)
    assert str(file) in text and "copy it again" in text and f"or take an earlier iteration: {run / '10'}" in text
    assert "Changed on purpose? Then remove manifest.json" in text and "\n" not in text
    (run / "20" / "manifest.json").unlink()
    check(file)


@pytest.mark.parametrize("change", [lambda old: old[:-1], lambda old: old + b"\0"])
def test_another_size_is_said_before_anything_is_read(run: Path, change) -> None:
    file = run / "10" / STATES_FILE
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(CheckpointError, match=r"damaged.* bytes instead of [\d,]+, by .*/10/manifest.json"):
        FileChecks([file])


def test_what_a_user_does_is_no_damage(run: Path) -> None:
    (run / "latest").write_text("10\n")
    (run / "20" / "notes.txt").write_text("the best one")
    torch.save(STATE, run / "20" / "other.pt")
    check(run / "latest", run / "20" / "notes.txt", run / "20" / "other.pt", run / "20" / STATES_FILE)


def test_files_of_a_conversion_are_found_from_below(tmp_path: Path) -> None:
    file = tmp_path / "transformer" / "1" / STATES_FILE
    write_checkpoint(tmp_path / "transformer", 1, STATE, {})
    (file.parent / "manifest.json").unlink()
    record = {"path": f"transformer/1/{STATES_FILE}", "bytes": file.stat().st_size, FAST: hash_of(file, FAST)}
    (tmp_path / "conversion.json").write_text(json.dumps({"inputs": [], "outputs": [record]}))
    linked = tmp_path.parent / f"{tmp_path.name}-link"
    linked.symlink_to(tmp_path / "transformer")
    for path in (file, linked / "1" / STATES_FILE):
        found = find_record(path)
        assert found is not None and found.manifest.name == "conversion.json"
    flip(file, 500)
    with pytest.raises(CheckpointError, match=r"is damaged.*Then remove conversion\.json"):
        check(linked / "1" / STATES_FILE)
    with pytest.raises(CheckpointError, match=r"is damaged"):
        check_digest(file, hash_of(file, FAST))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "\xff",
        '{"inputs": [], "outputs": 3}',
        '{"inputs": [], "outputs": [1]}',
        '{"inputs": [], "outputs": [{"path": "x"}]}',
        '{"inputs": [], "outputs": [{"path": "x", "bytes": "1", "xxh3_128": "0"}]}',
        '{"inputs": [], "outputs": [{"path": "../x", "bytes": 1, "xxh3_128": "0"}]}',
        '{"inputs": [], "outputs": [{"path": "/x", "bytes": 1, "xxh3_128": "0"}]}',
        "[" * 100_000,
    ],
)
def test_damaged_manifests(run: Path, text: str) -> None:
    (run / "20" / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"manifest\.json, which has the hashes of files, is damaged") as caught:
        FileChecks([run / "20" / STATES_FILE])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", '{"name": "of another program"}', '{"outputs": ["a.js"]}'])
def test_manifests_of_other_programs(run: Path, text: str) -> None:
    (run / "20" / "manifest.json").write_text(text)
    check(run / "20" / STATES_FILE)


def test_damage_is_the_reason_for_what_was_found_inside(run: Path) -> None:
    file = run / "20" / STATES_FILE
    flip(file, 1500)
    with pytest.raises(CheckpointError, match="is damaged"), FileChecks([file]):
        raise CheckpointError("NaN in a tensor")
    with pytest.raises(CheckpointError, match="something else"), FileChecks([run / "10" / STATES_FILE]):
        raise CheckpointError("something else")


def test_files_of_others_on_request(tmp_path: Path) -> None:
    """Their zip archive has a checksum of every tensor; safetensors has none."""
    torch.save(STATE, tmp_path / "w.pt")
    save_file(STATE, tmp_path / "w.safetensors")
    torch.save(STATE, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    files = [tmp_path / name for name in ("w.pt", "w.safetensors", "old.pt")]
    check(*files, verify=True)
    assert [check_own_checksums(file) for file in files] == [True, False, False]
    position = files[0].read_bytes().index(torch.tensor([100.0, 101.0]).numpy().tobytes())
    flip(files[0], position)
    check(*files)
    with pytest.raises(CheckpointError, match=r"w\.pt is damaged \(Bad CRC-32.*copy or download it again"):
        check(*files, verify=True)
