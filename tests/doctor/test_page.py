"""The page of a small, bad data set: what it names, that its figures are those of the JSON, that it needs no more."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import check_dataset
import numpy as np
import pytest
from cogvideox.doctor.page import FORMS, MOST_ROWS, render
from cogvideox.errors import ConfigError, DataError
from doctor.conftest import Check, facts_beside, write_clip
from layout.source_tree import ROOT
from PIL import Image

VOID = {"meta", "img", "input", "rect", "br", "link"}


class Page(HTMLParser):
    """What the page says: figures with their places in the JSON, other text, and everything it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.facts: list[tuple[str, str, str]] = []
        self.others: list[str] = []
        self.references: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]
        if tag == "img":
            self.images.append(found)
        if "data-fact" in found:
            self.facts.append((str(found["data-fact"]), str(found["data-form"]), ""))
        if tag not in VOID:
            self.open.append((tag, found))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop()[0] == tag, tag

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self.open]
        if "script" in tags or "style" in tags:
            self.scripts.append(data)
        elif self.open and "data-fact" in self.open[-1][1]:
            path, form, before = self.facts[-1]
            self.facts[-1] = (path, form, before + data)
        else:
            self.others.append(data)


def at(facts: Any, path: str) -> Any:
    for word in path.split("/"):
        facts = facts[int(word)] if isinstance(facts, list) else facts[word]
    return facts


def by_kind(facts: dict[str, Any]) -> dict[str, set[str]]:
    return {each["kind"]: {item["name"] for item in each["items"]} for each in facts["findings"]}


@pytest.fixture
def page(check: Check) -> Path:
    return check()


def test_everything_wrong_is_named(page: Path) -> None:
    facts = facts_beside(page)
    found = by_kind(facts)
    assert found["unreadable video"] == {"cut.mp4"}
    assert found["too short"] == {"short.mp4"}
    assert found["cropped"] == {"tall.mp4"}
    assert found["near duplicate"] == {"wall_0.mp4"}  # the other one comes first
    assert found["one colour"] == {"dark.mp4"}
    assert found["static"] == {"still.mp4"}
    assert found["duplicate caption"] == {"dark.mp4", "still.mp4"}
    assert found["held out and trained on"] == {"wall_2.mp4", "wall_3.mp4"}
    assert found["long caption"] == {"wordy.mp4"}
    assert facts["verdict"] == ""
    train = facts["parts"][0]
    assert (train["videos"], train["used"], train["left_out"]) == (14, 12, 2)
    assert [row["name"] for row in facts["clips"] if row["status"] == "left out"] == ["cut.mp4", "short.mp4"]
    row = next(row for row in facts["clips"] if row["name"] == "tall.mp4")
    assert (row["width"], row["height"], row["frames"], row["bucket"]) == (30, 48, 17, "9x32x48")
    assert row["kept"] == pytest.approx(20 / 48, abs=1e-4)  # 30 wide, of which 20 rows make 32 x 48


def test_figures_are_those_of_the_json(page: Path) -> None:
    facts, shown = facts_beside(page), Page(page.read_text(encoding="utf-8"))
    assert len(shown.facts) > 100
    for path, form, text in shown.facts:
        assert text == FORMS[form](at(facts, path)), path
    stray = [text for text in shown.others if re.search(r"\d", text)]
    assert not stray, "a figure that doesn't say where it is from"
    table = json.loads(next(text for text in shown.scripts if text.startswith('{"columns"')))
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    assert rows == [{name: value for name, value in row.items() if name != "path"} for row in facts["clips"]]


def test_steps_and_bytes(page: Path) -> None:
    train = facts_beside(page)["parts"][0]
    assert train["training"]["steps_per_epoch"] == 6  # 12 clips, 2 at a time
    # 3 latent frames of 4 x 6, 16 channels, mean and log variance, 4 bytes: 9,216 for a clip
    assert train["cache"]["moments_bytes"] == 12 * 2 * 16 * 3 * 4 * 6 * 4
    assert sum(bucket["samples"] for bucket in train["buckets"]) == train["samples"] == 12


