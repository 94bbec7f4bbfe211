"""Range checks shared by the sections. Each yields (key, what is wrong and what would be valid)."""

from __future__ import annotations

from collections.abc import Iterator

# What the VAE and the patches need: 8x in the VAE times a patch of 2; one frame, then groups of 4.
SIZE_MULTIPLE = 16
SPATIAL_COMPRESSION = 8
TEMPORAL_COMPRESSION = 4


def at_least(section: object, smallest: float, *names: str) -> Iterator[tuple[str, str]]:
    """Values below `smallest`; null is fine where the type allows it."""
    for name in names:
        value = getattr(section, name)
        if value is not None and value < smallest:
            yield name, f"must be at least {smallest:g}, not {value:g}"


def share(section: object, *names: str) -> Iterator[tuple[str, str]]:
    """Values outside 0..1."""
    for name in names:
        value = getattr(section, name)
        if not 0 <= value <= 1:
            yield name, f"must lie between 0 and 1, not {value:g}"


def size_problem(section: object, name: str) -> Iterator[tuple[str, str]]:
    """A (height, width) in pixels that the VAE and the patches can't divide."""
    size: tuple[int, int] = getattr(section, name)
    if any(side < SIZE_MULTIPLE or side % SIZE_MULTIPLE for side in size):
        nearest = [max(SIZE_MULTIPLE, round(side / SIZE_MULTIPLE) * SIZE_MULTIPLE) for side in size]
        yield (
            name,
            f"[height, width] must be multiples of {SIZE_MULTIPLE}, not {list(size)}; nearest: {nearest}",
        )


def frame_count_problem(section: object, name: str) -> Iterator[tuple[str, str]]:
    """A number of pixel frames that is not 4k + 1."""
    frames: int = getattr(section, name)
    if frames < 1 or frames % TEMPORAL_COMPRESSION != 1:
        below = max(1, (frames - 1) // TEMPORAL_COMPRESSION * TEMPORAL_COMPRESSION + 1)
        legal = f"{below}" if frames < 1 else f"{below} or {below + TEMPORAL_COMPRESSION}"
        yield name, f"must be {TEMPORAL_COMPRESSION}k + 1 frames, not {frames}; nearest: {legal}"
