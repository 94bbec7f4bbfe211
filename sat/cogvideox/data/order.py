"""The order of samples and the randomness of their augmentation: functions of (seed, epoch, sample id) and
nothing else.

Nothing here keeps a random state, so the same numbers come out on every world size, batch split and after
every resume, and they don't depend on how a version of numpy or torch draws.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SampleIds = NDArray[np.int64]


def hash_words(*words: int | str) -> int:
    """63 bits that depend on every word and on their order."""
    text = "\0".join(str(word) for word in words)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def uniform(seed: int, epoch: int, sample_id: int, what: str) -> float:
    """A number in [0, 1) for one use (`what`) in one sample."""
    return hash_words("uniform", seed, epoch, sample_id, what) / 2**63


def epoch_order(sample_ids: SampleIds, seed: int, epoch: int) -> NDArray[np.int64]:
    """A shuffled order, int64 [number of samples]: the samples sorted by a hash of (seed, epoch, sample id).

    The mixing is the finaliser of splitmix64 (Steele, Lea, Flood 2014), a bijection: distinct ids never tie.
    """
    with np.errstate(over="ignore"):
        keys = sample_ids.astype(np.uint64) ^ np.uint64(hash_words("order", seed, epoch))
        keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        keys = keys ^ (keys >> np.uint64(31))
    return np.argsort(keys, kind="stable")


class SampleStream:
    """All epochs' orders one after the other: an endless sequence in which every epoch holds every sample
    once.

    Position p lies in epoch p // n at place p % n. A global batch is a range of positions, so one may
    straddle two epochs, and nothing is ever left over; with fewer samples than the batch has rows a batch
    holds several epochs.
    """

    def __init__(self, sample_ids: SampleIds, seed: int, shuffle: bool = True) -> None:
        assert len(sample_ids) > 0, "a stream needs samples"
        self._ids = sample_ids
        self._seed = seed
        self._shuffle = shuffle
        self._order = lru_cache(maxsize=3)(self._compute_order)

    def _compute_order(self, epoch: int) -> NDArray[np.int64]:
        return epoch_order(self._ids, self._seed, epoch) if self._shuffle else np.arange(len(self._ids))

    def at(self, position: int, substitute: int = 0) -> tuple[int, int]:
        """(epoch, index of the sample) at a position.

        `substitute` = k > 0 gives the k-th sample after it in the same epoch's order (going round at its
        end): what takes the place of files that can't be decoded. It is the same sample on every world size.
        """
        epoch, place = divmod(position, len(self._ids))
        order = self._order(epoch)
        return epoch, int(order[(place + substitute) % len(self._ids)])
