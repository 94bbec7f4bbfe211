"""Batches of many shapes: every sample in turn, the same on every number of processes, and after every resume."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from cogvideox.buckets import Buckets, generate
from cogvideox.data.bucket_plan import BucketPlan
from cogvideox.data.order import Choices, OrderedSamples, SampleOrder, hash_words
from cogvideox.data.plans import (
    BatchPlan,
    BatchShare,
    StreamPosition,
    count_batches,
    evaluation_plans,
    starting_counts,
    training_plans,
)
from cogvideox.geometry import Geometry
from hypothesis import assume, given, settings
from hypothesis import strategies as st

# Twelve rows of a step as processes x micro batch x accumulation.
SPLITS = [(1, 12, 1), (12, 1, 1), (3, 2, 2), (2, 2, 3), (4, 3, 1), (1, 1, 12), (2, 6, 1)]
Entry = tuple[int, int, int]  # bucket, visit, sample


@st.composite
def sample_sets(draw: st.DrawFn) -> OrderedSamples:
    """One to four buckets, some of them empty, with or without repeats and drawn buckets."""
    count = draw(st.integers(1, 30))
    num_buckets = draw(st.integers(1, 4))
    ids = np.array(draw(st.lists(st.integers(0, 2**63 - 1), min_size=count, max_size=count, unique=True)))
    several = st.lists(st.integers(0, num_buckets - 1), min_size=count, max_size=count)
    buckets = np.array(draw(several), dtype=np.int64) if num_buckets > 1 else None
    choices = None
    if num_buckets > 1 and draw(st.booleans()):
        rows = st.lists(st.sets(st.integers(0, num_buckets - 1), min_size=1), min_size=1, max_size=4)
        table = tuple(tuple(sorted(row)) for row in draw(rows))
        of = st.lists(st.integers(0, len(table) - 1), min_size=count, max_size=count)
        choices = Choices(np.array(draw(of), dtype=np.int64), table)
    sources, repeats = None, ()
    if draw(st.booleans()):
        sources = np.array(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)), dtype=np.int64)
        repeats = tuple(draw(st.lists(st.sampled_from([0.5, 1.0, 1.7, 3.0]), min_size=2, max_size=2)))
    return OrderedSamples(ids, buckets, choices, sources, repeats, num_buckets)


def names_of(samples: OrderedSamples) -> list[str]:
    return [f"bucket {number}" for number in range(samples.num_buckets)]


def steps_of(
    samples: OrderedSamples, split: tuple[int, int, int], count: int, start: StreamPosition | None = None
) -> list[tuple[Counter[Entry], StreamPosition, list[int]]]:
    """Of each global step: what all processes' rows hold, where it ends, and the rows' positions."""
    world_size, micro, accumulation = split
    order = SampleOrder(samples, seed=3)
    names, start = names_of(samples), start or StreamPosition()
    shares = [BatchShare(rank, world_size, accumulation) for rank in range(world_size)]
    plans = [training_plans(order, names, [micro] * len(names), share, 3, start) for share in shares]
    steps = []
    for _ in range(count):
        mine: list[list[BatchPlan]] = [list(islice(each, accumulation)) for each in plans]
        flat = [plan for each in mine for plan in each]
        assert len({plan.bucket for plan in flat}) == 1, "nobody waits for another shape"
        rows = Counter((plan.bucket, *order.at(place, bucket=plan.bucket)) for plan in flat for place in plan.places)
        (after,) = {str(each[-1].after): each[-1].after for each in mine}.values()
        steps.append((rows, after, sorted(position for plan in flat for position in plan.positions)))
    return steps


@settings(deadline=None, max_examples=40)
@given(sample_sets(), st.sampled_from(SPLITS), st.integers(0, 6))
def test_a_step_is_the_same_for_every_split_and_after_every_resume(
    samples: OrderedSamples, split: tuple[int, int, int], resumed_at: int
) -> None:
    whole = steps_of(samples, SPLITS[0], 9)
    start = whole[resumed_at - 1][1] if resumed_at else None
    assert steps_of(samples, split, 9 - resumed_at, start) == whole[resumed_at:]
    for number, (rows, after, positions) in enumerate(whole):
        assert rows.total() == 12 and after.total == 12 * (number + 1) == sum(after.taken.values())
        assert positions == list(range(12 * number, 12 * (number + 1)))


@settings(deadline=None, max_examples=40)
@given(sample_sets(), st.integers(1, 4))
def test_every_epoch_holds_every_sample_as_often_as_its_source_says(samples: OrderedSamples, epochs: int) -> None:
    order = SampleOrder(samples, seed=5)
    seen: Counter[int] = Counter()
    visits: set[tuple[int, int]] = set()
    per_epoch = [
        max(1, round(int(np.sum(samples.sources == source)) * repeats)) if np.any(samples.sources == source) else 0
        for source, repeats in enumerate(samples.repeats)
    ] or [len(samples)]
    for number in range(epochs):
        epoch = order._epoch(number)
        assert len(epoch.indices) == sum(per_epoch)
        for bucket in range(samples.num_buckets):
            for entry in range(epoch.starts[bucket], epoch.starts[bucket + 1]):
                index = int(epoch.indices[entry])
                seen[index] += 1
                visits.add((index, int(epoch.visits[entry])))
                if samples.choices is not None:
                    assert bucket in samples.choices.table[samples.choices.rows[index]], (
                        "a bucket that the sample may have"
                    )
                elif samples.buckets is not None:
                    assert samples.buckets[index] == bucket
    assert len(visits) == seen.total(), "no visit twice: the noise of each is new"
    for source, total in enumerate(per_epoch):
        members = range(len(samples)) if samples.sources is None else np.flatnonzero(samples.sources == source).tolist()
        counts = [seen[index] for index in members]
        assert sum(counts) == total * epochs and (not counts or max(counts) - min(counts) <= 1)


@settings(deadline=None, max_examples=40)
@given(sample_sets(), st.integers(1, 12))
def test_no_bucket_runs_ahead(samples: OrderedSamples, size: int) -> None:
    """Counted in epochs, the last batch of each began before the next one of any other ends, wherever a run stops."""
    # Otherwise a bucket may have no sample in an epoch, and waits for the next one.
    assume(samples.choices is None and all(each == int(each) for each in samples.repeats))
    order = SampleOrder(samples, seed=3)
    names = names_of(samples)
    plans = training_plans(order, names, [size] * len(names), BatchShare(), 3, StreamPosition())
    for plan in islice(plans, 60):
        taken = {bucket: plan.after.taken[names[bucket]] for bucket in order.used}
        before = {bucket: order.time(max(0, each - size), bucket) for bucket, each in taken.items()}
        after = {bucket: order.time(each + size, bucket) for bucket, each in taken.items()}
        assert max(before.values()) <= min(after.values()) + 1e-9


def splitmix(word: int) -> int:
    """The finaliser of splitmix64, in whole numbers."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word = (word ^ (word >> shift)) * factor % 2**64
    return word ^ (word >> 31)


