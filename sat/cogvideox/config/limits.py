"""What counts, sizes and shares may be. Each check yields (key, what is wrong and what would be valid)."""

from __future__ import annotations

from collections.abc import Iterator

_NAME_BYTES = 200  # file systems allow 255; the time of the start follows


def at_least(section: object, smallest: float, *names: str) -> Iterator[tuple[str, str]]:
    """Values below `smallest`; null is fine where the type allows it."""
    for name in names:
        value = getattr(section, name)
        if value is not None and value < smallest:
            yield name, f"must be at least {smallest:g}, not {value:g}"


def seed_problem(section: object) -> Iterator[tuple[str, str]]:
    """A seed that torch's generators don't take."""
    seed = section.seed  # type: ignore[attr-defined]
    if not 0 <= seed < 2**63:
        yield "seed", f"must be a whole number from 0 to 2^63 - 1, not {seed}"


def share(section: object, *names: str) -> Iterator[tuple[str, str]]:
    """Values outside 0..1."""
    for name in names:
        value = getattr(section, name)
        if not 0 <= value <= 1:
            yield name, f"must lie between 0 and 1, not {value:g}"


def name_problem(name: str) -> str | None:
    """What is wrong with an experiment's name, which begins that of a folder; None when nothing is."""
    if not name.strip():
        return "is empty: it begins the name of the run folder"
    if "/" in name or name[0] == "." or not name.isprintable():
        return (
            f"{name!r} can't begin the name of a folder: leave out slashes, a leading dot and control characters; "
            "args.save says where run folders go"
        )
    if name == "latest":
        return "'latest' is the word for the newest run: choose another name"
    if len(name.encode()) > _NAME_BYTES:
        return f"{name[:20]!r}... is too long for the name of a folder: at most {_NAME_BYTES} bytes"
    return None
