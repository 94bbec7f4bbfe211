"""Files, includes, overrides, the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cogvideox.config.load import load_config, parse_cli
from cogvideox.config.schema import TrainArgs
from cogvideox.errors import ConfigError
from config.conftest import INFERENCE, MODEL, ROOT, SFT, Load


def write(folder: Path, name: str, text: str) -> str:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return str(file)


def test_later_files_and_then_the_command_line_win(train: Load, tmp_path: Path) -> None:
    later = write(tmp_path, "later.yaml", "args: {train_iters: 5, save_interval: 7}\n")
    config = train("args.train_iters=9", more=[later])
    assert (config.train_args.train_iters, config.train_args.save_interval) == (9, 7)
    assert config.train_args.train_data == ["clips"]


def test_include_is_read_first_and_relative_to_its_file(tmp_path: Path) -> None:
    write(tmp_path, "deep/base.yaml", "data: {fps: 4, video_size: [64, 96]}\n")
    file = write(tmp_path, "top.yaml", "include: [deep/base.yaml]\ndata: {fps: 12}\n")
    config = load_config([file], [], "train", partial=True)
    assert config.data is not None
    assert (config.data.fps, config.data.video_size) == (12.0, (64, 96))


def test_a_circle_of_includes(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "include: b.yaml\n")
    file = write(tmp_path, "b.yaml", "\ninclude: a.yaml\n")
    with pytest.raises(ConfigError, match=r"a\.yaml:1: include: b\.yaml includes this file: a circle"):
        load_config([file], [], "train")


def test_the_same_file_may_be_included_twice_without_a_circle(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "data: {fps: 4}\n")
    write(tmp_path, "a.yaml", "include: base.yaml\n")
    file = write(tmp_path, "b.yaml", "include: [a.yaml, base.yaml]\n")
    config = load_config([file], [], "train", partial=True)
    assert config.data is not None and config.data.fps == 4.0


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("include: bas.yaml\n", r"x\.yaml:1: include: no file .*bas\.yaml; did you mean 'base\.yaml'\?"),
        ("include: 3\n", r"x\.yaml:1: include: must be the name of a file"),
        ("args: [1\ndata: 2", r"x\.yaml:2: not valid YAML"),
        ("args:\n  seed: 1\n  seed: 2\n", r"x\.yaml:3: not valid YAML: found duplicate key seed"),
        ("- 1\n- 2\n", r"x\.yaml:1: must hold sections"),
        ("args: {load: '${nothing.here}'}\n", r"x\.yaml:1: args\.load: can't resolve \$\{nothing\.here\}"),
        ("args: {load: '${'}\n", r"x\.yaml:1: not valid"),
        ("train_iters: 3\n", r"x\.yaml:1: train_iters: belongs to section args: write args\.train_iters"),
        ("arg: {seed: 3}\n", r"x\.yaml:1: arg: unknown section 'arg'; did you mean 'args'\?"),
        ("args: 3\n", r"x\.yaml:1: args: must be a mapping of keys"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, text: str, match: str) -> None:
    write(tmp_path, "base.yaml", "{}\n")
    with pytest.raises(ConfigError, match=match):
        load_config([write(tmp_path, "x.yaml", text)], [], "train", partial=True)


def test_a_missing_file_and_a_broken_one_are_both_named(tmp_path: Path) -> None:
    broken = write(tmp_path, "broken.yaml", "a: [1, }\n")
    with pytest.raises(ConfigError, match=r"(?s)2 problems.*absent\.yaml: can't be read: no such file") as error:
        load_config([str(tmp_path / "absent.yaml"), broken], [], "train")
    assert "broken.yaml:1: not valid YAML" in str(error.value)


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("args.seed", r"command line: args\.seed: 'args\.seed' is not an override: write section\.key=value"),
        ("args..seed=1", "is not an override"),
        ("args.load=[1", r"command line: args\.load: '\[1' is not valid YAML"),
        ("args.load=${", r"command line: args\.load: '\$\{' is not valid"),
    ],
)
def test_mistakes_in_an_override(train: Load, override: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        train(override)


def test_an_override_reaches_into_a_list(published: Load) -> None:
    path = "model.conditioner_config.params.emb_models.0.params.model_dir"
    config = published("train", "cogvideox_2b_lora.yaml", "sft.yaml", overrides=(f"{path}=other",))
    assert config.model.conditioner_config["params"]["encoder"]["params"]["model_dir"] == "other"


def test_numbers_as_yaml_1_2_writes_them(train: Load) -> None:
    config = train("deepspeed.optimizer.params.eps=1e-8", "data.skip_frms_num=3.", "args.train_iters=1e3")
    assert config.deepspeed["optimizer"]["params"]["eps"] == 1e-8
    assert config.data is not None and config.data.skip_frms_num == 3.0
    assert config.train_args.train_iters == 1000


def test_interpolation(train: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTS", "/weights")
    config = train("args.load=${oc.env:WEIGHTS}/transformer", "args.save=${args.load}/runs")
    assert config.train_args.save == "/weights/transformer/runs"


def test_a_key_marked_as_missing_is_named_where_it_is_marked() -> None:
    with pytest.raises(ConfigError, match=r"sft\.yaml:\d+: args\.train_data: missing: give the folders"):
        load_config([MODEL, SFT], [], "train")


def test_all_problems_come_in_one_report(train: Load) -> None:
    with pytest.raises(ConfigError) as error:
        train("args.train_itres=3", "data.video_size=[481,720]", "deepspeed.fp16.enabled=maybe", "model.foo=1")
    lines = str(error.value).splitlines()
    assert lines[0] == "4 problems in the configuration:"
    assert all(line.startswith("  command line: ") for line in lines[1:])
    assert "args.train_itres: unknown key 'train_itres'; did you mean 'train_iters'?" in lines[1]


def test_allow_unknown_turns_unknown_keys_into_warnings_only(train: Load) -> None:
    config = train("args.train_itres=3", "model.network_config.params.hiden=3", allow_unknown=True)
    assert len(config.warnings) == 2 and "did you mean 'train_iters'?; ignored" in config.warnings[0]
    with pytest.raises(ConfigError, match="train_iters: must be int, not 'x'"):
        train("args.train_iters=x", allow_unknown=True)


def test_keys_of_the_other_kind_may_stand_in_files_but_not_on_the_command_line(sample: Load) -> None:
    assert sample(more=[SFT]).kind == "sample"
    with pytest.raises(ConfigError, match=r"command line: args\.train_iters: belongs to the other kind of run"):
        sample("args.train_iters=3")


def test_resolved_yaml_loads_again_to_the_same(train: Load, sample: Load, tmp_path: Path) -> None:
    for config, kind in ((train("args.seed=5"), "train"), (sample("args.num_steps=7"), "sample")):
        file = write(tmp_path, f"{kind}.yaml", config.resolved_yaml)
        again = load_config([file], [], kind)  # type: ignore[arg-type]
        assert (again.args, again.model, again.data, again.deepspeed) == (
            config.args,
            config.model,
            config.data,
            config.deepspeed,
        )
        assert yaml.safe_load(again.resolved_yaml) == yaml.safe_load(config.resolved_yaml)


def test_a_training_run_s_saved_configuration_samples(train: Load, tmp_path: Path) -> None:
    saved = write(tmp_path, "training_config.yaml", train().resolved_yaml)
    assert load_config([saved, INFERENCE], [], "sample").sample_args.sampling_num_frames == 13


def test_command_line_in_any_order() -> None:
    argv = ["args.a=1", "--base", "a.yaml", "b.yaml", "c.d=2", "--local_rank=3", "--seed", "7", "--check", "e=[1,2]"]
    command = parse_cli(argv, "train")
    assert command.base == ("a.yaml", "b.yaml")
    assert sorted(command.overrides) == ["args.a=1", "args.seed=7", "c.d=2", "e=[1,2]"]
    assert command.overrides[-1] == "args.seed=7"
    assert (command.check, command.debug, command.local_rank) == (True, False, 3)


def test_local_rank_from_the_launcher_s_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert parse_cli(["--base", "a.yaml"], "sample").local_rank == 2
    monkeypatch.delenv("LOCAL_RANK")
    assert parse_cli(["--base", "a.yaml"], "sample").local_rank is None


def test_a_file_whose_name_holds_an_equals_sign(tmp_path: Path) -> None:
    file = write(tmp_path, "lr=1.yaml", "{}")
    assert parse_cli(["--base", file, "a.b=1"], "train").base == (file,)


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["--bas", "a.yaml"], "unrecognized arguments: --bas"),
        (["--base", "a.yaml", "--seed", "x"], "invalid int value"),
        (["args.seed=1"], "no configuration given"),
    ],
)
def test_mistakes_on_the_command_line(argv: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        parse_cli(argv, "train")


def test_paths_that_do_not_exist_are_reported_together(tmp_path: Path) -> None:
    command = parse_cli(["--base", MODEL, SFT, f"args.train_data=[{tmp_path},{tmp_path}/no]"], "train")
    with pytest.raises(ConfigError) as error:
        command.load()
    text = str(error.value)
    assert text.startswith("2 problems")
    for part in ("args.load: the model's weights are not there", "ckpt_path", "model_dir", "args.train_data: no such"):
        assert part in text


def test_a_placeholder_is_called_one(sample: Load) -> None:
    command = parse_cli(["--base", MODEL, INFERENCE, "args.load={your path}"], "sample")
    with pytest.raises(ConfigError, match=r"args\.load: must be str, not a mapping"):
        command.load()
    command = parse_cli(["--base", MODEL, INFERENCE, "args.load='{your path}/transformer'"], "sample")
    with pytest.raises(ConfigError, match=r"args\.load: .* is still a placeholder"):
        command.load()


def test_a_missing_prompt_file_and_resume_path(tmp_path: Path) -> None:
    base = ["--base", MODEL, INFERENCE, "args.input_type=txt", "args.input_file=no.txt"]
    with pytest.raises(ConfigError, match=r"args\.input_file: no such file or folder: no\.txt"):
        parse_cli(base, "sample").load()
    base = ["--base", MODEL, SFT, f"args.train_data=[{tmp_path}]", "args.resume=no_run"]
    with pytest.raises(ConfigError, match=r"args\.resume: no such file or folder: no_run"):
        parse_cli(base, "train").load()


def test_names_of_runs_are_left_to_those_who_know_runs(tmp_path: Path) -> None:
    """What has no slash may be an experiment; a run that goes on doesn't need the weights that it began with."""
    base = ["--base", MODEL, SFT, f"args.train_data=[{tmp_path}]"]
    for words in (["args.load=style"], ["args.load=latest"], [f"args.resume={tmp_path}", "args.load=gone/model"]):
        with pytest.raises(ConfigError) as error:
            parse_cli([*base, *words], "train").load()
        assert "args.load" not in str(error.value) and "ckpt_path: the model's weights" in str(error.value)
    with pytest.raises(ConfigError, match=r"args\.base_model: no such file or folder: gone"):
        parse_cli([*base, "args.base_model=gone"], "train").load()


def test_args_of_the_right_kind(train: Load) -> None:
    config = train()
    assert isinstance(config.train_args, TrainArgs)
    with pytest.raises(AssertionError, match="sample_args of a training"):
        _ = config.sample_args


def test_a_check_imports_neither_torch_nor_sat() -> None:
    code = (
        "import sys; from cogvideox.config.load import load_config;"
        f"load_config([{MODEL!r}, {SFT!r}], ['args.train_data=[x]'], 'train');"
        "print(sorted({'torch', 'sat', 'transformers', 'deepspeed', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "sat", check=True)
    assert done.stdout.strip() == "[]"
