"""Where a video cuts from one scene to another: hard cuts, cross-fades, and fades through black or white.

The frames are looked at as pictures of 24 x 24 pixels. Three questions are asked of them:

- hard cut: do two neighbours differ, with any shift of the camera taken out, and by twice as much as frames usually do
  just before and just after? A shift takes out pans; the comparison takes out everything else that moves fast. Where a
  picture is back within three frames, it was a flash.
- cross-fade: are the frames between two that have little in common mixtures of them, and no shift of the camera
  explains it? What moves is no such mixture. The scenes themselves must move little meanwhile.
- fade: is the picture nothing but black, or white, between two others?

It errs towards cuts: one too many costs a stretch of the clip, one too few is trained on.

Letters: n frames, c = 3 colours (RGB); differences are root mean squares in grey levels, 0..255.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERSION = 1  # of the answers: another one makes remembered cuts void
SIDE = 24
_LEAST_DIFFERENCE = 16.0
_STANDS_OUT = 2.0
_NEIGHBOURS = 4
_FLASH_FRAMES = 3
_FLASH_SHARE = 0.6  # of the difference to the flash: less, and the picture is back
_LARGEST_SHIFT = 8
_HALF_FADES = (3, 4, 6, 8, 12, 16, 24, 32, 48)  # frames from the middle to an end of a cross-fade
_LEAST_FADE_DIFFERENCE = 20.0
_MOST_CORRELATION = 0.45
_MIXTURE_SHARE = 0.35  # of the contrast of the fainter end
_SHIFT_SHARE = 0.7  # of the difference between the ends must remain when a shift is taken out
_FLAT = 4.0  # standard deviation of a picture that shows nothing
_DARK, _BRIGHT = 24.0, 231.0
_BLOCK = 512  # frames at a time: bounds the memory

Pictures = NDArray[np.uint8]  # [n, SIDE, SIDE, c]
Values = NDArray[np.float64]


def find_cuts(frames: Pictures) -> tuple[int, ...]:
    """The first frame of every scene but the first one, ascending, each in 1..n-1.

    Args:
        frames: uint8 [n, 24, 24, 3], all frames of a video, made that small by averaging.
    """
    hard = _hard_cuts(frames)
    sure = {*hard, *(cut for cut in _fades(frames) if not _is_near(cut, hard, _NEIGHBOURS))}
    # Half of a fade through black mixes a picture with black.
    crossed = (cut for cut, half in _cross_fades(frames) if not _is_near(cut, sure, half + _NEIGHBOURS))
    return tuple(sorted({*sure, *crossed}))


def _is_near(cut: int, others: Iterable[int], reach: int) -> bool:
    return any(abs(cut - other) <= reach for other in others)


def _hard_cuts(frames: Pictures) -> list[int]:
    steps = np.concatenate([[0.0], _differences(frames)])  # [i]: from frame i - 1 to i
    for begin in range(0, len(steps), _BLOCK):  # the shift only where it may matter
        some = begin + np.nonzero(steps[begin : begin + _BLOCK] >= _LEAST_DIFFERENCE)[0]
        steps[some] = _apart(frames[some - 1], frames[some])
    cuts = []
    for i in np.nonzero(steps >= _LEAST_DIFFERENCE)[0]:
        before, after = steps[max(1, i - _NEIGHBOURS) : i], steps[i + 1 : i + 1 + _NEIGHBOURS]
        usual = max(float(np.median(side)) if len(side) else 0.0 for side in (before, after))
        if steps[i] >= _STANDS_OUT * usual and not _is_flash(frames, int(i), float(steps[i])):
            cuts.append(int(i))
    return cuts


def _is_flash(frames: Pictures, cut: int, difference: float) -> bool:
    """Whether what was seen before `cut` is seen again soon after it, or what is seen after it was seen before."""
    later = frames[cut + 1 : cut + 1 + _FLASH_FRAMES]
    earlier = frames[max(0, cut - 1 - _FLASH_FRAMES) : cut - 1]
    others = np.concatenate([later, earlier])
    mine = np.concatenate(
        [np.repeat(frames[cut - 1 : cut], len(later), 0), np.repeat(frames[cut : cut + 1], len(earlier), 0)]
    )
    return bool(len(others)) and float(_apart(mine, others).min()) < _FLASH_SHARE * difference


def _fades(frames: Pictures) -> list[int]:
    """The middles of black or white runs between two pictures."""
    pixels = frames.reshape(len(frames), SIDE * SIDE, 3)
    flat = np.empty(len(frames), bool)
    for begin in range(0, len(frames), _BLOCK):
        some = pixels[begin : begin + _BLOCK].astype(np.float32)
        light = some.mean(axis=(1, 2))
        flat[begin : begin + _BLOCK] = (some.std(axis=1).max(axis=1) < _FLAT) & ((light < _DARK) | (light > _BRIGHT))
    edges = np.nonzero(np.diff(flat.astype(np.int8)))[0] + 1
    cuts = []
    for first, after in itertools.pairwise(edges):
        if not flat[first]:
            continue
        before = _differences(frames[max(0, first - 2) : first + 1])  # the last one is the step into the run
        is_sudden = after - first <= _FLASH_FRAMES and bool(np.all(before[-1] >= _STANDS_OUT * before[:-1]))
        change = float(_apart(frames[first - 1 : first], frames[after : after + 1])[0])
        if not (is_sudden and change < _FLASH_SHARE * before[-1]):
            cuts.append(int(first + after) // 2)
    return cuts


def _cross_fades(frames: Pictures) -> list[tuple[int, int]]:
    """The middles of stretches in which every frame mixes the two ends, and the frames from there to an end."""
    grey = frames.astype(np.float32).mean(axis=3)
    grey -= grey.mean(axis=(1, 2), keepdims=True)
    best = np.zeros(len(frames))  # the largest difference that is crossed with this frame in the middle
    halves = np.zeros(len(frames), np.int64)
    for half in _HALF_FADES:
        for begin in range(half, len(frames) - half, _BLOCK):
            middle = np.arange(begin, min(begin + _BLOCK, len(frames) - half))
            crossed = _crossed(frames, grey, middle, half)
            halves[middle] = np.where(crossed > best[middle], half, halves[middle])
            best[middle] = np.maximum(best[middle], crossed)
    inside = np.nonzero(best)[0]
    groups = np.split(inside, np.nonzero(np.diff(inside) > _NEIGHBOURS)[0] + 1) if len(inside) else []
    tops = [int(group[np.argmax(best[group])]) for group in groups]
    return [(top, int(halves[top])) for top in tops]


def _crossed(frames: Pictures, grey: NDArray[np.float32], middle: NDArray[np.int64], half: int) -> Values:
    """How different the frames at `middle` - half and `middle` + half are; 0 where those between don't mix them.

    grey: float32 [n, SIDE, SIDE], brightness without its mean, so that a change of light is no mixture.
    """
    first, last = grey[middle - half], grey[middle + half]
    one, two = _rms(first, 0 * first), _rms(last, 0 * last)
    fainter, crossed = np.minimum(one, two), _rms(last, first)
    alike = (first * last).mean(axis=(1, 2)) / np.maximum(one * two, 1e-9)
    left = np.nonzero((crossed >= _LEAST_FADE_DIFFERENCE) & (fainter > _FLAT) & (alike < _MOST_CORRELATION))[0]
    for shift in (-half // 2, 0, half // 2):
        share = (half + shift) / (2 * half)
        rest = _rms(grey[middle[left] + shift], (1 - share) * first[left] + share * last[left])
        left = left[rest <= _MIXTURE_SHARE * fainter[left]]
    ends = frames[middle[left] - half], frames[middle[left] + half]
    left = left[_apart(*ends) >= _SHIFT_SHARE * _rms(*ends)]
    result = np.zeros(len(middle))
    result[left] = crossed[left]
    return result


def _differences(frames: Pictures) -> Values:
    """[n - 1], between neighbours, as they are."""
    found = np.empty(max(len(frames) - 1, 0))
    for begin in range(0, len(found), _BLOCK):
        some = frames[begin : begin + _BLOCK + 1]
        found[begin : begin + _BLOCK] = _rms(some[1:], some[:-1])
    return found


def _apart(first: Any, second: Any) -> Values:
    """[k], between pairs of pictures, at the shift that makes it smallest."""
    one, two = (each.astype(np.float64).transpose(0, 3, 1, 2) - 128 for each in (first, second))
    ones = np.ones((SIDE, SIDE))
    product = _correlate(one, two).sum(axis=1)
    squares = _correlate((one**2).sum(axis=1), ones) + _correlate(ones, (two**2).sum(axis=1))
    shared = np.rint(_correlate(ones, ones))
    shifts = np.r_[-_LARGEST_SHIFT : _LARGEST_SHIFT + 1]
    mean = ((squares - 2 * product) / (3 * np.maximum(shared, 1)))[:, shifts[:, None], shifts]
    return np.sqrt(np.maximum(mean.min(axis=(1, 2)), 0.0)) if len(mean) else np.empty(0)


def _correlate(one: Values, two: Values) -> Values:
    """The sum of products over the pixels that two pictures share, at every shift (index modulo 2 SIDE)."""
    size = (2 * SIDE, 2 * SIDE)
    return np.fft.irfft2(np.fft.rfft2(one, size) * np.conj(np.fft.rfft2(two, size)), size)


def _rms(first: Any, second: Any) -> Values:
    """[k], between pairs of pictures or of grey ones, as they are."""
    difference = np.asarray(first, np.float32) - np.asarray(second, np.float32)
    return np.sqrt(np.mean(difference**2, axis=tuple(range(1, difference.ndim)), dtype=np.float64))
