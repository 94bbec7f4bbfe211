"""Ways in which a file goes wrong, each a function of (file, random numbers) that changes it in place."""

from __future__ import annotations

import codecs
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

Mutation = Callable[[Path, random.Random], None]
CANARY = "FUZZ_CANARY"  # environment variable: the file that hostile inputs try to make


def canary() -> str:
    return os.environ[CANARY]


class _Payload:
    """What a pickle runs when somebody unpickles it without care."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {canary()}",))


def _bytes(change: Callable[[bytearray, random.Random], bytes | bytearray]) -> Mutation:
    def apply(file: Path, rng: random.Random) -> None:
        file.write_bytes(change(bytearray(file.read_bytes()), rng))

    return apply


def _flip(content: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice([1, 1, 3, 30])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return content


def _flip_at_either_end(content: bytearray, rng: random.Random) -> bytearray:
    """Where headers and directories are."""
    place = rng.randrange(min(400, len(content)))
    content[place if rng.random() < 0.5 else -1 - place] ^= 1 << rng.randrange(8)
    return content


def _zero_page(content: bytearray, rng: random.Random) -> bytearray:
    start = rng.randrange(len(content))
    content[start : start + 4096] = bytes(len(content[start : start + 4096]))
    return content


def _cut_out(content: bytearray, rng: random.Random) -> bytearray:
    start = rng.randrange(len(content))
    return content[:start] + content[start + rng.randrange(1, 1000) :]


def _insert(content: bytearray, rng: random.Random) -> bytearray:
    start = rng.randrange(len(content) + 1)
    return content[:start] + rng.randbytes(rng.randrange(1, 100)) + content[start:]


def _become_folder(file: Path, rng: random.Random) -> None:
    file.unlink()
    file.mkdir()


def _become_pipe(file: Path, rng: random.Random) -> None:
    file.unlink()
    os.mkfifo(file)


def _become_link(file: Path, rng: random.Random) -> None:
    file.unlink()
    file.symlink_to(rng.choice([file.name, "/dev/zero", "/nowhere/at/all"]))


def _become(*contents: Callable[[], bytes]) -> Mutation:
    return lambda file, rng: file.write_bytes(rng.choice(contents)()) and None  # type: ignore[func-returns-value]


BYTES: tuple[Mutation, ...] = (
    _bytes(_flip),
    _bytes(_flip_at_either_end),
    _bytes(_zero_page),
    _bytes(_cut_out),
    _bytes(_insert),
    _bytes(lambda content, rng: content[: rng.randrange(len(content))]),
    _bytes(lambda content, rng: content + content[: rng.randrange(1, len(content) + 1)]),
    _bytes(lambda content, rng: rng.randbytes(rng.randrange(1, 5000))),
)
REPLACED: tuple[Mutation, ...] = (
    _become_folder,
    _become_pipe,
    _become_link,
    lambda file, rng: file.unlink(),
    _become(
        lambda: b"",
        lambda: pickle.dumps(_Payload()),
        lambda: pickle.dumps({"module": _Payload()}, protocol=2),
        lambda: b"<!doctype html><html>404</html>",
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        lambda: b"PK\x03\x04" + bytes(100),
        lambda: b"\0" * 5000,
        lambda: (2**63 - 1).to_bytes(8, "little") + b"{}",
    ),
)


def _text(change: Callable[[str, random.Random], str], encoding: str = "utf-8") -> Mutation:
    def apply(file: Path, rng: random.Random) -> None:
        file.write_bytes(change(file.read_bytes().decode("utf-8"), rng).encode(encoding, "surrogatepass"))

    return apply


def _at(text: str, rng: random.Random, piece: str) -> str:
    place = rng.randrange(len(text) + 1)
    return text[:place] + piece + text[place:]


TEXT: tuple[Mutation, ...] = (
    _text(lambda text, rng: "\ufeff" + text),
    _text(lambda text, rng: text.replace("\n", "\r\n")),
    _text(lambda text, rng: text, "utf-16"),
    _text(lambda text, rng: text, "utf-16-le"),
    _text(lambda text, rng: _at(text, rng, rng.choice(["\0", "\x1b", "\u2028", "\ud800", "\x85", "\t"]))),
    _text(lambda text, rng: _at(text, rng, rng.choice("[{(\"'&*!|>%@`:,-?#}])$"))),
    _text(lambda text, rng: rng.choice(["[", "{", '{"a":', "- "]) * 50_000),
    _text(lambda text, rng: "x" * rng.choice([300, 5000, 3_000_000])),
    _text(lambda text, rng: rng.choice(["..", "../..", "/etc/passwd", "-1", "9" * 5000, "~root", "None", "1\n2"])),
    lambda file, rng: file.write_bytes(codecs.BOM_UTF8 + rng.randbytes(20)) and None,  # type: ignore[func-returns-value]
)

HOSTILE_NAMES = (
    "subprocess.Popen",
    "os.system",
    "builtins.eval",
    "cogvideox.data.pool.ProcessPool",
    "org/kernel",
    "../../../etc/passwd",
    "file:///etc/passwd",
    "a" * 5000,
    "a\0b",
    "${oc.env:HOME}",
    "${a}${a}",
    "${args.load}",
)


def garbage(rng: random.Random) -> Any:
    """A value that doesn't belong there."""
    deep: Any = 1
    for _ in range(rng.choice([3, 60, 900])):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    hostile = {"target": "subprocess.Popen", "params": {"args": ["touch", canary()]}}
    numbers = [0, -1, 1, 2**31, 2**63, 2**64, 10**400, 1.5, -0.0, 1e308, float("nan"), float("inf")]
    others: list[Any] = [None, True, False, "", "x", [], {}, [None], [[1]], {"a": 1}, {"1": "2"}, deep, hostile]
    return rng.choice([rng.choice(numbers), rng.choice(others), rng.choice(HOSTILE_NAMES)])


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield (*path, key)
        yield from _places(child, (*path, key))


