"""What `tools/check_dataset.py` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cogvideox import commands
from cogvideox.doctor.clips import Clip, clips_of
from cogvideox.doctor.facts import facts_of
from cogvideox.doctor.look import Look, look
from cogvideox.doctor.output import check_output, write_output
from cogvideox.doctor.page import chosen_pictures, render, to_json
from cogvideox.doctor.subject import Subject
from cogvideox.errors import ConfigError, DataError
from cogvideox.log import amount


def make_page(
    subject: Subject,
    output: Path | None,
    json_file: Path | None,
    *,
    with_pictures: bool = True,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Look at all data, and write the page, the JSON, or both.

    Raises:
        ConfigError: for places that can't be written to.
        DataError: for data that training would refuse; the page is written all the same, where there are clips.
    """
    if output is not None and json_file is not None and output.absolute() == json_file.absolute():
        raise ConfigError(f"--output and --json name the same file: {output}")
    for file, flag in ((output, "--output"), (json_file, "--json")):
        if file is not None:
            check_output(file, flag, overwrite)
    seen = look(subject, with_pictures)
    facts = facts_of(seen)
    for part in seen.parts:
        say(part.found.listed.report.text(limit=5))
    for text in _further(facts):
        say(text)
    if json_file is not None:
        write_output(json_file, to_json(facts))
        say(f"figures: {commands.shown(json_file)}")
    if output is not None:
        clips = clips_of(seen)
        numbers = chosen_pictures(facts, lambda number: _jpeg(seen, clips[number - 1]) is not None)
        jpegs = {number: jpeg for number in numbers if (jpeg := _jpeg(seen, clips[number - 1])) is not None}
        text = render(facts, jpegs)
        write_output(output, text)
        say(f"page: {commands.shown(output)} ({amount(len(text.encode()))}); open it in a browser")
    if facts["verdict"]:
        raise DataError(f"training would refuse this data: {facts['verdict']}")


def _jpeg(seen: Look, clip: Clip) -> bytes | None:
    return getattr(seen.pictures.get(clip.media), "jpeg", None)


def _further(facts: dict[str, Any]) -> list[str]:
    """What the reports don't say, as lines."""
    said = {"damaged frames", "near duplicate", "one colour", "static", "duplicate caption", "long caption"}
    said.add("held out and trained on")
    lines = [
        f"  {each['kind']}: {each['count']} ({each['effect']})" for each in facts["findings"] if each["kind"] in said
    ]
    training, cache = facts["parts"][0]["training"], sum(part["cache"]["bytes"] for part in facts["parts"])
    lines.append(
        f"  {training['steps_per_epoch']} steps per epoch, {training['epochs']:g} epochs in {training['steps']} steps; "
        f"a cache takes {amount(cache)}"
    )
    if not facts["settings"]["tokens_counted"]:
        lines.append(f"  tokens were not counted: {facts['settings']['why_no_tokens']}")
    return lines