SIZES = generate(Geometry(patch_size=(2, 2, 2)), [9, 17], [1.0, 1.5], pixels=480 * 720, at_least=256 * 384, step=64)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.integers(240, 900), st.integers(240, 900), st.integers(9, 30)), min_size=4, max_size=20),
    st.sampled_from(["size", "frames", "both"]),
    st.sampled_from([None, 1, 3]),
    st.integers(0, 2**31),
)
def test_drawn_buckets_depend_on_seed_visit_and_sample_alone(
    clips: list[tuple[int, int, int]], vary: str, views: int | None, seed: int
) -> None:
    """Of a range of sizes and frames: what each visit gets, computed one by one, however the clips are shared out."""
    buckets = Buckets(SIZES, vary=vary)
    choices = [buckets.choices((height, width), frames) for height, width, frames in clips]
    plan = BucketPlan.of_choices(choices, np.arange(len(choices)))
    ids = np.array([hash_words("clip", number) for number in range(len(clips))], np.int64)
    samples = OrderedSamples(ids, plan.numbers, plan.choices, num_buckets=len(plan.shapes), views=views)
    names = [str(shape) for shape in plan.shapes]
    found = []
    for world_size, accumulation in ((1, 4), (2, 2), (4, 1)):
        order = SampleOrder(samples, seed)
        shares = [BatchShare(rank, world_size, accumulation) for rank in range(world_size)]
        plans = [training_plans(order, names, [1] * len(names), share, seed, StreamPosition()) for share in shares]
        steps = []
        for _ in range(12):
            rows = [each for of_process in plans for each in islice(of_process, accumulation)]
            assert len({(row.bucket, len(row.places)) for row in rows}) == 1, "equal work in every micro batch"
            entries = Counter((row.bucket, *order.at(place, bucket=row.bucket)) for row in rows for place in row.places)
            steps.append(entries)
        found.append(steps)
    assert found[0] == found[1] == found[2]
    for bucket, visit, index in sum(found[0], Counter()):
        shape = plan.shapes[bucket]
        assert shape in choices[index]
        seen = visit if views is None else visit % views
        word = splitmix(int(ids[index]) ^ splitmix(seen + 1) ^ hash_words("bucket", seed))
        may = sorted(choices[index])
        assert shape == may[word % len(may)]


