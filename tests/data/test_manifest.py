"""Samples as columns of a file: what comes back, views of it, and copies in other processes."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from cogvideox.data import manifest as module
from cogvideox.data.manifest import Manifest, ManifestWriter, ids_of
from cogvideox.data.media import Media
from cogvideox.data.order import hash_words
from cogvideox.data.sample import Sample, all_captions
from cogvideox.data.sources.spec import Rows
from cogvideox.errors import DataError
from hypothesis import given
from hypothesis import strategies as st

ODD = os.fsdecode(b"caf\xe9.mp4")


def small() -> Manifest:
    writer = ManifestWriter()
    writer.add(0, Rows(["a", "b"], ["a.mp4", ODD], ["one", "two"]))
    writer.add(1, Rows([], [], []))
    parts = [Media("s.tar", 512, 100, "a.mp4"), Media("c.mp4")]
    writer.add(2, Rows(["a", "c"], parts, [("x", "猫"), ("",)], [Media("i.png"), None]))
    return writer.finish()


def test_samples_come_back() -> None:
    manifest = small()
    ids = [hash_words("sample", *name) for name in (("a", 0), ("b", 0), ("a", 1), ("c", 0))]
    expected = [
        Sample(Media("a.mp4"), ("one",), ids[0], 0),
        Sample(Media(ODD), ("two",), ids[1], 0),
        Sample(Media("s.tar", 512, 100, "a.mp4"), ("x", "猫"), ids[2], 2, Media("i.png")),
        Sample(Media("c.mp4"), ("",), ids[3], 2),
    ]
    assert list(manifest) == expected == [manifest[place] for place in range(4)] and len(manifest) == 4
    assert manifest[-1] == expected[-1] and list(manifest[1:3]) == expected[1:3]
    assert manifest.sample_ids().tolist() == ids and manifest.column("source").to_pylist() == [0, 0, 2, 2]
    with pytest.raises(IndexError):
        manifest[4]


@given(
    st.lists(
        st.sampled_from(["a.mp4", "b.PNG", ".png", "d/.png", "..jpg", "x.png/y", "x.png/y.Webp", ODD, ODD + ".bmp"])
    )
)
def test_columns_say_what_the_samples_say(paths: list[str]) -> None:
    writer = ManifestWriter()
    medias = [Media(path) for path in paths] + [Media("s.tar", 512 * n, 9, f"{n}.jpg") for n in (1, 2, 1)]
    captions = [(f"caption {len(media.path)}", media.path[:1]) for media in medias]
    writer.add(0, Rows([str(number) for number in range(len(medias))], medias, captions))
    manifest = writer.finish()
    for view in (manifest, manifest.select(np.arange(len(medias))[::-2])):
        samples = list(view)
        assert list(view.each_media()) == [sample.media for sample in samples]
        assert view.num_images() == sum(sample.media.is_image for sample in samples)
        assert view.captions() == all_captions(samples)
        numbers = dict(zip([sample.media for sample in samples], view.file_numbers().tolist(), strict=True))
        assert [numbers[sample.media] for sample in samples] == view.file_numbers().tolist()
        assert len(set(numbers.values())) == len(numbers)


def test_views_and_what_is_planned() -> None:
    manifest = small()
    view = manifest.select(
        np.array([3, 0, 0]),
        sample_ids=np.array([7, 8, 9]),
        windows=np.array([0, 0, 1], np.int32),
        cuts=pa.array([[], [5, 9], [5, 9]], pa.list_(pa.int64())),
    )
    assert [(each.media.path, each.sample_id, each.window) for each in view] == [
        ("c.mp4", 7, 0), ("a.mp4", 8, 0), ("a.mp4", 9, 1)
    ]  # fmt: skip
    assert view[2].cuts == (5, 9) and view[0].cuts == manifest[0].cuts == ()
    numbers = view.file_numbers().tolist()
    assert numbers[1] == numbers[2] != numbers[0] and len(set(manifest.file_numbers().tolist())) == 4
    assert list(view.select(np.array([2]))) == [view[2]]
    assert [media.path for media in view.medias(0, 2)] == ["c.mp4", "a.mp4"]


def test_a_copy_here_is_the_same_file_and_elsewhere_has_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = small()[1:]
    sent = pickle.dumps(manifest)
    assert pickle.loads(sent) == manifest and list(pickle.loads(sent)) == list(manifest)
    path = manifest._content.path
    assert pickle.loads(sent.replace(path.encode(), b"/" * len(path))) == manifest  # where the file is not
    other = small()  # another list has the place where the file was
    assert pickle.loads(sent.replace(path.encode(), other._content.path.encode())) == manifest
    monkeypatch.setattr(module, "_MOST_BYTES_SENT", 10)
    sent = pickle.dumps(manifest)
    assert pickle.loads(sent) == manifest
    with pytest.raises(DataError, match="the list of samples is too long to be sent to another machine"):
        pickle.loads(sent.replace(path.encode(), b"/" * len(path)))


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    manifest = small()
    assert list(manifest) and not os.listdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"the list of samples can't be written in .*none: No such file .*; set TMPDIR"):
        small()


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)))))
def test_ids_are_the_hash_of_the_name(names: list[str]) -> None:
    assert ids_of(names).tolist() == [hash_words("sample", name, 0) for name in names]