def _change_tree(tree: Any, rng: random.Random) -> Any:
    for _ in range(rng.choice([1, 1, 2, 5])):
        places = list(_places(tree))
        if not places:
            return garbage(rng)
        *parents, last = rng.choice(places)
        node = tree
        for key in parents:
            node = node[key]
        action = rng.randrange(6)
        if action == 0:
            del node[last]
        elif action == 1 and isinstance(node, dict):
            node[rng.choice(["attn_implementation", "auto_map", "quantization_config", "extra", "", "target"])] = (
                garbage(rng)
            )
        else:
            node[last] = garbage(rng)
    return tree


def json_values(file: Path, rng: random.Random) -> None:
    tree = _change_tree(json.loads(file.read_text(encoding="utf-8")), rng)
    file.write_text(json.dumps(tree), encoding="utf-8")


def yaml_values(file: Path, rng: random.Random) -> None:
    tree = _change_tree(yaml.safe_load(file.read_text(encoding="utf-8")), rng)
    file.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")


def yaml_tricks(file: Path, rng: random.Random) -> None:
    laughs = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{name}: &{name} [{', '.join(f'*{before}' for _ in range(9))}]\n"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    tricks = [
        laughs,
        "args: &a {load: *a}\n",
        f"args: !!python/object/apply:os.system ['touch {canary()}']\n",
        f"model: {{network_config: {{target: subprocess.Popen, params: {{args: [touch, {canary()}]}}}}}}\n",
        f"model: {{sampler_config: {{target: os.system, params: {{command: touch {canary()}}}}}}}\n",
        "args: {seed: !!int x, load: !!timestamp y}\n",
        "args: {seed: 0b_, warmup: 1e999, lr: 0x_}\n",
        "include: [x.yaml, /dev/zero, ../../etc/passwd]\n",
        f"include: {file.name}\n",
        "? [a, b]\n: c\n? {a: b}\n: d\n",
        "args: {load: '${" * 100,
        "a.b.c: 1\nargs.seed: 2\n1: 2\nnull: 3\ntrue: 4\n",
    ]
    text = file.read_text(encoding="utf-8")
    trick = rng.choice(tricks)
    file.write_text(rng.choice([trick, text + "\n" + trick, trick + text]), encoding="utf-8")


def missing_neighbour(file: Path, rng: random.Random) -> None:
    """Another file of the folder goes, or takes this one's content."""
    others = sorted(each for each in file.parent.iterdir() if each != file and each.is_file())
    if not others:
        file.unlink()
        return
    other = rng.choice(others)
    other.unlink()
    if rng.random() < 0.5:
        shutil.copy(file, other)
