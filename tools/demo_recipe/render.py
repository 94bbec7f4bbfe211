"""Procedurally rendered clips: one coloured shape, one motion, a softly textured background.

Letters: t frames, h w pixels, p polygon corners. Everything is a function of the `ClipSpec` alone, so a
clip can be rendered again anywhere. Edges are antialiased from the signed distance to the outline.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NUM_FRAMES, HEIGHT, WIDTH, FPS = 17, 64, 96, 8

COLORS = {
    "red": (215, 45, 40),
    "green": (55, 190, 70),
    "blue": (60, 105, 235),
    "yellow": (240, 210, 50),
    "purple": (165, 65, 205),
    "white": (240, 240, 235),
}
BACKGROUNDS = {"gray": (100, 100, 104), "navy": (24, 30, 72), "brown": (96, 62, 40), "teal": (18, 78, 78)}
SHAPES = ("circle", "triangle", "cross", "ring")
MOTIONS = ("right", "left", "up", "down", "grow", "shrink")
NEW_SHAPE = "zorp"  # a five-pointed star with a dark round core; only the fine-tuning clips show it


@dataclass(frozen=True)
class ClipSpec:
    """What a clip shows; `seed` fixes size, path, speed and texture."""

    shape: str
    color: str
    motion: str
    background: str
    seed: int


def render(spec: ClipSpec) -> np.ndarray:
    """Frames of one clip, uint8 [t, h, w, 3]."""
    rng = np.random.default_rng(spec.seed)
    centers, radii = _path(spec, rng)
    canvas = _background(np.asarray(BACKGROUNDS[spec.background], np.float32), rng)
    color = np.asarray(COLORS[spec.color], np.float32) * rng.uniform(0.94, 1.02)
    frames = np.empty((NUM_FRAMES, HEIGHT, WIDTH, 3), np.float32)
    for index in range(NUM_FRAMES):
        frames[index] = paint(canvas, spec.shape, centers[index], radii[index], color)
    return _to_bytes(frames)


def paint(canvas: np.ndarray, shape: str, center: np.ndarray, radius: float, color: np.ndarray) -> np.ndarray:
    """One frame: `shape` over `canvas` (float [h, w, 3]); center is (x, y) in pixels."""
    if shape in ("circle", "ring"):
        cover = _cover_disc(center, radius)
        if shape == "ring":
            cover = cover * (1.0 - _cover_disc(center, 0.55 * radius))
    else:
        cover = _cover_polygon(corners(shape) * radius + center)
    frame = canvas + cover[..., None] * (color - canvas)
    if shape == NEW_SHAPE:
        core = _cover_disc(center, 0.36 * radius)
        frame = frame + core[..., None] * (np.float32(12.0) - frame)
    return frame


def corners(shape: str) -> np.ndarray:
    """Outline of a polygon shape for radius 1, float [p, 2] in (x, y), y downwards."""
    if shape == "cross":
        out, arm = 1.0, 0.36
        quarter = np.array([[out, -arm], [out, arm], [arm, arm]], np.float32)
        turns = [np.array([[c, -s], [s, c]], np.float32) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
        return np.concatenate([quarter @ turn.T for turn in turns])
    if shape == "triangle":
        return np.array([[0.0, -1.15], [1.15, 0.95], [-1.15, 0.95]], np.float32)
    assert shape == NEW_SHAPE, f"unknown shape {shape!r}"
    angles = -np.pi / 2 + np.arange(10) * np.pi / 5
    reach = np.where(np.arange(10) % 2 == 0, 1.0, 0.5)
    return (np.stack([np.cos(angles), np.sin(angles)], -1) * reach[:, None]).astype(np.float32)


def render_variety(seed: int) -> np.ndarray:
    """A clip for the VAE only: several irregular shapes in any colours, half of
    them with a round core, on any background, uint8 [t, h, w, 3]."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(0, 255, 3).astype(np.float32) * rng.uniform(0.2, 1.0)
    canvas = _background(base, rng, strength=rng.uniform(0.5, 3.0))
    frames = np.repeat(canvas[None], NUM_FRAMES, 0)
    for _ in range(rng.integers(1, 5)):
        count = int(rng.integers(3, 11))
        angles = np.sort(rng.uniform(0, 2 * np.pi, count))
        reach = rng.uniform(0.4, 1.0, count)
        size = rng.uniform(5, 26)
        outline = np.stack([np.cos(angles), np.sin(angles)], -1) * reach[:, None] * size
        start, velocity = rng.uniform((0, 0), (WIDTH, HEIGHT)), rng.normal(0, 2.0, 2)
        color, spin = rng.uniform(0, 255, 3).astype(np.float32), rng.normal(0, 0.06)
        core_color, core_size = rng.uniform(0, 255, 3).astype(np.float32), size * rng.uniform(-0.4, 0.4)
        for index in range(NUM_FRAMES):
            turn = spin * index
            rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
            center = start + velocity * index
            cover = _cover_polygon((outline @ rotation.T + center).astype(np.float32))
            frames[index] += cover[..., None] * (color - frames[index])
            if core_size > 0:
                core = _cover_disc(center, core_size)
                frames[index] += core[..., None] * (core_color - frames[index])
    return _to_bytes(frames)


