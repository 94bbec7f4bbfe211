"""`python tools/memory.py --table`: counts all published models, and writes what is known of them where it is read."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cogvideox.errors import ConfigError

from simulated_cuda.cards import GIB, smallest
from simulated_cuda.published import (
    FIGURES,
    LAYOUTS,
    METHODS,
    MODELS,
    ROOT,
    SHIPPED,
    count,
    job,
    key,
    placement_job,
    small_job,
    title,
)

BEGIN, END = "<!-- counted: python tools/memory.py --table -->", "<!-- end of what is counted -->"
PAGES = {"docs/memory.md": "full", "README.md": "short"}
_METHOD = {"lora": "LoRA", "full": "all weights"}
LIBRARIES = ("torch", "deepspeed", "transformers")

Figures = dict[str, Any]


def write_tables() -> None:
    """Count, and write the figures and both pages. Raises: UserError."""
    both = [(model, method) for model in MODELS for method in METHODS]
    jobs = [job(*each, layout) for each in both for layout in LAYOUTS]
    jobs += [make(*each) for each in both for make in (placement_job, small_job)]
    figures = as_figures(count(jobs))
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for page in PAGES:
        file = ROOT / page
        file.write_text(with_table(file, figures), encoding="utf-8")
    print(f"written: {FIGURES.relative_to(ROOT)}, {', '.join(PAGES)}")


def as_figures(answers: dict[str, dict[str, Any]]) -> Figures:
    """Answers by model and method, with the versions that they hold for."""
    figures: Figures = {"versions": versions()}
    for name, answer in sorted(answers.items()):
        which, _, what = name.partition("/")
        figures.setdefault(which, {})[what] = answer
    return figures


def versions() -> dict[str, str]:
    """Of the libraries whose operators are counted, without what a build adds to them."""
    return {name: version(name).partition("+")[0] for name in LIBRARIES}


def read_figures() -> Figures:
    """What the last `--table` wrote."""
    figures: Figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    return figures


def with_table(page: Path, figures: Figures) -> str:
    """The page with a new table between its two marks. Raises: ConfigError where they are missing."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"{page}: the lines {BEGIN} and {END} are missing, between which the table belongs")
    kind = PAGES[str(page.relative_to(ROOT))]
    lines = short_table(figures) if kind == "short" else full_table(figures)
    return f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{after}"


def full_table(figures: Figures) -> list[str]:
    """Every layout, in GiB on each GPU."""
    heads = ["model and clip", "what trains", *(_head(*layout) for layout in LAYOUTS), "previews"]
    rows = []
    for model, published in MODELS.items():
        for method in METHODS:
            found = figures[f"{model} {method}"]
            training = [_gib(training_peak(found[key(*layout)]["memory"]["peaks"])) for layout in LAYOUTS]
            most = max(found[key(*SHIPPED)]["memory"]["peaks"].values())
            rows.append([title(published), _METHOD[method], *training, _gib(most)])
    return _lines(heads, rows)


def short_table(figures: Figures) -> list[str]:
    """One GPU and one of eight, with the smallest card."""
    rows = []
    for model, published in MODELS.items():
        row = [title(published)]
        for method in METHODS:
            for layout in (SHIPPED, (8, 2)):
                if (method, layout) != ("lora", (8, 2)):
                    peak = training_peak(figures[f"{model} {method}"][key(*layout)]["memory"]["peaks"])
                    row.append(f"{_gib(peak)} GiB: {smallest(peak)}")
        rows.append(row)
    return _lines(["model and clip", "LoRA", "all weights, one GPU", "all weights, each of 8 GPUs"], rows)


def training_peak(peaks: dict[str, int]) -> int:
    """The most of a run without preview videos."""
    return max(size for phase, size in peaks.items() if not phase.startswith("preview"))


def _head(gpus: int, stage: int) -> str:
    return f"{'1 GPU' if gpus == 1 else f'each of {gpus}'}, ZeRO {stage}"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"


def _lines(heads: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
