"""CSV and TSV: right and wrong files, and the same as another library reads."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path

import pyarrow.csv
import pytest
from cogvideox.data.sources import columns
from cogvideox.data.sources.read import read_sources
from data.sources.listing_files import problems, read, refused, rows
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "video,caption\nclips/a.mp4,a cat\nb.mp4,a dog\n"),
        ("a.csv", "\ufefftext,video_path\r\na cat,clips/a.mp4\r\n\r\na dog,b.mp4\r\n"),
        ("a.CSV", 'Caption,File Name\n"a cat","clips/a.mp4"\na dog,b.mp4'),
        ("a.csv", "prompt;path;score\na cat;clips/a.mp4;1\na dog;./b.mp4;2\n"),
        ("a.tsv", "id\tfile_path\tcaption\n1\tclips//a.mp4\ta cat\n2\tb.mp4\ta dog\n"),
        ("a.tsv", "video,caption\nclips/a.mp4,a cat\nb.mp4,a dog\n"),
    ],
)
def test_any_usual_names_of_columns(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    listing = read(tmp_path / name)
    assert rows(listing, tmp_path) == [("clips/a.mp4", "a cat"), ("b.mp4", "a dog")] and not listing.problems
    assert listing.sources[0].layout == "csv" and listing.num_videos == 2


def test_columns_of_other_names_can_be_given(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("where,what,text\na.mp4,a cat,no\n")
    listing = read(tmp_path / "a.csv", video_column="where", caption_column="what")
    assert rows(listing, tmp_path) == [("a.mp4", "a cat")]
    refused(
        tmp_path / "a.csv", r"a\.csv: no column is known to hold the videos' paths; the columns are where, what, text;"
    )
    refused(
        tmp_path / "a.csv", r"has no column 'wo' \(video_column\); the columns are where, what, text", video_column="wo"
    )
    (tmp_path / "b.csv").write_text("video,words\na.mp4,a cat\n")
    refused(
        tmp_path / "b.csv", r"b\.csv: no column is known to hold the captions; the columns are video, words; set cap"
    )
    assert rows(read(tmp_path / "b.csv", missing_captions="empty"), tmp_path) == [("a.mp4", "")]
    (tmp_path / "c.csv").write_text("video,caption,text\na.mp4,a cat,x\n")
    refused(tmp_path / "c.csv", r"caption, text could all be the caption; set caption_column")


def test_newlines_in_quotes_and_the_lines_that_messages_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('video,caption\na.mp4,"a cat\nwith ""hat"", and\n\nmore"\n\n,nothing\nb.mp4,\n')
    listing = read(tmp_path / "a.csv")
    assert rows(listing, tmp_path)[0] == ("a.mp4", 'a cat\nwith "hat", and\n\nmore')
    assert [(each.kind, each.path.rpartition(":")[2]) for each in listing.problems] == [
        ("incomplete row", "7"),
        ("empty caption", "8"),
    ]


def test_lines_are_counted_on_from_one_piece_of_a_long_list_to_the_next(tmp_path: Path) -> None:
    begin = "video,caption\n" + "".join(f'{number}.mp4,"two\nlines {number}"\n' for number in range(10_499))
    (tmp_path / "a.csv").write_text(begin + "\nlast.mp4,\n")
    listing = read(tmp_path / "a.csv")
    expected = [(f"{number}.mp4", f"two\nlines {number}") for number in range(10_499)]
    assert rows(listing, tmp_path) == [*expected, ("last.mp4", "")]
    assert [each.path.rpartition(":")[2] for each in listing.problems] == ["21001"]
    (tmp_path / "a.csv").write_text(begin + "a.mp4,b,c\n")
    refused(tmp_path / "a.csv", r"a\.csv: line 21000 has 3 columns, the header has 2")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"a\.csv: is empty"),
        ("video,caption\n", "holds a header and no rows"),
        (
            "clips/a.mp4,a cat\nb.mp4,a dog\n",
            r"has no header: its first line is 'clips/a\.mp4, a cat'; put a line with",
        ),
        (
            "video,caption\na.mp4;a cat\n",
            r"line 2 has 1 columns, the header has 2; the header is separated by commas, this",
        ),
        (
            "video,caption\na.mp4,one\nb.mp4,two, three\n",
            r"line 3 has 3 columns.*a text with commas in it has to stand in",
        ),
        (
            "video,caption\na.mp4,1\nb.mp4,2.5\n",
            r"column 'caption' holds numbers \(the first is 1\), captions are words",
        ),
        ("video,caption,video\na.mp4,x,y\n", r"has two columns named 'video'"),
        ('video,caption\na.mp4,"a cat\n', r"can't be read as a table: unexpected end of data"),
        ('video,caption\na.mp4,"a" cat\n', r"can't be read as a table: "),
        (b"video,caption\na.mp4,caf\xe9\n", r"is not UTF-8: a byte 0xe9 is wrong; save it as UTF-8"),
        ("video,caption\na.mp4,x\n".encode("utf-16"), r"is UTF-16; save it as UTF-8"),
        ("video,caption\na.mp4,x\n".encode("utf-16-le"), r"holds NUL characters: it is no text in UTF-8"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str | bytes, match: str) -> None:
    (tmp_path / "a.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    refused(tmp_path / "a.csv", match)


def test_rows_that_can_not_be_used_are_noted(tmp_path: Path) -> None:
    text = "video,caption,type\na.mp4,x,video\nb.png,y,image\nc.mp4,z,image\nd.mp4,w,audio\n"
    (tmp_path / "a.csv").write_text(text)
    listing = read(tmp_path / "a.csv")
    assert rows(listing, tmp_path) == [("a.mp4", "x")] and listing.num_videos == 4
    assert [kind for kind, _ in problems(listing)] == ["image among clips", "incomplete row", "incomplete row"]
    assert "its type is image, but the name is" in listing.problems[1].reason
    with_images = read_sources([tmp_path / "a.csv"], with_images=True)
    assert rows(with_images, tmp_path) == [("a.mp4", "x"), ("b.png", "y")]


def test_a_prefix_and_first_images(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("video,caption,image\na.mp4,a cat,a.png\nb.mp4,a dog,\n")
    first, second = read(tmp_path / "a.csv", caption_prefix="DISNEY ").samples
    assert first.captions == ("DISNEY a cat",) and second.captions == ("DISNEY a dog",)
    assert first.image is not None and first.image.path == str(tmp_path / "a.png") and second.image is None


WORDS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(
    captions=st.lists(WORDS.filter(lambda text: text.strip() and not columns._is_number(text)), min_size=1, max_size=6)
)
def test_quoting_and_languages_as_arrow_reads_them(captions: list[str]) -> None:
    written = io.StringIO()
    table = csv.writer(written)
    table.writerow(["video", "caption"])
    table.writerows([f"{number}.mp4", caption] for number, caption in enumerate(captions))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.csv"
        file.write_bytes(written.getvalue().encode())
        found = [sample.captions[0] for sample in read(file).samples]
        options = pyarrow.csv.ParseOptions(newlines_in_values=True)
        convert = pyarrow.csv.ConvertOptions(column_types={"caption": pyarrow.string()}, strings_can_be_null=False)
        other = pyarrow.csv.read_csv(file, parse_options=options, convert_options=convert).column("caption").to_pylist()
    assert found == [caption.strip() for caption in captions] == [caption.strip() for caption in other]


PATHS = st.text(st.sampled_from("ab/.é猫 \n\0"), min_size=0, max_size=8)


@settings(max_examples=200, deadline=None)
@given(
    videos=st.lists(st.one_of(PATHS, st.sampled_from(["a.mp4", "x/b.mp4", "c.PNG"])), min_size=1, max_size=4),
    caption=st.one_of(st.sampled_from(["", " x ", "\0", "\ud800"]), WORDS),
    prefix=st.sampled_from(["", "P "]),
)
def test_many_rows_at_once_give_what_each_gives(videos: list[str], caption: str, prefix: str) -> None:
    from cogvideox.data.sources.spec import Reading, SourceSpec, Wanted

    records = columns.Records("f:", list(range(len(videos))), videos, [caption] * len(videos))
    results = []
    for convert in (columns._plain_rows, columns._each_row):
        reading = Reading(SourceSpec("f", caption_prefix=prefix), Wanted())
        found = convert(records, columns.Paths(reading, "base"), reading)
        if found is None:
            return
        assert not reading.problems
        paths = [media if isinstance(media, str) else media.path for media in found.medias]
        results.append((found.names, paths, [(each,) if isinstance(each, str) else each for each in found.captions]))
    assert results[0] == results[1]
