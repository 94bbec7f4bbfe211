"""How much a cache of the data takes, by the cache's own layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cogvideox.caching.layout import views_of
from cogvideox.data.bucket_plan import BucketPlan
from cogvideox.data.manifest import Manifest
from cogvideox.doctor.look import Part
from cogvideox.doctor.subject import Subject
from cogvideox.geometry import Bucket


def entries_of(part: Part, is_held: NDArray[np.bool_], subject: Subject) -> Counter[Bucket]:
    """How many clips a cache stores at each bucket.

    Args:
        is_held: bool [n], which samples are only evaluated on.
    """
    samples, _, plan = part.found.listed
    found: set[tuple[Any, ...]] = set()
    for held in (False, True):
        places = np.flatnonzero(is_held == held)
        found |= set(_entries(samples.select(places), plan.at(places), subject, held))
    return Counter(bucket for *_, bucket, _ in found)


def _entries(samples: Manifest, plan: BucketPlan, subject: Subject, is_held: bool) -> Iterable[tuple[Any, ...]]:
    """(what its content is a function of) of each entry; several samples of one file may share one."""
    varies, args = subject.spec.varies, subject.args
    seed, views = (0, None) if is_held else (args.seed, args.cache_views)
    each = views_of(plan, samples.sample_ids(), seed=seed, views=views, varies=varies, for_evaluation=is_held)
    return [
        (sample.media, sample.image, sample.window, (seed, sample.sample_id) if varies else None, bucket, view)
        for sample, wanted in zip(samples, each, strict=True)
        for bucket, view in wanted
    ]


def sizes(entries: Counter[Bucket], captions: Collection[str], subject: Subject) -> dict[str, Any]:
    """Bytes of these entries, and of the contexts of these captions."""
    layout, width = subject.layout, subject.moment_bytes
    moments = sum(count * layout.num_bytes(bucket, width) for bucket, count in entries.items())
    contexts = len(captions) * subject.context_bytes
    return {
        "clips": sum(entries.values()),
        "captions": len(captions),
        "moments_bytes": moments,
        "contexts_bytes": contexts,
        "bytes": moments + contexts,
    }
