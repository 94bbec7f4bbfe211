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


def size_problem(size: tuple[int, int], multiple: tuple[int, int]) -> str:
    """What is wrong with a (height, width) in pixels that VAE and patches can't divide; empty when nothing is."""
    if all(side >= step and side % step == 0 for side, step in zip(size, multiple, strict=True)):
        return ""
    nearest = [max(step, round(side / step) * step) for side, step in zip(size, multiple, strict=True)]
    steps = f"{multiple[0]}" if multiple[0] == multiple[1] else f"{multiple[0]} and {multiple[1]}"
    return f"[height, width] must be multiples of {steps}, not {list(size)}; nearest: {nearest}"


def frame_count_problem(frames: int, temporal_compression: int, patch_frames: int = 1) -> str:
    """What is wrong with a number of pixel frames; empty when nothing is.

    Legal are k * temporal_compression + 1. Patches of 2 latent frames need an odd number of latent frames, at least 3,
    to which one copy is added: with a compression of 4 these are 9, 17, 25, ... pixel frames.
    """
    step = temporal_compression * patch_frames
    smallest = 1 if patch_frames == 1 else step + 1
    if frames >= smallest and (frames - 1) % step == 0:
        return ""
    below = max(smallest, (frames - 1) // step * step + 1)
    legal = f"{below}" if frames < smallest else f"{below} or {below + step}"
    if patch_frames > 1 and frames == 1:
        return f"one frame does not fill a patch of {patch_frames} latent frames; nearest: {legal}"
    why = f" because patches hold {patch_frames} latent frames" if patch_frames > 1 else ""
    return f"must be {step}k + 1 frames{why}, not {frames}; nearest: {legal}"
