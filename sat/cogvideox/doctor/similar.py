"""Clips that show nearly the same, found by small hashes of a few of their frames.

Letters: n clips, k pictures of each, c = 3 colours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MOST_CLIPS = 50_000  # every pair is compared
# Of 256 bits. Encoding and scaling a clip again changes up to about ten; two clips of one place differ by dozens.
MOST_BITS = 16
# Of 255, over squeezed frames: what tells flat pictures apart, whose hashes say little.
_MOST_MEAN, _MOST_CELL = 6, 40
_ROWS = 512


def near_duplicates(hashes: NDArray[np.uint8], colours: NDArray[np.uint8]) -> list[list[int]]:
    """Groups of at least two clips; the first of a group is the one that the others are nearly the same as.

    Args:
        hashes: uint8 [n, k, 8], n at least 1, see Pictures.
        colours: uint8 [n, k, 8, 8, c].
    """
    count = len(hashes)
    assert count, "nothing to compare"
    bits = np.unpackbits(hashes.reshape(count, -1), axis=1).astype(np.float32) * 2 - 1
    least = bits.shape[1] - 2 * MOST_BITS  # of the products of two clips' bits
    flat = colours.reshape(count, -1).astype(np.int16)
    groups, is_taken = [], np.zeros(count, bool)
    for begin in range(0, count, _ROWS):
        products = bits[begin : begin + _ROWS] @ bits[begin:].T
        hits = products >= least
        for row in np.flatnonzero(hits.sum(axis=1) > 1):
            clip = begin + int(row)
            if is_taken[clip]:
                continue
            others = np.flatnonzero(hits[row]) + begin
            others = others[(others > clip) & ~is_taken[others]]
            differences = np.abs(flat[others] - flat[clip])
            is_same = (differences.mean(axis=1) <= _MOST_MEAN) & (differences.max(axis=1, initial=0) <= _MOST_CELL)
            if is_same.any():
                members = others[is_same]
                is_taken[members] = True
                groups.append([clip, *members.tolist()])
    return groups
