"""The order of samples: a permutation per epoch, a function of its arguments, the same on every world
size.
"""

from __future__ import annotations

import numpy as np
from cogvideox.data.order import OrderedSamples, SampleOrder, epoch_order, hash_each, hash_words, uniform
from hypothesis import given
from hypothesis import strategies as st

ids_of_samples = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=40, unique=True).map(
    lambda ids: np.array(ids, dtype=np.int64)
)


@given(ids_of_samples, st.integers(0, 2**40), st.integers(0, 10**6))
def test_an_epoch_is_a_permutation_that_follows_the_ids(ids: np.ndarray, seed: int, epoch: int) -> None:
    order = epoch_order(ids, seed, epoch)
    assert sorted(order) == list(range(len(ids)))
    shuffled = np.random.default_rng(0).permutation(len(ids))
    assert np.array_equal(ids[order], ids[shuffled][epoch_order(ids[shuffled], seed, epoch)])


def test_known_values() -> None:
    """The order is part of what a resumed run relies on: it must not change between versions."""
    assert epoch_order(np.arange(10, dtype=np.int64), 1234, 0).tolist() == [6, 0, 2, 3, 1, 9, 7, 5, 4, 8]
    assert uniform(1234, 0, 7, "start") == 0.0048968705562284585


def test_places_are_uniform_over_epochs() -> None:
    """Every sample comes at every place equally often: chi squared with 81 degrees of freedom stays below 140
    (p < 1e-4).
    """
    counts = np.zeros((10, 10))
    ids = np.arange(10, dtype=np.int64)
    epochs = 2000
    for epoch in range(epochs):
        counts[np.arange(10), epoch_order(ids, 5, epoch)] += 1
    assert np.sum((counts - epochs / 10) ** 2 / (epochs / 10)) < 140


def test_uniform_is_uniform_and_depends_on_everything() -> None:
    values = [
        uniform(seed, epoch, sample, what)
        for seed in range(5)
        for epoch in range(5)
        for sample in range(20)
        for what in "ab"
    ]
    assert len(set(values)) == 1000 and min(values) >= 0 and max(values) < 1
    assert abs(np.mean(values) - 0.5) < 0.05


@given(ids_of_samples, st.integers(0, 100))
def test_the_stream_is_all_epochs_in_a_row(ids: np.ndarray, seed: int) -> None:
    stream, count = SampleOrder(OrderedSamples(ids), seed), len(ids)
    for epoch in range(3):
        places = [stream.at(epoch * count + place) for place in range(count)]
        assert [found for found, _ in places] == [epoch] * count
        assert [index for _, index in places] == epoch_order(ids, seed, epoch).tolist()


@given(ids_of_samples, st.integers(0, 500), st.integers(1, 40))
def test_substitutes_go_through_the_same_epoch(ids: np.ndarray, position: int, count: int) -> None:
    stream = SampleOrder(OrderedSamples(ids), 0)
    tried = [stream.at(position, substitute) for substitute in range(len(ids))]
    assert {epoch for epoch, _ in tried} == {position // len(ids)}
    assert sorted(index for _, index in tried) == list(range(len(ids)))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))), st.integers(0, 2**63))
def test_many_hashes_at_once(words: list[str], number: int) -> None:
    assert hash_each("word", words).tolist() == [hash_words("word", word) for word in words]
    several = [f"{number}\0{word}" for word in words]
    assert hash_each("", several).tolist() == [hash_words("", number, word) for word in words]
