"""Several entries at once: which layout each has, identities, weights, and files of other machines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cogvideox.data.decode import ClipInfo, PyAVReader
from cogvideox.data.listing import find_samples
from cogvideox.data.order import hash_words
from cogvideox.data.sources.read import read_sources, settle_repeats
from cogvideox.data.sources.spec import SourceSpec
from cogvideox.data.timing import ClipSpec
from cogvideox.errors import DataError
from data.sources.listing_files import read, refused

GOOD = ClipInfo(96, 48, np.arange(60) / 8)


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def ids(*entries: SourceSpec | str) -> list[int]:
    return read_sources(entries).samples.sample_ids().tolist()


def test_ids_are_those_of_pairs_and_the_same_on_every_machine(tmp_path: Path) -> None:
    put(tmp_path, "here/clips/a.mp4", "here/clips/a.txt", "there/x/clips/a.mp4")
    expected = hash_words("sample", "clips/a.mp4", 0)
    assert ids(str(tmp_path / "here")) == [expected]
    for name, text in (("a.csv", "video,text\nclips/a.mp4,x\n"), ("b.csv", "video,text\n./clips//a.mp4,x\n")):
        (tmp_path / "here" / name).write_text(text)
        assert ids(str(tmp_path / "here" / name)) == [expected]
    (tmp_path / "c.csv").write_text("video,text\n/mnt/alice/x/clips/a.mp4,one\n/mnt/alice/x/clips/b.mp4,two\n")
    there = SourceSpec(str(tmp_path / "c.csv"), root=str(tmp_path / "there/x"))
    assert ids(there)[0] == expected
    assert read_sources([there]).samples[1].media.path == str(tmp_path / "there/x/clips/b.mp4")
    (tmp_path / "d.csv").write_text(f"video,text\n{tmp_path}/here/clips/a.mp4,one\n")
    assert ids(SourceSpec(str(tmp_path / "d.csv"), root=str(tmp_path / "here"))) == [expected]


def test_what_comes_again_counts_on_across_entries(tmp_path: Path) -> None:
    put(tmp_path, "p/a.mp4", "p/a.txt")
    (tmp_path / "one.csv").write_text("video,text\na.mp4,x\na.mp4,x\na.mp4,another\nb.mp4,x\n")
    (tmp_path / "two.csv").write_text("video,text\nb.mp4,y\n")
    found = ids(str(tmp_path / "p"), str(tmp_path / "one.csv"), str(tmp_path / "two.csv"))
    names = [("a.mp4", 0), ("a.mp4", 1), ("a.mp4", 2), ("a.mp4", 3), ("b.mp4", 0), ("b.mp4", 1)]
    assert found == [hash_words("sample", *name) for name in names]


def test_a_layout_that_is_not_known(tmp_path: Path) -> None:
    put(tmp_path, "a.xlsx", "a.mp4", "lists/train.csv", "lists/readme.md", "videos.txt")
    refused(tmp_path / "a.xlsx", r"a\.xlsx is a file of a layout that is not known; known are \.csv, \.tsv, \.json")
    refused(tmp_path / "a.mp4", r"a\.mp4 is a file; it has to be a folder of videos")
    refused(tmp_path / "videos.txt", r"for videos\.txt with prompts\.txt, give their folder")
    refused(tmp_path / "lists", r"holds no video but train\.csv; give the list itself, such as .*lists/train\.csv")
    refused(tmp_path / "none", r"none does not exist; it has to be a folder of videos with captions, or a list")
    refused(tmp_path, r"is no file; the layout csv is that of a \.csv or \.tsv file", layout="csv")
    with pytest.raises(DataError, match=r"train\.csv is given twice: its clips would count twice; repeats: 2 says so"):
        (tmp_path / "lists/train.csv").write_text("video,text\na.mp4,x\n")
        read_sources([tmp_path / "lists/train.csv", f"{tmp_path}/lists/../lists/train.csv"])


def test_weights_are_shares_of_the_mixture(tmp_path: Path) -> None:
    for name, count in (("a", 10), ("b", 30)):
        (tmp_path / f"{name}.csv").write_text("video,text\n" + "".join(f"{name}{n}.mp4,x\n" for n in range(count)))
    entries = [SourceSpec(str(tmp_path / f"{name}.csv"), weight=weight) for name, weight in (("a", 3), ("b", 1))]
    sources = settle_repeats(read_sources(entries).sources, entries, [10, 30])
    assert [source.repeats * source.num_samples for source in sources] == [30.0, 10.0]  # 3 to 1, 40 in all
    entries = [SourceSpec(str(tmp_path / "a.csv"), repeats=2.5), SourceSpec(str(tmp_path / "b.csv"))]
    assert [each.repeats for each in settle_repeats(read_sources(entries).sources, entries, [10, 30])] == [2.5, 1.0]
    with pytest.raises(DataError, match=r"b\.csv: has no usable samples, so that it can't have a weight"):
        entries = [SourceSpec(str(tmp_path / f"{name}.csv"), weight=1) for name in "ab"]
        settle_repeats(read_sources(entries).sources, entries, [10, 0])
    assert settle_repeats(read_sources(entries).sources, entries, [10, 0], is_whole=False)[1].repeats == 1


def test_missing_files_are_left_out_up_to_a_share(tmp_path: Path) -> None:
    put(tmp_path, *(f"{n}.mp4" for n in range(20)))
    lines = [f"{n}.mp4,x" for n in range(21)]
    (tmp_path / "a.csv").write_text("\n".join(["video,text", *lines]))
    put(tmp_path, "p/z.mp4", "p/z.txt")

    def report(*entries: SourceSpec | str) -> object:
        return find_samples(
            entries, ClipSpec((48, 96), 8, 9), PyAVReader(), look=lambda medias: ((each, GOOD) for each in medias)
        ).listed[1]

    found = report(str(tmp_path / "a.csv"), SourceSpec(str(tmp_path / "p"), repeats=4))
    found.check()  # type: ignore[attr-defined]
    text = found.text()  # type: ignore[attr-defined]
    assert (
        f"{tmp_path}/a.csv (csv): 20 of 21 usable\n  {tmp_path}/p (pairs): 1 of 1 usable, each 4 times in an epoch"
        in text
    )
    assert (
        f"missing file: 1 (left out)\n    {tmp_path}/20.mp4: there is no such file\n    what to do: paths are rel"
        in text
    )
    (tmp_path / "b.csv").write_text("video,text\n/mnt/alice/a.mp4,x\n/mnt/alice/b.mp4,x\n")
    with pytest.raises(DataError, match=r"2 of 2 videos can't be read, more than max_failed_share") as caught:
        report(str(tmp_path / "b.csv")).check()  # type: ignore[attr-defined]
    assert f"of another machine; say below which folder the clips are here: {{path: {tmp_path}/b.csv, root:" in str(
        caught.value
    )


def test_captions_of_folders_may_be_drawn(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    (tmp_path / "a.txt").write_text("one\n\n two \n")
    assert read(tmp_path, captions="random", caption_prefix="P ").samples[0].captions == ("P one", "P two")
    assert read(tmp_path, caption_prefix="P ").samples[0].captions == ("P one",)
    with pytest.raises(DataError, match="captions is 'all'; it has to be one of first, random"):
        read_sources([tmp_path], captions="all")
