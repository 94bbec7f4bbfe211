"""Jobs: seeds, folders, sizes, and the refusal to overwrite."""

from __future__ import annotations

import os
import shlex
from datetime import datetime
from pathlib import Path

import pytest
from cogvideox.errors import DataError
from cogvideox.sampling.jobs import check_output_dir, folder_name, plan_jobs, refuse_existing
from cogvideox.sampling.prompts import Prompt


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(text) for text in texts]


def test_jobs_have_their_own_seeds_and_folders() -> None:
    jobs = plan_jobs(prompts("a ship", "a/b  c"), num_samples=2, seed=40, output_dir="out")
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


def test_each_sample_has_the_image_and_the_size_of_its_prompt() -> None:
    pair = [Prompt("a", Path("a.png")), Prompt("b", Path("b.png"))]
    jobs = plan_jobs(pair, 2, 0, "out", sizes=[(32, 48), (48, 32)])
    assert [(job.image, job.size) for job in jobs] == 2 * [(Path("a.png"), (32, 48))] + 2 * [(Path("b.png"), (48, 32))]
    assert {job.size for job in plan_jobs(pair, 2, 0, "out")} == {None}


def test_folder_names_are_cut_at_120_characters_and_at_what_a_file_system_holds(tmp_path: Path) -> None:
    assert folder_name("x" * 200) == "x" * 120
    chinese = folder_name("船" * 200)
    assert len(chinese.encode()) <= 240 and set(chinese) == {"船"}
    plan_jobs(prompts("船" * 200), 1, 0, tmp_path)[0].folder.mkdir(parents=True)


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a girl, smiling.  A red-haired one", "a_girl,_smiling._A_red-haired_one"),
        ("""a "red" ship's bow: up?""", "a_red_ships_bow_up"),
        ("$(rm -rf ~) `x` <b> | c & d; !e * [f] {g} # %TEMP% \\\\h ^i =j", "rm_-rf_x_b_c_d_e_f_g_TEMP_h_i_j"),
        ("tab\there\0 and\nthere...", "tab_here_and_there"),
        ("Ein schönes Schiff", "Ein_schönes_Schiff"),
        ("scho\u0308n, 船が進む、नमस्ते", "schön,_船が進むनमस्ते"),
        ("😀 / ?", ""),
    ],
)
def test_folder_names_need_no_quotes_and_are_names_everywhere(prompt: str, name: str) -> None:
    assert folder_name(prompt) == name
    assert shlex.quote(f"0_{name}".encode("ascii", "ignore").decode()) == f"0_{name}".encode("ascii", "ignore").decode()
    assert not set(name) & set('<>:"/\\\\|?*') and not name.endswith((".", " "))


def test_each_run_may_have_a_folder_of_its_own(tmp_path: Path) -> None:
    before = datetime.now().replace(microsecond=0)
    jobs = plan_jobs(prompts("a", "b"), 1, 0, f"{tmp_path}/of {{time}}")
    (root,) = {job.folder.parent.parent for job in jobs}
    when = datetime.strptime(f"{before.year} {root.name}", "%Y of %m-%d-%H-%M-%S")
    assert before <= when <= datetime.now() and root.parent == tmp_path


def test_existing_outputs_are_listed(tmp_path: Path) -> None:
    jobs = plan_jobs(prompts("a", "b"), 3, 0, tmp_path)
    refuse_existing([job.video_path for job in jobs])
    for job in jobs[1:]:
        job.folder.mkdir(parents=True)
        job.video_path.touch()
    with pytest.raises(
        DataError, match=r"5 of 6 outputs exist already: .*0_a/1/000000.mp4, .* and 2 more; set args.overwrite"
    ):
        refuse_existing([job.video_path for job in jobs])
    refuse_existing([job.latent_path for job in jobs])


def test_output_folders_that_can_not_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_output_dir(tmp_path / "new" / "deeper")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file is a file, a folder is needed"):
        check_output_dir(tmp_path / "file" / "out")
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, who may write anywhere
    with pytest.raises(DataError, match="no permission to write in"):
        check_output_dir(tmp_path / "new")
