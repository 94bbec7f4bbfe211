"""Clips that show nearly the same, found by small hashes of a few of their frames.

Letters: n clips, k pictures of each, w bytes of a hash, p pairs, c = 3 colours.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

# Of 256 bits. Encoding and scaling a clip again changes up to about ten; two clips of one place differ by dozens.
MOST_BITS = 16
# Of 255, over squeezed frames: what tells flat pictures apart, whose hashes say little.
_MOST_MEAN, _MOST_CELL = 6, 40
_AT_A_TIME = 100_000  # pairs whose colours are compared, about 1 kB each
_CANDIDATES = 2_000_000  # pairs whose hashes are compared, about 100 bytes each

Pairs = NDArray[np.int64]  # [p, 2], the lower number first


def near_duplicates(hashes: NDArray[np.uint8], colours: NDArray[np.uint8]) -> list[list[int]]:
    """Groups of at least two clips; the first of a group is the one that the others are nearly the same as.

    Args:
        hashes: uint8 [n, k, 8], n at least 1, see Pictures.
        colours: uint8 [n, k, 8, 8, c].
    """
    count = len(hashes)
    assert count, "nothing to compare"
    hashes, colours = hashes.reshape(count, -1), colours.reshape(count, -1)
    # What is the same to the byte counts once in the search: thousands of black clips would be millions of pairs.
    copies: dict[bytes, list[int]] = {}
    for clip in range(count):
        copies.setdefault(blake2b(hashes[clip].tobytes() + colours[clip].tobytes()).digest(), []).append(clip)
    alike = list(copies.values())
    firsts = np.array([each[0] for each in alike])
    near = _near(hashes[firsts], colours[firsts])
    groups, taken = [], set[int]()
    for one, clips in enumerate(alike):
        if one not in taken:
            others = [other for other in near.get(one, ()) if other not in taken]
            taken.update(others)
            if members := sorted([*clips[1:], *(clip for other in others for clip in alike[other])]):
                groups.append([clips[0], *members])
    return groups


def _near(hashes: NDArray[np.uint8], flat: NDArray[np.uint8]) -> dict[int, list[int]]:
    """The later clips that each one is nearly the same as. hashes: uint8 [n, k w]; flat: uint8 [n, colours]."""
    pairs = close_pairs(hashes, MOST_BITS)
    near: dict[int, list[int]] = {}
    for first in range(0, len(pairs), _AT_A_TIME):
        some = pairs[first : first + _AT_A_TIME]
        differences = np.abs(flat[some[:, 0]].astype(np.int16) - flat[some[:, 1]])
        is_same = (differences.mean(axis=1) <= _MOST_MEAN) & (differences.max(axis=1, initial=0) <= _MOST_CELL)
        for one, other in some[is_same].tolist():
            near.setdefault(one, []).append(other)
    return near


def close_pairs(hashes: NDArray[np.uint8], most_bits: int) -> Pairs:
    """All pairs that differ in at most so many bits, exactly, in ascending order.

    The bits are dealt out to `most_bits` + 2 bands. Two close hashes differ in at most `most_bits` of them, so there
    are two bands in which they agree (pigeonhole). Only pairs that agree in two bands are compared. The time is about
    that of sorting n numbers for each two bands; it is quadratic in clips that agree in two bands and aren't close.

    Args:
        hashes: uint8 [n, w].
        most_bits: at most 8 w - 2; two bands have at most 40 bits (up to 2^24 clips).

    Source: Norouzi, Punjani & Fleet 2012, "Fast Search in Hamming Space with Multi-Index Hashing".
    """
    count, num_bands = len(hashes), most_bits + 2
    words = np.zeros((count, -(-hashes.shape[1] // 8) * 8), np.uint8)
    words[:, : hashes.shape[1]] = hashes
    whole = words.view(np.uint64)
    bands = _bands(hashes, num_bands)
    width = np.uint64(-(-hashes.shape[1] * 8 // num_bands))
    found: NDArray[np.int64] = np.empty(0, np.int64)
    for one, other in combinations(range(num_bands), 2):
        for pairs in _equal_pairs((bands[one] << width) | bands[other]):
            bits = np.bitwise_count(whole[pairs[:, 0]] ^ whole[pairs[:, 1]]).sum(axis=1, dtype=np.int64)
            close = pairs[bits <= most_bits]
            if len(close):  # a close pair agrees in many bands
                close.sort(axis=1)
                found = np.union1d(found, close[:, 0] * count + close[:, 1])
    return np.stack(np.divmod(found, max(1, count)), axis=1)


def _bands(hashes: NDArray[np.uint8], num_bands: int) -> list[NDArray[np.uint64]]:
    """Every num_bands-th bit, as a number: neighbours, which are alike, come into different bands."""
    found: list[NDArray[np.uint64]] = []
    for band in range(num_bands):
        number = np.zeros(len(hashes), np.uint64)
        for bit in range(band, 8 * hashes.shape[1], num_bands):
            number = (number << np.uint64(1)) | ((hashes[:, bit // 8] >> np.uint8(bit % 8)) & np.uint8(1))
        found.append(number)
    return found


def _equal_pairs(keys: NDArray[np.uint64]) -> Iterator[Pairs]:
    """Pairs of places with equal keys, some at a time."""
    places_bits = np.uint64(max(1, len(keys).bit_length()))
    packed = np.sort((keys << places_bits) | np.arange(len(keys), dtype=np.uint64))  # far quicker than argsort
    keys = packed >> places_bits
    is_next = keys[1:] == keys[:-1]
    shared = np.flatnonzero(np.concatenate([is_next, [False]]) | np.concatenate([[False], is_next]))
    if not len(shared):
        return
    keys = keys[shared]
    order = (packed[shared] & ((np.uint64(1) << places_bits) - np.uint64(1))).astype(np.int64)
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    ends = np.repeat(np.append(starts[1:], len(keys)), np.diff(np.append(starts, len(keys))))
    rest = ends - np.arange(len(keys)) - 1  # places with the same key, behind each one
    firsts = np.flatnonzero(rest)
    sums = np.cumsum(rest[firsts])
    begin = 0
    while begin < len(firsts):
        before = int(sums[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(sums, before + _CANDIDATES, side="right")))
        places, counts = firsts[begin:end], rest[firsts[begin:end]]
        steps = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts) + 1
        lower = np.repeat(places, counts)
        yield np.stack([order[lower], order[lower + steps]], axis=1)
        begin = end
