"""Prompts, jobs and the refusal to overwrite."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from cogvideox.config.schema import SampleArgs
from cogvideox.errors import DataError
from cogvideox.sampling.prompts import (
    check_output_dir,
    check_prompts,
    folder_name,
    plan_jobs,
    read_prompts,
    refuse_existing,
)


def write(folder: Path, content: bytes) -> SampleArgs:
    file = folder / "prompts.txt"
    file.write_bytes(content)
    return SampleArgs(input_type="txt", input_file=str(file))


def test_one_prompt_per_line_without_blank_lines(tmp_path: Path) -> None:
    args = write(tmp_path, "\ufeffa ship\n\n   \n  une île  \r\nlast".encode())
    assert read_prompts(args) == ["a ship", "une île", "last"]


def test_prompts_in_the_configuration_win(tmp_path: Path) -> None:
    args = SampleArgs(input_type="txt", input_file=str(tmp_path / "missing.txt"), prompts=["a ship", " "])
    assert read_prompts(args) == ["a ship"]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_terminal_ends_with_an_empty_line_and_pipes_at_their_end() -> None:
    typed = "a ship\nan island\n\nnot read\n"
    assert read_prompts(SampleArgs(), Terminal(typed)) == ["a ship", "an island"]
    assert read_prompts(SampleArgs(), io.StringIO(typed)) == ["a ship", "an island", "not read"]


@pytest.mark.parametrize("content", [b"", b"\n \n\n"])
def test_empty_file(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"no prompt in prompt file .*prompts.txt: give at least one"):
        read_prompts(write(tmp_path, content))


def test_nothing_typed() -> None:
    with pytest.raises(DataError, match="no prompt in the terminal"):
        read_prompts(SampleArgs(), io.StringIO(""))


def test_missing_file(tmp_path: Path) -> None:
    args = SampleArgs(input_type="txt", input_file=str(tmp_path / "none.txt"))
    with pytest.raises(DataError, match=r"prompt file .*none.txt does not exist"):
        read_prompts(args)


def test_folder_instead_of_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder; args.input_file must be a text file"):
        read_prompts(SampleArgs(input_type="txt", input_file=str(tmp_path)))


def test_other_encoding(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be read as UTF-8 text"):
        read_prompts(write(tmp_path, "île".encode("latin-1")))


def test_image_prompts_are_refused_with_their_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: 'prompt@@image' is for image-to-video models"):
        read_prompts(write(tmp_path, b"a ship\na ship@@ship.png\n"))
    with pytest.raises(DataError, match=r"args.prompts, line 1: 'prompt@@image'"):
        check_prompts(["a@@b.png"], "args.prompts")


def test_jobs_have_their_own_seeds_and_folders() -> None:
    jobs = plan_jobs(["a ship", "a/b  c"], num_samples=2, seed=40, output_dir="out")
    assert [(job.prompt_index, job.sample_index, job.seed) for job in jobs] == [
        (0, 0, 40),
        (0, 1, 41),
        (1, 0, 40),
        (1, 1, 41),
    ]
    assert [str(job.video_path) for job in jobs] == [
        "out/0_a_ship/0/000000.mp4",
        "out/0_a_ship/1/000000.mp4",
        "out/1_ab_c/0/000000.mp4",
        "out/1_ab_c/1/000000.mp4",
    ]


def test_folder_names_are_cut_at_120_characters_and_at_what_a_file_system_holds(tmp_path: Path) -> None:
    assert folder_name("x" * 200) == "x" * 120
    chinese = folder_name("船" * 200)
    assert len(chinese.encode()) <= 240 and set(chinese) == {"船"}
    plan_jobs(["船" * 200], 1, 0, tmp_path)[0].folder.mkdir(parents=True)


def test_existing_outputs_are_listed(tmp_path: Path) -> None:
    jobs = plan_jobs(["a", "b"], 3, 0, tmp_path)
    refuse_existing(jobs)
    for job in jobs[1:]:
        job.folder.mkdir(parents=True)
        job.video_path.touch()
    with pytest.raises(
        DataError, match=r"5 of 6 outputs exist already: .*0_a/1/000000.mp4, .* and 2 more; set args.overwrite"
    ):
        refuse_existing(jobs)
    refuse_existing(jobs, latents_only=True)
    jobs[0].folder.mkdir()
    jobs[0].latent_path.touch()
    with pytest.raises(DataError, match="1 of 6 outputs exist already"):
        refuse_existing(jobs, latents_only=True)


def test_output_folders_that_can_not_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_output_dir(tmp_path / "new" / "deeper")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file is a file, a folder is needed"):
        check_output_dir(tmp_path / "file" / "out")
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, who may write anywhere
    with pytest.raises(DataError, match="no permission to write in"):
        check_output_dir(tmp_path / "new")