def _path(spec: ClipSpec, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Centres [t, 2] in (x, y) and radii [t]. Shapes fill much of the frame and move at 2 pixels a frame or less."""
    radius = rng.uniform(18, 21) if spec.shape == NEW_SHAPE else rng.uniform(15, 19)
    middle = np.array([WIDTH / 2, HEIGHT / 2]) + rng.uniform(-1, 1, 2) * (9, 3)
    x, y = np.full(NUM_FRAMES, middle[0]), np.full(NUM_FRAMES, middle[1])
    radii = np.full(NUM_FRAMES, radius)
    progress = np.linspace(-0.5, 0.5, NUM_FRAMES)
    if spec.motion in ("left", "right"):
        x = x + progress * rng.uniform(28, 34) * (1 if spec.motion == "right" else -1)
    elif spec.motion in ("up", "down"):
        y = y + progress * rng.uniform(18, 22) * (1 if spec.motion == "down" else -1)
    else:
        radii = radius * (0.95 + 0.8 * progress * (1 if spec.motion == "grow" else -1))
    return np.stack([x, y], -1).astype(np.float32), radii.astype(np.float32)


def _background(base: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """`base` colour with a few slow waves over it, float [h, w, 3]."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    waves = np.zeros((HEIGHT, WIDTH), np.float32)
    for _ in range(3):
        fx, fy = rng.uniform(-0.12, 0.12, 2)
        waves += np.cos(fx * columns + fy * rows + rng.uniform(0, 2 * np.pi))
    return (base + strength * 5.0 * waves[..., None]).astype(np.float32)


def _cover_disc(center: np.ndarray, radius: float) -> np.ndarray:
    """Share of each pixel inside a disc, float [h, w]."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32) + 0.5
    distance = np.hypot(columns - center[0], rows - center[1]) - radius
    return np.clip(0.5 - distance, 0.0, 1.0)


def _cover_polygon(points: np.ndarray) -> np.ndarray:
    """Share of each pixel inside a polygon with corners [p, 2] in (x, y), float [h, w]."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32) + 0.5
    nearest = np.full((HEIGHT, WIDTH), np.inf, np.float32)
    inside = np.zeros((HEIGHT, WIDTH), bool)
    for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, 0), strict=True):
        ex, ey, px, py = bx - ax, by - ay, columns - ax, rows - ay
        along = np.clip((px * ex + py * ey) / max(ex * ex + ey * ey, 1e-9), 0.0, 1.0)
        nearest = np.minimum(nearest, (px - along * ex) ** 2 + (py - along * ey) ** 2)
        if ey != 0:
            crosses = (ay > rows) != (by > rows)
            inside ^= crosses & (columns < ax + py / ey * ex)
    distance = np.sqrt(nearest)
    return np.clip(0.5 - np.where(inside, -distance, distance), 0.0, 1.0)


def _to_bytes(frames: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)
