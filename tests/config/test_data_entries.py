"""Entries of args.train_data and args.valid_data: paths, or mappings that are checked key by key."""

from __future__ import annotations

from pathlib import Path

import pytest
from cogvideox.config.load import load_config
from cogvideox.config.schema import DataEntry, data_entries
from cogvideox.errors import ConfigError

FILES = ["configs/cogvideox_2b_lora.yaml", "configs/sft.yaml"]


def test_paths_and_mappings_from_the_command_line_and_back() -> None:
    config = load_config(FILES, ["args.train_data=[clips, {path: a.csv, repeats: 2, root: /data}]"], "train")
    expected = [DataEntry(path="clips"), DataEntry(path="a.csv", repeats=2.0, root="/data")]
    assert data_entries(config.train_args.train_data) == expected


def test_the_run_s_own_file_says_the_same(tmp_path: Path) -> None:
    entries = "[{path: 's-{0..3}.tar', weight: 1}, {path: b, weight: 2}]"
    config = load_config(FILES, [f"args.train_data={entries}"], "train")
    (tmp_path / "run.yaml").write_text(config.resolved_yaml)
    again = load_config([str(tmp_path / "run.yaml")], [], "train")
    assert data_entries(again.train_args.train_data) == data_entries(config.train_args.train_data)


@pytest.mark.parametrize(
    ("written", "match"),
    [
        ("[{path: a, repeat: 2}]", r"args\.train_data\.0\.repeat: unknown key 'repeat'; did you mean 'repeats'\?"),
        ("[a, {path: a, repeats: many}]", r"args\.train_data\.1\.repeats: must be float, not 'many'"),
        ("[{path: a, layout: cvs}]", r"args\.train_data\.0\.layout: must be one of pairs, csv, json, .*, not 'cvs'"),
        ("[{layout: csv}]", r"args\.train_data\.0: path: missing: a folder, a list of clips, or a pattern"),
        ("[{path: a, weight: 0}]", r"args\.train_data\.0\.weight: must be more than 0, not 0"),
        ("[{path: a, weight: 1}, {path: b, repeats: 2}]", r"weight and repeats stand in one list: keep one of the two"),
        ("[{path: a, weight: 1}, b]", r"1 of 2 entries have a weight: give each entry one, or none"),
        ("[[a]]", r"args\.train_data: must be str or a mapping, not"),
    ],
)
def test_mistakes(written: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        load_config(FILES, [f"args.train_data={written}"], "train")


def test_an_evaluation_takes_each_clip_once() -> None:
    with pytest.raises(ConfigError, match=r"args\.valid_data: weight and repeats belong to train_data"):
        load_config(FILES, ["args.train_data=[a]", "args.valid_data=[{path: b, repeats: 2}]"], "train")


def test_files_of_entries_have_to_be_there(tmp_path: Path) -> None:
    entries = f"[{{path: {tmp_path}, root: {tmp_path}/no}}, {{path: {tmp_path}/none.csv}}, '{tmp_path}/{{0..3}}.tar']"
    with pytest.raises(ConfigError) as caught:
        load_config(FILES, [f"args.train_data={entries}"], "train", check_files=True)
    assert f"{tmp_path}/no" in str(caught.value) and "{0..3}" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        load_config(FILES, ["args.train_data=[{path: someone/clips, layout: hub}]"], "train", check_files=True)
    assert "train_data" not in str(caught.value)
