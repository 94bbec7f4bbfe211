"""Commands in README and docs/ can be pasted: files, flags and keys exist, and no shell stumbles over them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from cogvideox.config.load import load_config
from layout.source_tree import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "demo/recipe.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
COMMAND = re.compile(r"(?:\w+=\S+ )?(?:bash|python|torchrun|pytest) ")
SCRIPTS = {"finetune_single_gpu.sh": "train", "finetune_multi_gpus.sh": "train", "inference.sh": "sample"}


def commands(page: Path) -> list[str]:
    """Every command of a page, continued lines joined, comments behind it dropped."""
    text = page.read_text(encoding="utf-8")
    blocks = BLOCK.findall(text)
    lines = [
        line for kind, body in blocks if kind in ("bash", "") for line in re.sub(r"\\\n\s*", "", body).splitlines()
    ]
    spans = SPAN.findall(BLOCK.sub("", text))
    found = [re.sub(r"\s+#.*", "", line).strip() for line in lines] + [span for span in spans if " " in span]
    return [each for each in found if COMMAND.match(each)]


def unquoted(command: str) -> str:
    return re.sub(r"'[^']*'|\"[^\"]*\"", "", command)


def named(pages: list[Path]) -> list[tuple[str, str]]:
    return [(page.name, command) for page in pages for command in commands(page)]


def test_pages_have_commands() -> None:
    assert len(commands(ROOT / "README.md")) >= 8 and len(named(PAGES)) >= 40


def test_no_marks_of_a_merge_are_left() -> None:
    files = [*PAGES, *(ROOT / "configs").glob("*.yaml"), *ROOT.glob("*.sh"), *ROOT.glob("tools/*.sh")]
    for file in files:
        found = re.findall(r"^(?:<{7}|>{7}|={7}$|\|{7}).*", file.read_text(encoding="utf-8"), re.MULTILINE)
        assert not found, f"{file}: {found}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_shell_takes_every_command_as_it_stands(page: Path) -> None:
    """Outside of quotes nothing that bash or zsh would act on: redirection, patterns, brackets."""
    for command in commands(page):
        shlex.split(command)
        odd = set("<>[]{}()?*$&;|…") & set(unquoted(command))
        # `configs/*.yaml` is a pattern that is meant.
        assert not odd - ({"*"} if "check_config.py" in command else set()), f"{page.name}: {command}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_overrides_with_brackets_are_quoted(page: Path) -> None:
    """Also where a page names an override alone, such as 'data.video_size=[256,384]'."""
    for span in SPAN.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"(args|data|model|deepspeed)\.[\w.]+=.*[\[(]", span):
            raise AssertionError(f"{page.name}: {span} is not quoted")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_load(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and sampling commands are complete and valid; only the user's own folders are missing here."""
    monkeypatch.chdir(ROOT)
    for command in commands(page):
        words = shlex.split(command)
        script = Path(words[1]).name if len(words) > 1 else ""
        files = [word for word in words if word.endswith(".yaml") and "=" not in word and Path(word).is_file()]
        if script not in SCRIPTS or not files:
            continue
        missing = [word for word in words if word.startswith("configs/") and word not in files]
        assert not missing, f"{page.name}: {command}"
        overrides = [word for word in words[2:] if "=" in word]
        load_config(files, overrides, SCRIPTS[script])  # type: ignore[arg-type]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tools_and_their_flags_exist(page: Path) -> None:
    places = ("tools/**/*.py", "benchmarks/*.py", "sat/cogvideox/conversion/**/*.py")
    sources = "\n".join(file.read_text() for place in places for file in ROOT.glob(place))
    for module in ("config/load.py", "caching/options.py"):
        sources += (ROOT / "sat/cogvideox" / module).read_text()
    for command in commands(page):
        words = shlex.split(command)
        programs = [word for word in words if word.endswith((".py", ".sh"))]
        assert all((ROOT / program).is_file() for program in programs), f"{page.name}: {command}"
        if any(word.startswith(("tools/", "benchmarks/", "sat/")) for word in programs):
            for flag in (word.partition("=")[0] for word in words if word.startswith("--")):
                short = flag in ("--fp16", "--bf16", "--fp32")  # built from the names of the types
                assert short or f'"{flag}"' in sources, f"{page.name}: {flag} in {command}"


def anchors(page: Path) -> set[str]:
    """As GitHub makes them from headings."""
    titles = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


def test_pictures_are_small() -> None:
    for page in PAGES:
        for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / name).stat().st_size < 300_000, f"{page.name}: {name}"
    assert sum(file.stat().st_size for file in (ROOT / "demo").rglob("*") if file.is_file()) <= 25_000_000
