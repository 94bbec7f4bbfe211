"""The randomness of a step depends on (seed, epoch, sample id) only."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from cogvideox.data.order import OrderedSamples, SampleOrder
from cogvideox.data.plans import BatchShare, StreamPosition, training_plans
from cogvideox.diffusion.timesteps import StepRandomness, draw, gaussian, stratified_timestep, uniform_timestep
from hypothesis import given, settings
from hypothesis import strategies as st

SHAPE = (3, 4, 5, 6)
LARGEST_GAP = 2.62  # of the golden-ratio sequence: 1 + phi times the mean gap
# Of seed 1, epoch 2, samples 3 and 2^62, as first released.
TIMESTEPS, KEPT = [682, 14], [True, False]
NOISE = [0.226544, 0.178056]
POSTERIOR = [1.745788, 1.274023]


def join(parts: list[StepRandomness]) -> StepRandomness:
    names = ("timestep", "noise", "posterior_noise", "keep_caption")
    return StepRandomness(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def same(left: StepRandomness, right: StepRandomness) -> bool:
    names = ("timestep", "noise", "posterior_noise", "keep_caption")
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in names)


@pytest.mark.parametrize("split", [[8], [4, 4], [1] * 8, [5, 2, 1]])
@pytest.mark.parametrize("stratified", [False, True])
def test_any_split_of_a_batch_draws_the_same(split: list[int], stratified: bool) -> None:
    ids = [2**62 + 17 * i for i in range(8)]
    positions = list(range(40, 48))
    whole = draw(1, 2, ids, SHAPE, 1000, caption_dropout=0.5, positions=positions if stratified else None)
    parts, start = [], 0
    for size in split:
        here = slice(start, start + size)
        places = positions[here] if stratified else None
        parts.append(draw(1, 2, ids[here], SHAPE, 1000, caption_dropout=0.5, positions=places))
        start += size
    assert same(whole, join(parts))


def test_torch_seed_has_no_part_in_it() -> None:
    torch.manual_seed(0)
    first = draw(1, 2, [3, 4], SHAPE, 1000)
    torch.manual_seed(1)
    assert same(first, draw(1, 2, [3, 4], SHAPE, 1000))


@pytest.mark.parametrize("other", [(2, 0, 5), (1, 1, 5), (1, 0, 6)])
def test_seed_epoch_and_sample_each_change_everything(other: tuple[int, int, int]) -> None:
    one = draw(1, 0, [5], SHAPE, 10**9)
    two = draw(other[0], other[1], [other[2]], SHAPE, 10**9)
    assert one.timestep != two.timestep
    for name in ("noise", "posterior_noise"):
        correlation = np.corrcoef(getattr(one, name).flatten(), getattr(two, name).flatten())[0, 1]
        assert abs(correlation) < 0.25  # 360 values: five standard deviations
    assert not torch.equal(one.noise, one.posterior_noise)


def test_a_batch_over_two_epochs_takes_one_epoch_per_sample() -> None:
    mixed = draw(1, [3, 4], [7, 7], SHAPE, 1000)
    assert same(mixed, join([draw(1, 3, [7], SHAPE, 1000), draw(1, 4, [7], SHAPE, 1000)]))
    assert not torch.equal(mixed.noise[0], mixed.noise[1])


def test_shapes_and_types() -> None:
    drawn = draw(0, 0, [1, 2, 3], SHAPE, 1000)
    assert drawn.timestep.dtype == torch.int64 and drawn.keep_caption.dtype == torch.bool
    assert drawn.noise.shape == drawn.posterior_noise.shape == (3, *SHAPE)
    assert drawn.noise.dtype == torch.float32
    assert drawn.to("cpu") is drawn


def test_timesteps_are_uniform() -> None:
    steps = np.array([uniform_timestep(1000, 0, 0, sample) for sample in range(20000)])
    assert steps.min() >= 0 and steps.max() <= 999
    counts = np.histogram(steps, bins=10, range=(0, 1000))[0]
    assert abs(counts - 2000).max() < 5 * (2000 * 0.9) ** 0.5


def test_noise_is_standard_normal() -> None:
    noise = gaussian((200, 500), "any")
    assert abs(noise.mean()) < 5 / 100000**0.5
    assert noise.std() == pytest.approx(1.0, abs=0.01)


def test_caption_dropout_has_its_probability() -> None:
    assert draw(0, 0, range(50), (1,), 1000, caption_dropout=0.0).keep_caption.all()
    assert not draw(0, 0, range(50), (1,), 1000, caption_dropout=1.0).keep_caption.any()
    dropped = ~draw(0, 0, range(4000), (1,), 1000, caption_dropout=0.1).keep_caption
    assert dropped.float().mean() == pytest.approx(0.1, abs=5 * (0.09 / 4000) ** 0.5)


def test_values_are_those_of_every_run_before() -> None:
    """A resumed run has to meet the noise that it would have met: the draws are part of the checkpoints' format."""
    drawn = draw(1, 2, [3, 2**62], SHAPE, 1000, caption_dropout=0.5)
    assert drawn.timestep.tolist() == TIMESTEPS and drawn.keep_caption.tolist() == KEPT
    assert drawn.noise[:, 0, 0, 0, 0].tolist() == pytest.approx(NOISE, abs=1e-6)
    assert drawn.posterior_noise[:, 0, 0, 0, 0].tolist() == pytest.approx(POSTERIOR, abs=1e-6)


