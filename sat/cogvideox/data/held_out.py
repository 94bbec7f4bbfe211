"""Which samples are held out for evaluation. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cogvideox.data.listing import held_out_count
from cogvideox.data.manifest import Manifest
from cogvideox.data.media import Media
from cogvideox.data.order import SampleIds, hash_each
from cogvideox.data.sample import Sample


def held_out(samples: Sequence[Sample], ids: SampleIds, share: float) -> NDArray[np.bool_]:
    """bool [n], whether each sample is held out.

    Chosen by a hash of the sample ids: independent of the seed and of the order of folders. All windows of a file go
    the same way.

    Args:
        samples: of at least two files; ids: int64 [n], theirs.
        share: of the files, rounded, at least one; between 0 and 1, both excluded.

    Raises:
        DataError: see listing.held_out_count.
    """
    _, first, file_of = np.unique(_files(samples), return_index=True, return_inverse=True)
    return np.isin(file_of, first_places(ids[first], held_out_count(len(first), share)))


def first_places(ids: SampleIds, count: int) -> NDArray[np.int64]:
    """The places, ascending, of the ids that are held out before others."""
    ranks = hash_each("held out", map(str, ids.tolist()))
    return np.sort(np.argsort(ranks, kind="stable")[:count])


def _files(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """int64 [n], the same number for samples of the same file."""
    if isinstance(samples, Manifest):
        return samples.file_numbers()
    numbers: dict[Media, int] = {}
    return np.array([numbers.setdefault(sample.media, len(numbers)) for sample in samples], np.int64)
