"""Pairing of videos and captions. No file here is ever opened as a video, so empty ones do."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest
from cogvideox.data.sources.read import Listing, read_sources
from cogvideox.data.sources.spec import SourceSpec
from cogvideox.errors import DataError


def put(root: Path, *names: str, text: str = "") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text or f"caption of {name}\n", encoding="utf-8")


def find_pairs(roots: Sequence[Path | str], missing_captions: str = "error", captions: str = "first") -> Listing:
    return read_sources([SourceSpec(str(root), "pairs") for root in roots], missing_captions, captions=captions)


def captions(pairs: Listing, root: Path) -> dict[str, str]:
    return {os.path.relpath(sample.media.path, root): sample.captions[0] for sample in pairs.samples}


def test_both_layouts_at_any_depth_in_order(tmp_path: Path) -> None:
    put(
        tmp_path,
        "b/x.mp4",
        "b/x.txt",
        "a.MOV",
        "a.txt",
        "set/videos/deep/y.webm",
        "set/labels/deep/y.txt",
        "videos/z.mkv",
    )
    put(tmp_path, "labels/z.txt", "c.avi", "c.TXT", "notes.md", ".hidden/h.mp4", "._a.mp4")
    pairs = find_pairs([tmp_path])
    assert captions(pairs, tmp_path) == {
        "a.MOV": "caption of a.txt",
        "b/x.mp4": "caption of b/x.txt",
        "c.avi": "caption of c.TXT",
        "set/videos/deep/y.webm": "caption of set/labels/deep/y.txt",
        "videos/z.mkv": "caption of labels/z.txt",
    }
    assert list(captions(pairs, tmp_path)) == sorted(captions(pairs, tmp_path))
    assert pairs.problems == () and pairs.num_videos == 5


def test_folder_names_that_contain_the_word_are_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "my_videos" / "videos_of_mp4_cats"
    put(root, "videos/videos.mp4.mp4", "labels/videos.mp4.txt", "old_videos/x.mp4", "old_videos/x.txt")
    put(tmp_path / "my_labels", "videos_of_mp4_cats/old_videos/x.txt", text="wrong")
    assert captions(find_pairs([root]), root) == {
        "old_videos/x.mp4": "caption of old_videos/x.txt",
        "videos/videos.mp4.mp4": "caption of labels/videos.mp4.txt",
    }


def test_the_root_itself_may_be_the_videos_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "videos/a/x.mp4", "labels/a/x.txt")
    assert [sample.captions[0] for sample in find_pairs([tmp_path / "videos"]).samples] == ["caption of labels/a/x.txt"]
    monkeypatch.chdir(tmp_path / "videos")
    assert [sample.captions[0] for sample in find_pairs(["."]).samples] == ["caption of labels/a/x.txt"]


def test_several_roots_in_the_given_order_with_distinct_ids(tmp_path: Path) -> None:
    for root in ("one", "two"):
        put(tmp_path / root, "same/x.mp4", "same/x.txt", f"only_{root}.mp4", f"only_{root}.txt")
    pairs = find_pairs([tmp_path / "two", tmp_path / "one"])
    assert [sample.source for sample in pairs.samples] == [0, 0, 1, 1]
    ids = [sample.sample_id for sample in pairs.samples]
    assert len(set(ids)) == 4 and all(0 <= number < 2**63 for number in ids)
    moved = tmp_path / "elsewhere"
    (tmp_path / "one").rename(moved)
    assert {sample.sample_id for sample in find_pairs([moved]).samples} <= set(ids) | {ids[1]}


def test_unicode_names_match_composed_and_decomposed(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café 猫 🎬") for form in ("NFC", "NFD"))
    put(tmp_path, f"{composed}.mp4", f"{decomposed}.txt", text="ein Kätzchen läuft")
    pairs = find_pairs([tmp_path])
    assert [sample.captions[0] for sample in pairs.samples] == ["ein Kätzchen läuft"]
    assert not pairs.problems


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    put(tmp_path, f"{name}.mp4", text="x")
    pairs = find_pairs([tmp_path], missing_captions="empty")
    assert len(pairs.samples) == 1
    assert os.path.isfile(pairs.samples[0].media.path)


@pytest.mark.parametrize(
    ("content", "caption", "kinds"),
    [
        (b"\xef\xbb\xbfwith a mark\r\n", "with a mark", []),
        (b"  spaces around  \n\n", "spaces around", []),
        (b"first\nsecond\nthird", "first", ["multi-line caption"]),
        (b"first\rsecond", "first", ["multi-line caption"]),
        ("one \u2028 line".encode(), "one \u2028 line", []),
        (b"", "", ["empty caption"]),
        (b" \n \n", "", ["empty caption"]),
        (b"\nlate", "", ["empty caption"]),
        (b"caf\xe9", None, ["unreadable caption"]),
        ("utf-16".encode("utf-16"), None, ["unreadable caption"]),
        ("a ship".encode("utf-16-le"), None, ["unreadable caption"]),
        (b"a ship, " * 20_000, None, ["unreadable caption"]),
    ],
)
def test_caption_files(tmp_path: Path, content: bytes, caption: str | None, kinds: list[str]) -> None:
    put(tmp_path, "x.mp4")
    (tmp_path / "x.txt").write_bytes(content)
    pairs = find_pairs([tmp_path])
    assert [sample.captions[0] for sample in pairs.samples] == ([] if caption is None else [caption])
    assert [problem.kind for problem in pairs.problems] == kinds


def test_a_pipe_as_a_caption_is_named_and_not_waited_for(tmp_path: Path) -> None:
    put(tmp_path, "x.mp4")
    os.mkfifo(tmp_path / "x.txt")
    (problem,) = find_pairs([tmp_path]).problems
    assert (problem.kind, problem.reason) == ("unreadable caption", f"{tmp_path}/x.txt is not a regular file")


def test_missing_ambiguous_and_orphaned_captions_are_named(tmp_path: Path) -> None:
    put(tmp_path, "videos/a.mp4", "videos/b.mp4", "videos/b.txt", "labels/b.txt", "labels/typo.txt")
    pairs = find_pairs([tmp_path])
    assert not pairs.samples
    found = {
        problem.kind: (os.path.relpath(problem.path, tmp_path), problem.reason, problem.effect)
        for problem in pairs.problems
    }
    assert found["missing caption"] == ("videos/a.mp4", "no a.txt beside it or under labels/", "error")
    assert found["ambiguous caption"][0] == "videos/b.mp4"
    assert "videos/b.txt" in found["ambiguous caption"][1] and "labels/b.txt" in found["ambiguous caption"][1]
    assert found["caption without video"][0] == "labels/typo.txt"


def test_missing_captions_may_be_empty(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    pairs = find_pairs([tmp_path], missing_captions="empty")
    assert [sample.captions[0] for sample in pairs.samples] == [""]
    assert [(problem.kind, problem.effect) for problem in pairs.problems] == [("missing caption", "kept")]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    put(tmp_path / "store", "x.mp4", "x.txt")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path / "store")
    (tmp_path / "store/loop").symlink_to(tmp_path / "root")
    assert list(captions(find_pairs([tmp_path / "root"]), tmp_path / "root")) == ["link/x.mp4"]


def test_refused_roots(tmp_path: Path) -> None:
    put(tmp_path, "a/x.mp4", "a/b/y.mp4", "empty/readme.md")
    with pytest.raises(DataError, match=r"no data is given; args.train_data has to name at least one"):
        find_pairs([])
    with pytest.raises(DataError, match="nowhere does not exist; it has to be a folder"):
        find_pairs([tmp_path / "nowhere"])
    with pytest.raises(DataError, match=r"x.mp4 is a file; it has to be a folder"):
        find_pairs([tmp_path / "a/x.mp4"])
    with pytest.raises(
        DataError, match=r"empty holds no video; looked for .mp4, .m4v, .mov, .3gp, .mkv, .webm, .avi, .gif, .mpg, "
    ):
        find_pairs([tmp_path / "empty"])
    for roots in (["a", "a/b"], ["a/b", "a"]):
        with pytest.raises(DataError, match=r"data folder .* and .* both hold .*a/b: its clips would count twice"):
            find_pairs([tmp_path / root for root in roots])
    with pytest.raises(DataError, match=r"data folder .*a is given twice: its clips would count twice"):
        find_pairs([tmp_path / "a", tmp_path / "a"])
    (tmp_path / "other").mkdir()
    put(tmp_path, "other/z.mp4")
    (tmp_path / "other/link").symlink_to(tmp_path / "a/b")
    (tmp_path / "same").symlink_to(tmp_path / "a")
    with pytest.raises(DataError, match=r"/a and .*/other both hold .*/other/link: its clips would count twice"):
        find_pairs([tmp_path / "a", tmp_path / "other"])
    with pytest.raises(DataError, match="same is given twice"):
        find_pairs([tmp_path / "a", tmp_path / "same"])
    with pytest.raises(DataError, match="missing_captions is 'skip'; it has to be one of error, empty"):
        find_pairs([tmp_path / "a"], missing_captions="skip")
