"""What a clip shows, measured on its pixels: colour, shape, motion, background. No network.

Letters: t frames, h w pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .render import BACKGROUNDS, COLORS, HEIGHT, NEW_SHAPE, SHAPES, WIDTH, ClipSpec, paint

CONTRAST = 48.0  # RGB distance from the background that counts as foreground
TRAVEL = (30.0, 14.0, 0.7)  # what a full motion is: pixels in x, pixels in y, natural log of the size ratio


@dataclass(frozen=True)
class Reading:
    """The nearest thing of the world for each property, and how well the shape's template fits (0 to 1)."""

    shape: str
    color: str
    motion: str
    background: str
    shape_fit: float


def read(clip: np.ndarray) -> Reading | None:
    """Measure uint8 [t, h, w, 3]; None when no foreground is visible in at least half of the frames."""
    frames = clip.astype(np.float32)
    border = np.concatenate([frames[:, :6].reshape(-1, 3), frames[:, -6:].reshape(-1, 3)])
    ground = np.median(border, 0)
    masks = np.linalg.norm(frames - ground, axis=-1) > CONTRAST
    areas = masks.reshape(len(masks), -1).sum(1)
    seen = np.flatnonzero(areas > 25)
    if len(seen) * 2 < len(masks):
        return None
    masks, areas, frames = masks[seen], areas[seen], frames[seen]
    shape, fit = _shape(masks, areas)
    return Reading(
        shape=shape,
        color=_nearest(_foreground_color(frames, masks), COLORS),
        motion=_motion(masks, areas),
        background=_nearest(ground, BACKGROUNDS),
        shape_fit=fit,
    )


def agreement(spec: ClipSpec, clip: np.ndarray) -> dict[str, bool]:
    """For each property, whether the clip shows what `spec` says."""
    names = ("shape", "color", "motion", "background")
    reading = read(clip)
    return {name: reading is not None and getattr(reading, name) == getattr(spec, name) for name in names}


def _nearest(color: np.ndarray, table: dict[str, tuple[int, int, int]]) -> str:
    return min(table, key=lambda name: float(np.linalg.norm(color - np.asarray(table[name], np.float32))))


def _foreground_color(frames: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Median over the brightest part of the foreground: edges and a dark core are left out."""
    pixels = frames[masks]
    brightness = pixels.max(1)
    return np.median(pixels[brightness >= np.quantile(brightness, 0.4)], 0)


def _centers(masks: np.ndarray) -> np.ndarray:
    """Centroids [t, 2] in (x, y)."""
    rows, columns = np.mgrid[0 : masks.shape[1], 0 : masks.shape[2]]
    area = masks.sum((1, 2))
    return np.stack([(masks * columns).sum((1, 2)) / area, (masks * rows).sum((1, 2)) / area], -1)


def _motion(masks: np.ndarray, areas: np.ndarray) -> str:
    centers, size = _centers(masks), np.log(np.sqrt(areas.astype(np.float64)))
    first, last = slice(0, 3), slice(-3, None)
    dx, dy = centers[last].mean(0) - centers[first].mean(0)
    growth = size[last].mean() - size[first].mean()
    amounts = np.array([dx / TRAVEL[0], dy / TRAVEL[1], growth / TRAVEL[2]])
    axis = int(np.abs(amounts).argmax())
    return (("left", "right"), ("up", "down"), ("shrink", "grow"))[axis][int(amounts[axis] > 0)]


def _shape(masks: np.ndarray, areas: np.ndarray) -> tuple[str, float]:
    """Best template by mean overlap (intersection over union) in the frames where the shape is largest."""
    chosen = np.argsort(areas)[-5:]
    centers = _centers(masks)
    scores = {}
    for shape in (*SHAPES, NEW_SHAPE):
        overlaps = [_overlap(shape, masks[i], centers[i], float(areas[i])) for i in chosen]
        scores[shape] = float(np.mean(overlaps))
    best = max(scores, key=lambda name: scores[name])
    return best, scores[best]


def _overlap(shape: str, mask: np.ndarray, center: np.ndarray, area: float) -> float:
    """Of the mask and the template with the same area and centroid."""
    radius = float(np.sqrt(area / _unit_area(shape)))
    template = _template(shape, center, radius)
    drift = _centers(template[None])[0] - center if template.any() else np.zeros(2)
    template = _template(shape, center - drift, radius)
    union = (template | mask).sum()
    return float((template & mask).sum() / union) if union else 0.0


def _template(shape: str, center: np.ndarray, radius: float) -> np.ndarray:
    canvas = np.zeros((HEIGHT, WIDTH, 1), np.float32)
    return paint(canvas, shape, center.astype(np.float32) + 0.5, radius, np.ones(1, np.float32))[..., 0] > 0.5


def _unit_area(shape: str) -> float:
    return float(_template(shape, np.array([WIDTH / 2, HEIGHT / 2]), 20.0).sum()) / 400