def test_an_order_of_one_bucket_is_that_of_earlier_versions() -> None:
    """Runs go on where they were saved: the values of a stream without buckets."""
    plain = SampleOrder(OrderedSamples(np.arange(10)), 1234)
    assert [plain.at(place) for place in range(10)] == [(0, each) for each in [6, 0, 2, 3, 1, 9, 7, 5, 4, 8]]
    once = SampleOrder(OrderedSamples(np.arange(10), sources=np.arange(10) % 2, repeats=(1.0, 1.0)), 1234)
    assert [once.at(place) for place in range(30)] == [plain.at(place) for place in range(30)]


def test_larger_batches_for_smaller_buckets() -> None:
    order = SampleOrder(OrderedSamples(np.arange(12), np.array([0, 0, 0, 0, *[1] * 8]), num_buckets=2), 0)
    plans = training_plans(order, ["large", "small"], [1, 4], BatchShare(1, 2), 0, StreamPosition())
    first = list(islice(plans, 12))
    assert {(plan.bucket, len(plan.places)) for plan in first} == {(0, 1), (1, 4)}
    assert first[-1].after.total == sum(first[-1].after.taken.values())


def test_where_a_run_goes_on_whose_buckets_are_others() -> None:
    order = SampleOrder(OrderedSamples(np.arange(12), np.array([0] * 3 + [1] * 9), num_buckets=2), 0)
    assert starting_counts(order, ["a", "b"], StreamPosition(24, {"a": 6, "b": 18})) == [6, 18]
    assert starting_counts(order, ["a", "b"], StreamPosition(24, {"c": 24})) == [6, 18], "their share"
    assert starting_counts(order, ["a", "b"], StreamPosition(24)) == [6, 18], "saved before there were buckets"
    one = SampleOrder(OrderedSamples(np.arange(3)), 0)
    assert starting_counts(one, ["a"], StreamPosition(24, {"c": 3, "b": 21})) == [24]


@pytest.mark.parametrize(("world_size", "micro"), [(1, 1), (2, 1), (3, 2), (1, 8)])
def test_a_pass_counts_every_sample_once(world_size: int, micro: int) -> None:
    samples = OrderedSamples(np.arange(7), np.array([0, 2, 2, 0, 2, 2, 2]), num_buckets=3)
    order = SampleOrder(samples, 0, shuffle=False)
    passes = [list(evaluation_plans(order, micro, BatchShare(rank, world_size))) for rank in range(world_size)]
    assert {len(each) for each in passes} == {count_batches(order, micro, world_size)}
    assert all(len({plan.bucket for plan in plans}) == 1 for plans in zip(*passes, strict=True))
    rows = [
        (order.at(place, bucket=plan.bucket)[1], position)
        for plans in passes
        for plan in plans
        for place, position, counts in zip(plan.places, plan.positions, plan.counted, strict=True)
        if counts
    ]
    assert sorted(index for index, _ in rows) == list(range(7))
    assert sorted(position for _, position in rows) == list(range(7)), "timesteps are spread over positions"