def test_it_needs_nothing_beside_it(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    shown = Page(text)
    assert not shown.open, "every element is closed"
    assert shown.images and all(image["alt"] for image in shown.images)
    assert all(each.startswith("data:image/jpeg;base64,") for each in shown.references)
    without = re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", text)
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest|<link|<b>bold", without)
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text


def test_a_second_look_decodes_nothing(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    first = facts_beside(check())
    monkeypatch.setattr("cogvideox.data.pool.ThreadPool.submit", None)
    second = facts_beside(check("data.max_failed_share=0.6", "args.train_iters=4"))
    skipped = ("cut.mp4",)  # what can't be read is looked at each time
    assert [row for row in first["clips"] if row["name"] not in skipped] == [
        row for row in second["clips"] if row["name"] not in skipped
    ]


def test_without_pictures(settings: Path, tmp_path: Path) -> None:
    """And without torch, where no tokens are counted either."""
    code = (
        "import sys; sys.path[:0] = [sys.argv.pop(1), sys.argv.pop(1)]; import check_dataset; "
        "check_dataset.main(sys.argv[1:]); print('torch' in sys.modules)"
    )
    encoder = "model.conditioner_config.params.encoder.params.model_dir=nowhere/t5"
    command = [sys.executable, "-c", code, str(ROOT / "sat"), str(ROOT / "tools"), "--base", str(settings), encoder]
    command += ["--no-pictures", "--json", str(tmp_path / "report.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    facts = json.loads((tmp_path / "report.json").read_text())
    assert "near duplicate" not in by_kind(facts)
    assert not facts["settings"]["tokens_counted"] and "nowhere/t5" in facts["settings"]["why_no_tokens"]


def test_data_that_training_refuses_has_a_page_too(check: Check, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"training would refuse this data: 1 of 14 videos can't be read"):
        check("data.max_failed_share=0")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Training would refuse this data." in text


def test_more_clips_than_the_table_takes(page: Path) -> None:
    facts = facts_beside(page)
    one = facts["clips"][0] | {"findings": []}
    facts["clips"] = [one | {"number": number} for number in range(1, MOST_ROWS + 501)]
    facts["clips"][-1]["findings"] = ["static"]
    facts["findings"] = []
    text = render(facts, {})
    table = json.loads(next(each for each in Page(text).scripts if each.startswith('{"columns"')))
    numbers = [row[0] for row in table["rows"]]
    assert len(numbers) == MOST_ROWS and numbers[-1] == MOST_ROWS + 500 and sorted(set(numbers)) == numbers
    assert len(text) < 10_000_000


def test_images_beside_videos(check: Check, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    write_clip(folder / "video.mp4", "moves", 1)
    for name, level in (("one.png", 40), ("two.jpg", 90), ("again.png", 40)):
        pixels = np.full((32, 48, 3), level, np.uint8)
        pixels[8:24, 10:30] = 255 - level
        Image.fromarray(pixels).save(folder / name)
        (folder / name).with_suffix(".txt").write_text(name)
    facts = facts_beside(check(f"args.train_data=[{folder}]", "args.valid_data=[]", "data.max_num_frames=1"))
    assert by_kind(facts)["near duplicate"] == {"one.png"}
    assert not {"static", "damaged frames"} & by_kind(facts).keys()
    assert {row["name"]: row["frames"] for row in facts["clips"]}["two.jpg"] == 1


def places(tmp_path: Path) -> Iterator[tuple[list[str], str]]:
    (tmp_path / "mine.html").write_text("my notes")
    yield ["--output", str(tmp_path / "no" / "report.html")], "there is no folder .*/no; make it: mkdir -p"
    yield ["--output", str(tmp_path)], "is a folder; name a file in it"
    yield ["--output", str(tmp_path / "mine.html")], "was not written by this tool; --overwrite replaces it"
    yield ["--json", str(tmp_path / "mine.html")], "was not written by this tool"
    yield ["--output", str(tmp_path / "a"), "--json", str(tmp_path / "a")], "name the same file"
    yield (
        ["--output", str(tmp_path / "mine.html" / "a.html")],
        "mine.html is a file, and nothing can be written below it",
    )
    os.mkfifo(tmp_path / "pipe")
    yield ["--output", str(tmp_path / "pipe"), "--overwrite"], "pipe is a device, a pipe or a socket; name a file"
    yield ["--output", "x" * 300], "is no name that a file can have"
    yield ["--processes", "0"], "it has to be at least 1"


def test_places_that_do_not_do(settings: Path, tmp_path: Path) -> None:
    for words, message in places(tmp_path):
        with pytest.raises(ConfigError, match=message):
            check_dataset.main(["--base", str(settings), *words])
    assert (tmp_path / "mine.html").read_text() == "my notes"


def test_its_own_page_is_written_again(check: Check, settings: Path, tmp_path: Path) -> None:
    before = check().read_text()
    assert check().read_text() == before
    (tmp_path / "mine.html").write_text("my notes")
    words = ["--output", str(tmp_path / "mine.html"), "--overwrite", "--no-pictures"]
    check_dataset.main(["--base", str(settings), *words])
    assert "Pictures were not looked at" in (tmp_path / "mine.html").read_text()


def test_no_clips(settings: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no video"):
        check_dataset.main(["--base", str(settings), f"args.train_data=[{tmp_path}/empty]"])


def test_damaged_frames(check: Check, tmp_path: Path) -> None:
    """A whole header, and frames that can't be decoded."""
    folder = tmp_path / "clips"
    folder.mkdir()
    write_clip(folder / "good.mp4", "good", 1)
    content = bytearray(write_clip(folder / "hurt.mp4", "hurt", 2, frames=60).read_bytes())
    start, end = content.index(b"mdat"), content.index(b"moov")
    for place in range(start + (end - start) * 3 // 4, end - 10, 5):  # behind the first frame
        content[place] ^= 0x5A
    (folder / "hurt.mp4").write_bytes(content)
    facts = facts_beside(check(f"args.train_data=[{folder}]", "args.valid_data=[]"))
    assert by_kind(facts)["damaged frames"] == {"hurt.mp4"}
