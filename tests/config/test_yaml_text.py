"""YAML that somebody wrote by mistake or on purpose: plain values, or one line that says where."""

from __future__ import annotations

import pathlib
import time

import pytest
from cogvideox.config import yaml_text
from cogvideox.config.yaml_text import BadYaml, parse_yaml
from cogvideox.errors import ConfigError
from config.conftest import Load

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(f'*{before}' for _ in range(9))}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_plain_values_and_their_lines() -> None:
    plain, nodes = parse_yaml("\ufeffa: 1e-8\nb: &x [1, 2]\nc: *x\nd: {<<: {e: 3}}\nf: ${a}\n")
    assert plain == {"a": 1e-8, "b": [1, 2], "c": [1, 2], "d": {"e": 3}, "f": "${a}"}
    assert nodes is not None and [key.start_mark.line for key, _ in nodes.value] == [0, 1, 2, 3, 4]
    assert parse_yaml("") == ({}, None)


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("a: " + "[" * 100_000, "nested more than 40 levels deep", 1),
        ("a: 1\nb: " + "{a: " * 100_000, "nested more than 40 levels deep", 2),
        ("\n".join(" " * depth + "a:" for depth in range(2000)), "nested more than 40 levels deep", 40),
        (LAUGHS, "more than 20,000 values", 5),
        ("a: &a [*a]", r"the alias \*a stands inside of what it names", 1),
        ("a: *b", "not valid YAML: found undefined alias", 1),
        ("a: 0\nb: [" + "1," * 30_000 + "]", "more than 20,000 values", 2),
        ("a: " + "x" * 20_000, "a value of 20,000 characters; the limit is 10,000", 1),
        ("a: !!python/object/apply:os.system [touch x]", "the tag 'tag:yaml.org,2002:python/object/apply:os.sys", 1),
        ("a: !!int abc", "the tag 'tag:yaml.org,2002:int' is not read here", 1),
        ("a: !!timestamp x", "the tag 'tag:yaml.org,2002:timestamp' is not read here", 1),
        ("a: 0b_", "a value is no number, though it looks like one", None),
        ("a: " + "9" * 5000, "a value is no number", None),
        ("a: 1\na: 2", "not valid YAML: found duplicate key a", 2),
        ("a: [", "not valid YAML", 2),
        ("? [a]\n: b", "not valid", None),
        ("a: '\x01'", "not valid YAML: .*control characters are not allowed", None),
    ],
)
def test_what_is_refused(text: str, message: str, line: int | None) -> None:
    begin = time.process_time()
    with pytest.raises(BadYaml, match=message) as error:
        parse_yaml(text)
    assert "\n" not in str(error.value) and time.process_time() - begin < 5
    if line is not None:
        assert error.value.line == line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02}q\x00(U", r"x\.yaml can't be read: is not UTF-8: byte 0"),
        (b"a\0", r"x\.yaml can't be read: holds NUL"),
        ("args: {seed: 1}".encode("utf-16"), r"x\.yaml can't be read: is UTF-16"),
        (b"#" * 2_000_000, r"x\.yaml can't be read: holds 2\.0 MB, more than"),
        (b"args:\n  seed: [" + b"[" * 50, r"x\.yaml:2: nested more than 40 levels deep"),
    ],
)
def test_files(train: Load, tmp_path: pathlib.Path, content: bytes, message: str) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        train(more=[str(tmp_path / "x.yaml")])


def test_a_byte_order_mark_is_no_content(train: Load, tmp_path: pathlib.Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfargs:\r\n  seed: 7\r\n")
    assert train(more=[str(tmp_path / "x.yaml")]).train_args.seed == 7


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["args.seed=[" + "[" * 900], r"args\.seed: '\[+\.\.\. is nested more than 40 levels"),
        ([".".join("a" * 3000) + "=1"], r"is a key of 3000 parts; the limit is 40"),
        (["args.seed=!!int x"], r"is the tag 'tag:yaml\.org,2002:int' is not read here"),
        (["args.seed=1\nb: 2"], r"'1\\nb: 2' is more than one value"),
        (["args.load=${args.save}", "args.save=${args.load}"], r"can't resolve \$\{args"),
        ([f"args.train_data.{'²'}=x"], r"args\.train_data"),
        (["args.eval_prompts=[" + ", ".join("'${args.save}'" for _ in range(30)) + "]"], "more than 24 interpolations"),
    ],
)
def test_command_lines(train: Load, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(*overrides)


def test_a_long_value_on_the_command_line_is_no_file_name(train: Load) -> None:
    assert train("args.eval_prompts=['" + "a ship " * 100 + "']").train_args.eval_prompts


def test_includes_that_multiply(train: Load, tmp_path: pathlib.Path) -> None:
    (tmp_path / "0.yaml").write_text("args: {seed: 1}\n")
    for n in range(1, 30):
        (tmp_path / f"{n}.yaml").write_text(f"include: [{n - 1}.yaml, {n - 1}.yaml]\n")
    with pytest.raises(ConfigError, match="more than 100 files and includes make up this configuration"):
        train(more=[str(tmp_path / "29.yaml")])


def test_shipped_files_are_far_from_the_limits() -> None:
    root = pathlib.Path(yaml_text.__file__).parents[3]
    texts = [file.read_text() for file in (root / "configs").glob("*.yaml")]
    assert texts and max(map(len, texts)) < yaml_text.MAX_BYTES / 50
    for text in texts:
        parse_yaml(text)