def test_images_and_padding_change_no_other_draw() -> None:
    plain = draw(1, 2, [3, 4], SHAPE, 1000, caption_dropout=0.5)
    drawn = draw(1, 2, [3, 4], SHAPE, 1000, caption_dropout=0.5, padded_frames=4, image_size=(8, 10), image_dropout=0.5)
    assert plain.image is None and drawn.image is not None
    assert torch.equal(plain.timestep, drawn.timestep) and torch.equal(plain.keep_caption, drawn.keep_caption)
    assert torch.equal(plain.posterior_noise, drawn.posterior_noise)
    assert drawn.noise.shape == (2, 4, *SHAPE[1:])
    assert drawn.image.pixel_noise.shape == (2, 3, 8, 10) and drawn.image.sigma.dtype == torch.float32
    assert drawn.image.posterior_noise.shape == (2, 1, *SHAPE[1:]) and drawn.image.keep.dtype == torch.bool


def test_image_draws_depend_on_the_sample_only() -> None:
    ids = [7, 8, 9, 10]
    whole = draw(1, 2, ids, SHAPE, 1000, image_size=(8, 10), image_dropout=0.5).image
    for row, sample in enumerate(ids):
        alone = draw(1, 2, [sample], SHAPE, 1000, image_size=(8, 10), image_dropout=0.5).image
        for name in ("sigma", "pixel_noise", "posterior_noise", "keep"):
            assert torch.equal(getattr(whole, name)[row : row + 1], getattr(alone, name)), name
    other = draw(1, 3, [7], SHAPE, 1000, image_size=(8, 10)).image
    assert whole is not None and other is not None
    assert other.sigma[0] != whole.sigma[0] and not torch.equal(other.pixel_noise[0], whole.pixel_noise[0])


def test_image_noise_is_log_normal_and_images_are_dropped_apart_from_captions() -> None:
    drawn = draw(0, 0, range(4000), (1,), 1000, caption_dropout=0.5, image_size=(1, 1), image_dropout=0.5)
    assert drawn.image is not None
    logarithm = drawn.image.sigma.log()
    assert logarithm.mean() == pytest.approx(-3.0, abs=5 * 0.5 / 4000**0.5)
    assert logarithm.std() == pytest.approx(0.5, abs=5 * 0.5 / 8000**0.5)
    assert drawn.image.keep.float().mean() == pytest.approx(0.5, abs=5 * (0.25 / 4000) ** 0.5)
    both = (drawn.image.keep & drawn.keep_caption).float().mean()
    assert both == pytest.approx(0.25, abs=5 * (0.1875 / 4000) ** 0.5)


@pytest.mark.parametrize("batch", [2, 3, 7, 8, 16, 100])
@pytest.mark.parametrize("start", [0, 1234567])
def test_stratified_timesteps_spread_over_any_global_batch(batch: int, start: int) -> None:
    steps = sorted(stratified_timestep(1000, 9, position) for position in range(start, start + batch))
    gaps = [after - before for before, after in zip(steps, [*steps[1:], steps[0] + 1000], strict=True)]
    assert max(gaps) <= LARGEST_GAP * 1000 / batch + 1


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.integers(0, 10**6))
def test_stratified_timesteps_spread_over_any_world_size(world: int, micro: int, accumulation: int, step: int) -> None:
    """Whatever the processes, micro batches and accumulation: an optimizer step has one run of positions."""
    batch = world * micro * accumulation
    order, start = SampleOrder(OrderedSamples(np.arange(7)), seed=0), StreamPosition(step * batch)
    shares = [BatchShare(rank, world, accumulation) for rank in range(world)]
    plans = [training_plans(order, [""], [micro], share, 0, start) for share in shares]
    positions = [place for each in plans for plan in islice(each, accumulation) for place in plan.positions]
    assert sorted(positions) == list(range(step * batch, (step + 1) * batch))
    steps = sorted(stratified_timestep(1000, 9, position) for position in positions)
    gaps = [after - before for before, after in zip(steps, [*steps[1:], steps[0] + 1000], strict=True)]
    assert max(gaps) <= LARGEST_GAP * 1000 / batch + 1


def test_stratified_timesteps_are_uniform_for_one_place_in_the_batch() -> None:
    steps = np.array([stratified_timestep(1000, seed, 5) for seed in range(5000)])
    counts = np.histogram(steps, bins=10, range=(0, 1000))[0]
    assert abs(counts - 500).max() < 5 * (500 * 0.9) ** 0.5


def test_pinned_values_are_the_same_and_all_of_them_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = []

    def pin(value: torch.Tensor) -> torch.Tensor:
        pinned.append(value.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    plain = draw(1, 2, [3], SHAPE, 1000, image_size=(4, 6))
    there = plain.pinned()
    assert same(plain, there) and there.image is not None and plain.image is not None
    fields = ("sigma", "pixel_noise", "posterior_noise", "keep")
    assert all(torch.equal(getattr(plain.image, name), getattr(there.image, name)) for name in fields)
    assert len(pinned) == 8
    assert plain.to("cpu") is plain
