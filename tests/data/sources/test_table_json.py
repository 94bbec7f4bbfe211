"""JSON lists and JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data.sources.listing_files import problems, read, refused, rows

CLIPS = [
    {"file_path": "clips/a.mp4", "text": "a cat", "type": "video"},
    {"file_path": "b.mp4", "text": "猫が走る", "type": "video"},
]


@pytest.mark.parametrize("keys", [("video", "caption"), ("video_path", "text"), ("path", "caption")])
def test_lists_and_lines(tmp_path: Path, keys: tuple[str, str]) -> None:
    found = [dict(zip(keys, (clip["file_path"], clip["text"]), strict=True)) for clip in CLIPS]
    (tmp_path / "a.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("\ufeff" + "\n\n".join(map(json.dumps, found)) + "\n", encoding="utf-8")
    expected = [("clips/a.mp4", "a cat"), ("b.mp4", "猫が走る")]
    assert rows(read(tmp_path / "a.json"), tmp_path) == rows(read(tmp_path / "a.jsonl"), tmp_path) == expected


def test_several_captions_and_keys_that_some_objects_lack(tmp_path: Path) -> None:
    clips = [{"video": "a.mp4", "caption": ["one", " two ", ""]}, {"video": "b.mp4"}, {"video": "c.mp4", "caption": []}]
    (tmp_path / "a.json").write_text(json.dumps([*clips, {"caption": "no video"}, {"video": "d.mp4", "caption": 7}]))
    listing = read(tmp_path / "a.json", captions="random")
    assert [sample.captions for sample in listing.samples] == [("one", "two")]
    assert problems(listing) == [
        ("missing caption", "its caption is missing"),
        ("missing caption", "its caption is missing"),
        ("incomplete row", "its path is empty"),
        ("unreadable caption", "its caption is 7; it has to be text"),
    ]
    listing = read(tmp_path / "a.json", missing_captions="empty")
    assert [sample.captions for sample in listing.samples] == [("one",), ("",), ("",)]


def test_text_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"video": "a.mp4", "text": "\\ud83d"}, {"video": "\\ud83d", "text": "x"}]')
    listing = read(tmp_path / "a.json")
    assert not len(listing.samples) and [kind for kind, _ in problems(listing)] == [
        "unreadable caption",
        "incomplete row",
    ]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            '[\n{"video": "a.mp4", "text": "x"},\n]',
            r"a\.json:2: is no valid JSON: the last comma of the list has to go",
        ),
        ('[\n{"video": "a.mp4", "text": "x",}\n]', r"a\.json:2: is no valid JSON: "),
        (
            '[{"video": "a.mp4", "text": "x"}\n{"video": "b.mp4"}]',
            r"a\.json:2: .*: a comma is missing between two objects",
        ),
        ('[{"video": "a.mp4", "text": "x"}', r"a\.json:1: is no valid JSON: ends inside the list"),
        ('{"video": "a.mp4"}', r"holds an object; expected a list of objects"),
        ("", r"holds no list"),
        ("[]", r"holds no objects"),
        ("[1]", r"a\.json:1: holds 1; expected an object"),
        (
            '[{"video": "a.mp4", "text": 3}, {"video": "b.mp4", "text": 4}]',
            r"column 'text' holds numbers \(the first is 3\)",
        ),
        (
            '[{"where": "a.mp4", "text": "x"}]',
            r"no column is known to hold the videos' paths; the columns are where, text",
        ),
        ("[" * 100_000, "is nested too deeply"),
        (b'[{"video": "\xff"}]', r"is not UTF-8"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str | bytes, match: str) -> None:
    (tmp_path / "a.json").write_bytes(text.encode() if isinstance(text, str) else text)
    refused(tmp_path / "a.json", match)


def test_lines_that_are_no_json_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"video": "a.mp4", "text": "x"}\n{"video": "b.mp4",}\n')
    refused(tmp_path / "a.jsonl", r"a\.jsonl:2: is no valid JSON")
