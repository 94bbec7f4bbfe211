"""Prompts from every source, with and without images."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from cogvideox.config.schema import SampleArgs
from cogvideox.errors import DataError
from cogvideox.sampling.prompts import Prompt, parse_prompts, read_prompts


def write(folder: Path, content: bytes) -> SampleArgs:
    file = folder / "prompts.txt"
    file.write_bytes(content)
    return SampleArgs(input_type="txt", input_file=str(file))


def texts(prompts: list[Prompt]) -> list[str]:
    return [prompt.text for prompt in prompts]


def test_one_prompt_per_line_without_blank_lines(tmp_path: Path) -> None:
    args = write(tmp_path, "\ufeffa ship\n\n   \n  une île  \r\nlast".encode())
    prompts = read_prompts(args)
    assert texts(prompts) == ["a ship", "une île", "last"]
    assert [prompt.place.rsplit(", ")[-1] for prompt in prompts] == ["line 1", "line 4", "line 5"]


def test_a_line_ends_where_a_caption_s_line_ends(tmp_path: Path) -> None:
    prompts = read_prompts(write(tmp_path, "one \u2028 still one\x0b\x1c\x85 one\rtwo\r\nthree".encode()))
    assert texts(prompts) == ["one \u2028 still one\x0b\x1c\x85 one", "two", "three"]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe is not a regular file"):
        read_prompts(SampleArgs(input_type="txt", input_file=str(tmp_path / "pipe")))


def test_prompts_in_the_configuration_win(tmp_path: Path) -> None:
    args = SampleArgs(input_type="txt", input_file=str(tmp_path / "missing.txt"), prompts=["a ship", " "])
    assert texts(read_prompts(args)) == ["a ship"]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_terminal_ends_with_an_empty_line_and_pipes_at_their_end() -> None:
    typed = "a ship\nan island\n\nnot read\n"
    assert texts(read_prompts(SampleArgs(), terminal=Terminal(typed))) == ["a ship", "an island"]
    assert texts(read_prompts(SampleArgs(), terminal=io.StringIO(typed))) == ["a ship", "an island", "not read"]


@pytest.mark.parametrize("content", [b"", b"\n \n\n"])
def test_empty_file(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"no prompt in prompt file .*prompts.txt: give at least one"):
        read_prompts(write(tmp_path, content))


def test_nothing_typed() -> None:
    with pytest.raises(DataError, match="no prompt in the terminal"):
        read_prompts(SampleArgs(), terminal=io.StringIO(""))


def test_missing_file(tmp_path: Path) -> None:
    args = SampleArgs(input_type="txt", input_file=str(tmp_path / "none.txt"))
    with pytest.raises(DataError, match=r"prompt file .*none.txt does not exist"):
        read_prompts(args)


def test_folder_instead_of_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder; args.input_file must be a text file"):
        read_prompts(SampleArgs(input_type="txt", input_file=str(tmp_path)))


def test_other_encoding(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prompt file .*prompts.txt is not UTF-8: byte \d+ is wrong"):
        read_prompts(write(tmp_path, "île".encode("latin-1")))


def test_image_prompts_are_refused_with_their_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: 'prompt@@image' is for image-to-video models"):
        read_prompts(write(tmp_path, b"a ship\na ship@@ship.png\n"))
    with pytest.raises(DataError, match=r"args.prompts, line 1: 'prompt@@image'"):
        parse_prompts(["a@@b.png"], "args.prompts")


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`lists/` with prompts.txt and near.png, `here/` as working directory; both.png in both."""
    for name in ("lists/near.png", "lists/both.png", "here/both.png", "here/far.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def test_images_are_looked_for_beside_the_prompt_file_then_in_the_working_directory(images: Path) -> None:
    absolute = images / "lists" / "near.png"
    lines = f"a ship@@near.png\n\n une île @@  both.png \nan island@@far.png\na tree@@{absolute}\n"
    prompts = read_prompts(write(images / "lists", lines.encode()), image_to_video=True)
    assert texts(prompts) == ["a ship", "une île", "an island", "a tree"]
    found = ["lists/near.png", "lists/both.png", "here/far.png", "lists/near.png"]
    assert [prompt.image for prompt in prompts] == [images / name for name in found]


def test_images_of_the_configuration_and_the_terminal_are_in_the_working_directory(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (listed,) = read_prompts(SampleArgs(prompts=["a ship@@both.png"]), image_to_video=True)
    (typed,) = read_prompts(SampleArgs(), image_to_video=True, terminal=Terminal("a ship@@both.png\n\n"))
    assert listed.image == typed.image == images / "here" / "both.png"
    assert "prompt@@image.png, one per line" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a ship", r"line 2: 'a ship' has no image; this is an image-to-video model: write prompt@@image.png"),
        ("a ship@@", r"line 2: 'a ship@@' is not complete; this is an image-to-video model"),
        ("@@far.png", r"line 2: '@@far.png' is not complete"),
        ("a@@far.png@@far.png", r"line 2: 'a@@far.png@@far.png' holds 2 marks"),
        ("a@@near.png", r"line 2: there is no image file near.png in .*/here$"),
        ("a@@/none/x.png", r"line 2: there is no image file /none/x.png$"),
        ("a@@.", r"line 2: there is no image file \. in"),
    ],
)
def test_lines_that_do_not_suit_an_image_to_video_model(images: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_prompts(["a@@far.png", line], "args.prompts", image_to_video=True)


def test_a_missing_image_names_both_places_and_how_many_more_lines_fail(images: Path) -> None:
    args = write(images / "lists", b"a@@none.png\nb@@near.png\nc\n")
    with pytest.raises(
        DataError, match=r"prompts.txt, line 1: .* none.png in .*/lists or .*/here \(and 1 more such lines\)"
    ):
        read_prompts(args, image_to_video=True)


def test_no_prompt_at_all_shows_how_one_is_written() -> None:
    with pytest.raises(DataError, match=r"args.prompts=\['a red ball rolls@@ball.png'\]"):
        parse_prompts([], "args.prompts", image_to_video=True)
