"""T5 folders of either form are found whole; what is missing or damaged is named before anything is copied."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cogvideox.errors import CheckpointError
from cogvideox.weights.hashes import FAST, hash_of
from cogvideox.weights.text_encoder_folder import cast_encoder, copy_files, text_encoder_files
from safetensors.torch import load_file, save_file
from tiny import write_t5
from transformers import T5EncoderModel

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5") / "t5"
    write_t5(folder)
    return folder


@pytest.fixture
def t5(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "t5"))


def shard(folder: Path) -> Path:
    """Two shards instead of one file; returns their index."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    parts = (names[: len(names) // 2], names[len(names) // 2 :])
    for file, part in zip(SHARDS, parts, strict=True):
        save_file({name: state[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in zip(SHARDS, parts, strict=True) for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "model.safetensors.index.json"


def test_all_files_together(t5: Path, tmp_path: Path) -> None:
    """What belongs to neither is left, and not counted for the space that is needed."""
    (t5 / "README.md").write_text("long" * 1000)
    (t5 / "flax_model.msgpack").write_bytes(bytes(10**5))
    found = text_encoder_files(t5)
    copied = copy_files(found.all, tmp_path / "copy")
    files = {file.name: file for file in (tmp_path / "copy").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= files.keys()
    assert not {"README.md", "flax_model.msgpack"} & files.keys()
    assert found.num_bytes() == sum(file.stat().st_size for file in files.values())
    assert {each.name: each.xxh3_128 for each in copied} == {name: hash_of(file, FAST) for name, file in files.items()}


@pytest.mark.parametrize("stated", ["T5Tokenizer", "T5TokenizerFast", None])
@pytest.mark.parametrize("is_zip", [True, False])
def test_two_folders_and_a_pickle(t5: Path, tmp_path: Path, stated: str | None, is_zip: bool) -> None:
    """A pipeline's text_encoder/ and tokenizer/, with weights as old snapshots have them."""
    encoder, tokenizer = tmp_path / "p" / "text_encoder", tmp_path / "p" / "tokenizer"
    encoder.mkdir(parents=True)
    tokenizer.mkdir()
    shutil.copy(t5 / "config.json", encoder)
    state = load_file(t5 / "model.safetensors")
    torch.save(state, encoder / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
    for name in ("spiece.model", "special_tokens_map.json"):
        (tokenizer / name).write_text("{}")
    if stated is not None:
        (tokenizer / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": stated}))
    found = text_encoder_files(tmp_path / "p")
    assert found.tokenizer_class == "T5Tokenizer"
    assert [file.name for file in found.encoder] == ["config.json", "pytorch_model.bin"]
    assert found.tokenizer[-1] == tokenizer / "spiece.model"
    assert found.read().keys() == state.keys()


def test_shards(t5: Path) -> None:
    shard(t5)
    assert [file.name for file in text_encoder_files(t5).weights] == list(SHARDS)


def lacks_index(folder: Path) -> None:
    shard(folder).unlink()
    (folder / SHARDS[1]).unlink()


def lacks_a_shard(folder: Path) -> None:
    shard(folder)
    (folder / SHARDS[1]).unlink()


def has_half_an_index(folder: Path) -> None:
    index = shard(folder)
    index.write_text(index.read_text()[:40])


def has_an_index_of_more(folder: Path) -> None:
    index = shard(folder)
    index.write_text(json.dumps({"weight_map": {**json.loads(index.read_text())["weight_map"], "lost": SHARDS[0]}}))


def leads_elsewhere(name: str) -> Callable[[Path], object]:
    """An index that names a file which is there, but not beside it."""

    def damage(folder: Path) -> None:
        index = shard(folder)
        weights = json.loads(index.read_text())["weight_map"]
        shutil.copy(folder / SHARDS[0], folder.parent / SHARDS[0])
        elsewhere = str(folder.parent / SHARDS[0]) if name == "absolute" else f"../{SHARDS[0]}"
        index.write_text(json.dumps({"weight_map": dict.fromkeys(weights, elsewhere)}))

    return damage


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (write("model.safetensors", POINTER), r"t5/model.safetensors is a Git LFS pointer, not the weights"),
        (cut, r"model.safetensors is truncated or damaged"),
        (lacks_index, rf"has shards \({SHARDS[0]}, ...\) but no index that lists them"),
        (lacks_a_shard, rf"index.json lists 1 of 2 files that are not there, e.g. {SHARDS[1]}"),
        (has_half_an_index, r"index.json is no valid JSON"),
        (leads_elsewhere("absolute"), r"index.json was refused: it lists '/.*, which is no file of its own folder"),
        (leads_elsewhere("above"), r"index.json was refused: it lists '\.\./.*, which is no file of its own folder"),
        (has_an_index_of_more, r"index.json lists 1 tensors that are in no file, e.g. lost"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"has no weights: expected model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), r"is not a T5 text encoder: it needs config.json"),
        (write("config.json", "{"), r"t5/config.json is no valid JSON"),
        (write("tokenizer_config.json", "{"), r"tokenizer_config.json is no valid JSON"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"holds no T5 tokenizer: it needs spiece.model or"),
    ],
)
def test_incomplete(t5: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(t5)
    with pytest.raises(CheckpointError, match=message):
        text_encoder_files(t5)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_cast(t5: Path, tmp_path: Path, key: str) -> None:
    """What opens it gets the new type, whichever of the two names its config had; large files are split."""
    config = json.loads((t5 / "config.json").read_text())
    config.pop("dtype", None)
    (t5 / "config.json").write_text(json.dumps({**config, key: "float32"}))
    found = text_encoder_files(t5)
    written = cast_encoder(found, tmp_path / "out", torch.bfloat16, max_shard_bytes=4000)
    assert len(written) > 1
    assert {each.name for each in written} == {file.name for file in (tmp_path / "out").glob("*.safetensors")}
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["dtype"] == "bfloat16" and "torch_dtype" not in said
    opened, before = T5EncoderModel.from_pretrained(tmp_path / "out"), T5EncoderModel.from_pretrained(t5)
    assert opened.dtype == torch.bfloat16 and before.dtype == torch.float32
    for name, value in before.state_dict().items():
        assert torch.equal(opened.state_dict()[name], value.bfloat16()), name
    rest = sum(file.stat().st_size for file in (*found.configs, *found.tokenizer))
    shards = (load_file(tmp_path / "out" / each.name) for each in written)
    assert found.num_bytes(torch.bfloat16) == rest + sum(
        2 * value.numel() for each in shards for value in each.values()
    )
