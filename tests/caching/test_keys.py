"""A wrong hit is impossible: each part of what an entry is made of changes its key."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cogvideox.caching.keys import Recipe, context_key, latent_key
from cogvideox.caching.media_hashes import MediaHashes
from cogvideox.caching.recipes import context_recipe, latent_recipe
from cogvideox.config.schema import ModelConfig
from cogvideox.data.clips import ClipDecoder, ReadJob
from cogvideox.data.decode import open_reader
from cogvideox.data.media import Media
from cogvideox.data.timing import ClipSpec
from cogvideox.errors import ConfigError, DataError
from cogvideox.geometry import Bucket, Geometry
from hypothesis import given
from hypothesis import strategies as st
from model.parts import model_config

SPEC = ClipSpec(video_size=(32, 48), max_num_frames=9)
RECIPE = Recipe.of("latents", "vae.pt", vae=["1"], dtype="bfloat16")
# Another value for every field of ClipSpec: a new field has to be added here, and be a part of the key.
OTHER: dict[str, Any] = {
    "fps": 16.0,
    "skip_frms_num": 3.0,
    "short_clips": "pad",
    "random_start": True,
    "frame_stride": 2,
    "windows": "all",
    "scene_cuts": "avoid",
    "geometry": Geometry(patch_size=(2, 2, 2)),
}


def key(spec: ClipSpec = SPEC, recipe: Recipe = RECIPE, content: str = "a", **job: Any) -> str:
    given = {"media": Media("clip.mp4"), "sample_id": 1, "bucket": Bucket(9, 32, 48), "seed": 0, "epoch": 0, **job}
    return latent_key(recipe, ClipDecoder(spec, open_reader("pyav")), ReadJob(**given), lambda _: content)


def test_every_setting_of_reading_is_in_the_key() -> None:
    fields = {field.name for field in dataclasses.fields(ClipSpec)} - {"video_size", "max_num_frames"}
    assert fields == set(OTHER), "a field of ClipSpec that this test doesn't know"
    keys = [key(), *(key(dataclasses.replace(SPEC, **{name: value})) for name, value in OTHER.items())]
    assert len(set(keys)) == len(keys)
    assert key(dataclasses.replace(SPEC, short_clips="skip")) == key(dataclasses.replace(SPEC, short_clips="error"))


@given(st.tuples(st.integers(1, 99), st.integers(1, 999), st.integers(1, 999)), st.text(), st.text())
def test_bucket_bytes_and_recipe_are_in_the_key(bucket: tuple[int, int, int], content: str, weights: str) -> None:
    recipe = Recipe.of("latents", "vae.pt", vae=[weights], dtype="bfloat16")
    same = bucket == (9, 32, 48) and content == "a" and weights == "1"
    assert (key(recipe=recipe, content=content, bucket=Bucket(*bucket)) == key()) == same


def test_what_a_clip_is_called_does_not_count() -> None:
    assert key(media=Media("other.mp4"), sample_id=2, epoch=7, seed=3) == key()
    assert key(media=Media("picture.png")) != key()  # read by another reader


def test_random_starts_belong_to_a_sample_and_a_view() -> None:
    spec = dataclasses.replace(SPEC, random_start=True)
    keys = [key(spec), key(spec, epoch=1), key(spec, seed=1), key(spec, sample_id=2)]
    assert len(set(keys)) == 4


@given(st.text(), st.text())
def test_captions_are_told_apart(one: str, other: str) -> None:
    assert (context_key(RECIPE, one) == context_key(RECIPE, other)) == (one == other)


@pytest.fixture
def recipe_of(family_of: Callable[[str], Any], tmp_path: Path) -> Callable[..., str]:
    def get(dtype: torch.dtype = torch.float32, stored: str = "computed", image: bool = False, **params: Any) -> str:
        config = model_config(family_of("2b"))
        node = config.first_stage_config
        node = {**node, "params": {**node["params"], **params}}
        config = dataclasses.replace(config, first_stage_config=node)
        hashes = MediaHashes(str(tmp_path))
        return latent_recipe(config, dtype, stored, with_first_frame=image, hashes=hashes).name

    return get


def test_the_recipe_of_latents(recipe_of: Callable[..., str], tmp_path: Path, family_of: Callable[[str], Any]) -> None:
    other = tmp_path / "other.pt"
    content = bytearray(family_of("2b").vae.read_bytes())
    content[len(content) // 2] ^= 1
    other.write_bytes(content)
    names = [
        recipe_of(),
        recipe_of(torch.bfloat16),
        recipe_of(stored="bf16"),
        recipe_of(image=True),
        recipe_of(ckpt_path=str(other)),
        recipe_of(encode_chunk_frames=8),
        recipe_of(tile_size=[16, 16]),
        recipe_of(tile_size=[16, 16], tile_overlap=8),
        recipe_of(norm_num_groups=2),
    ]
    assert len(set(names)) == len(names)
    # What decodes, and defaults that are written out, change nothing.
    same = recipe_of(decode_chunk_latent_frames=None, offload_chunks=True, tile_overlap=64, z_channels=16)
    assert same == names[0]
    with pytest.raises(ConfigError, match="no ckpt_path"):
        recipe_of(ckpt_path=None)


def test_the_recipe_of_contexts(family_of: Callable[[str], Any], tmp_path: Path) -> None:
    config = model_config(family_of("2b"))
    hashes = MediaHashes(str(tmp_path))

    def with_length(length: int) -> ModelConfig:
        node = config.conditioner_config
        encoder = {**node["params"]["encoder"], "params": {**node["params"]["encoder"]["params"], "max_length": length}}
        return dataclasses.replace(
            config, conditioner_config={**node, "params": {**node["params"], "encoder": encoder}}
        )

    names = [
        context_recipe(config, torch.float32, hashes).name,
        context_recipe(config, torch.bfloat16, hashes).name,
        context_recipe(with_length(11), torch.float32, hashes).name,
    ]
    assert len(set(names)) == 3


def test_bytes_are_hashed_once_and_a_changed_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    import xxhash

    file, hashes = tmp_path / "clip.mp4", MediaHashes(str(tmp_path / "cache"))
    file.write_bytes(b"0123456789" * 1000)
    whole = Media(str(file))
    assert hashes.of(whole) == xxhash.xxh3_128_hexdigest(file.read_bytes())
    part = Media(str(file), 10, 20, "part.mp4")
    assert hashes.of(part) == xxhash.xxh3_128_hexdigest(file.read_bytes()[10:30])
    stamp = os.stat(file)
    file.write_bytes(b"9876543210" * 1000)
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert hashes.of(whole) == xxhash.xxh3_128_hexdigest(file.read_bytes())
    monkeypatch.setattr("cogvideox.caching.media_hashes._hash_bytes", lambda _: pytest.fail("it was read again"))
    assert hashes.of(whole) == xxhash.xxh3_128_hexdigest(file.read_bytes())
    with pytest.raises(DataError, match="is not a file"):
        hashes.of(Media(str(tmp_path / "gone.mp4")))
