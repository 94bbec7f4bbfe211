"""The page: one file of HTML that needs nothing beside it."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup, escape

from cogvideox.doctor.histograms import plain
from cogvideox.log import amount

MOST_ROWS = 10_000  # of clips in the table
MOST_THUMBNAILS = 60  # spread over the data
WORST = 6  # thumbnails of a finding
MOST_ITEMS = 20  # of a finding, in words
MARK = "cogvideox-sat data page"  # by which a page is known as ours
_LEFT_OUT = ("path",)  # of a row, which the page has no room for

FORMS: Mapping[str, Callable[[Any], str]] = {
    "text": str,
    "count": lambda value: f"{value:,}",
    "number": plain,
    "percent": lambda value: f"{100 * value:.3g} %",
    "bytes": amount,
    "times": lambda value: f"{plain(value)}×",
    "list": lambda value: " × ".join(map(str, value)),
    "range": lambda value: (
        plain(value["smallest"])
        if plain(value["smallest"]) == plain(value["largest"])
        else f"{plain(value['smallest'])} to {plain(value['largest'])}"
    ),
    "duration": lambda value: (
        f"{value:.0f} s" if value < 100 else f"{value / 60:.0f} min" if value < 6000 else f"{value / 3600:.1f} h"
    ),
}


def render(facts: Mapping[str, Any], jpegs: Mapping[int, bytes]) -> str:
    """The page of these facts.

    Args:
        facts: see facts_of.
        jpegs: small pictures by the numbers of their clips.
    """
    rows = facts["clips"]
    kept = _some_rows(rows)
    columns = [name for name in (rows[0] if rows else ()) if name not in _LEFT_OUT]
    content = {"columns": columns, "rows": [[row[name] for name in columns] for row in kept]}
    return (
        _environment(facts)
        .get_template("page.html.j2")
        .render(
            mark=MARK,
            facts=facts,
            gallery=[rows[number - 1] for number in _spread_over(sorted(jpegs))],
            picture=lambda number: data_uri(jpegs[number]) if number in jpegs else "",
            by_number=lambda number: rows[number - 1],
            worst=lambda finding: _worst(finding, jpegs),
            most_items=MOST_ITEMS,
            rows_shown=len(kept),
            embedded=Markup(_script_text(content)),
        )
    )


def to_json(facts: Mapping[str, Any]) -> str:
    """The same facts for programs."""
    return json.dumps(facts, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def data_uri(jpeg: bytes) -> str:
    """A picture inside the page."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def render_template(name: str, facts: Mapping[str, Any], **content: Any) -> str:
    """Another page of the same make."""
    return _environment(facts).get_template(name).render(mark=MARK, facts=facts, **content)


def is_ours(file: Path) -> bool:
    """Whether a file is a page or the JSON of one, which may be written again."""
    try:
        with file.open("rb") as content:
            begin = content.read(4096)
    except OSError:
        return False
    return MARK.encode() in begin or begin.startswith(b'{\n "format": ')


def _environment(facts: Mapping[str, Any]) -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(os.fspath(Path(__file__).parent / "templates"))
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.globals["fact"] = lambda path, form="text": _fact(facts, path, form)
    environment.globals["chart"] = lambda path, name: _chart(facts, path, name)
    return environment


def _at(facts: Any, path: str) -> Any:
    """The value at a path such as `parts/0/used`."""
    for word in path.split("/"):
        facts = facts[int(word)] if isinstance(facts, list) else facts[word]
    return facts


def _fact(facts: Mapping[str, Any], path: str, form: str, tag: str = "span", attributes: str = "") -> Markup:
    """A figure, with where it stands in the JSON."""
    text = escape(FORMS[form](_at(facts, path)))
    where = Markup('data-fact="{}" data-form="{}"').format(path, form)
    return Markup("<{0} {1}{2}>{3}</{0}>").format(Markup(tag), where, Markup(attributes), text)


def _chart(facts: Mapping[str, Any], path: str, name: str) -> Markup:
    """Bars, one below the other, so that their labels can be read on a phone too."""
    bars = _at(facts, path)
    most = max(bars["counts"])
    lines = []
    for number, count in enumerate(bars["counts"]):
        top = 20 * number
        length = max(1, round(150 * count / most)) if count else 0
        label = f' x="118" y="{top + 14}" text-anchor="end" class="label"'
        value = f' x="{130 + length}" y="{top + 14}"'
        lines += [
            _fact(facts, f"{path}/labels/{number}", "text", "text", label),
            Markup('<rect x="124" y="{}" width="{}" height="14" rx="2"/>').format(top + 3, length),
            _fact(facts, f"{path}/counts/{number}", "count", "text", value),
        ]
    return Markup('<svg viewBox="0 0 330 {}" role="img" aria-label="{}, in {}: bars">{}</svg>').format(
        20 * len(bars["counts"]), name, bars["unit"], Markup("").join(lines)
    )


def _script_text(content: Any) -> str:
    """JSON that can stand inside a script element."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _some_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All rows, or where they are too many those with findings first, and others evenly."""
    if len(rows) <= MOST_ROWS:
        return rows
    named = [row for row in rows if row["findings"]]
    rest = [row for row in rows if not row["findings"]]
    kept = named[:MOST_ROWS]
    kept += [rest[place] for place in _even_places(len(rest), MOST_ROWS - len(kept))]
    return sorted(kept, key=lambda row: row["number"])


def chosen_pictures(facts: Mapping[str, Any], has_picture: Callable[[int], bool]) -> list[int]:
    """The clips whose pictures the page shows: some of all, and the worst of every finding."""
    able = [row["number"] for row in facts["clips"] if has_picture(row["number"])]
    chosen = set(_spread_over(able))
    for finding in facts["findings"]:
        chosen.update(_worst(finding, set(able)))
    return sorted(chosen)


def _worst(finding: Mapping[str, Any], able: Iterable[int] | Mapping[int, Any]) -> list[int]:
    numbers = dict.fromkeys(item["clip"] for item in finding["items"] if item["clip"] in able)
    return list(numbers)[:WORST]


def _spread_over(numbers: list[int]) -> list[int]:
    return [numbers[place] for place in _even_places(len(numbers), MOST_THUMBNAILS)]


def _even_places(count: int, most: int) -> list[int]:
    if count <= most:
        return list(range(count))
    return np.unique(np.linspace(0, count - 1, most).astype(np.int64)).tolist() if most > 0 else []
