"""Properties of the samplers that hold for every network."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from cogvideox.diffusion.guidance import ConstantGuidance, DynamicGuidance
from cogvideox.diffusion.samplers import DDIMSampler, DPMpp2MSampler, DPMpp2MSDESampler, Sampler
from cogvideox.diffusion.schedule import NoiseSchedule
from cogvideox.diffusion.timesteps import gaussian
from cogvideox.errors import ConfigError
from torch import Tensor

SHAPE = (2, 3, 4, 5, 6)
SAMPLERS = [DDIMSampler, DPMpp2MSampler, DPMpp2MSDESampler]
SPACINGS = ["trailing", "linear_quadratic"]
CONTEXT, NULL = torch.ones(2, 1, 1), torch.zeros(2, 1, 1)


def latent(key: str) -> Tensor:
    return gaussian(SHAPE, key)


def step_noise(step: int) -> Tensor:
    return gaussian(SHAPE, "step", step)


def run(sampler: Sampler, denoise: object, **more: object) -> Tensor:
    return sampler.sample(denoise, latent("start"), NoiseSchedule(), CONTEXT, NULL, step_noise, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_a_perfect_denoiser_gives_the_clean_latent(kind: type[Sampler], spacing: Any, steps: int) -> None:
    clean = latent("clean")
    assert torch.equal(run(kind(steps, spacing=spacing), lambda x, t, c, a: clean), clean)


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_levels_stay_on_the_schedule(kind: type[Sampler], spacing: Any) -> None:
    """With a perfect denoiser the latent at each level is a * clean + sqrt(1 - a^2) * noise of unit variance."""
    clean = latent("clean")
    residues = []

    def denoise(x: Tensor, t: Tensor, context: Tensor, a: Tensor) -> Tensor:
        residues.append(((x - a[0] * clean) / (1 - a[0] ** 2).sqrt()).std())
        return clean

    run(kind(20, spacing=spacing), denoise)
    # The denoiser's level is rounded to the table, so the residue is only nearly of variance 1; 720 values.
    assert torch.stack(residues).sub(1).abs().max() < 0.2


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_samplers_converge_to_the_exact_solution(spacing: Any, shift: float) -> None:
    """Data N(mean, std^2) has a known posterior mean, and the flow takes noise z to mean + std z.

    The table's last level still holds 3 to 5 % noise (a^2 down to 0.9975), and the last step returns the posterior mean
    there: less than (1 - a^2) / (2 std) times 4, the largest |z|, or 0.01. The first-order steps add as much.
    """
    mean, std, noise, schedule = 0.7, 0.5, gaussian((1, 4, 16, 8, 8), "start"), NoiseSchedule(shift_scale=shift)

    def denoise(x: Tensor, t: Tensor, context: Tensor, a: Tensor) -> Tensor:
        level = a[0]
        return mean + level * std**2 / (level**2 * std**2 + 1 - level**2) * (x - level * mean)

    def result(kind: type[Sampler], steps: int) -> Tensor:
        fresh = lambda step: gaussian(noise.shape, "step", step)  # noqa: E731
        return kind(steps, spacing=spacing).sample(denoise, noise, schedule, CONTEXT[:1], NULL[:1], fresh)

    def errors(kind: type[Sampler]) -> list[float]:
        return [float((result(kind, steps) - mean - std * noise).abs().max()) for steps in (10, 40, 160, 1000)]

    first, second = errors(DDIMSampler), errors(DPMpp2MSampler)
    for found in (first, second):
        assert all(fine < max(0.65 * coarse, 0.02) for coarse, fine in itertools.pairwise(found))
        assert found[-1] < 0.02
    assert all(two < one for one, two in zip(first, second, strict=True))
    sde = result(DPMpp2MSDESampler, 1000)  # 4096 values: the standard deviation is known to 1.1 %, the mean to 0.008
    assert float(sde.std()) == pytest.approx(std, rel=0.035) and float(sde.mean()) == pytest.approx(mean, abs=0.025)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_runs_are_repeatable(kind: type[Sampler]) -> None:
    def denoise(x: Tensor, t: Tensor, context: Tensor, a: Tensor) -> Tensor:
        return torch.tanh(x) * a[:, None, None, None, None]

    torch.manual_seed(0)
    first = run(kind(7), denoise)
    torch.manual_seed(1)
    assert torch.equal(first, run(kind(7), denoise))


@pytest.mark.parametrize("kind", [DDIMSampler, DPMpp2MSampler])
def test_deterministic_samplers_never_ask_for_noise(kind: type[Sampler]) -> None:
    result = kind(5).sample(lambda x, t, c, a: x / 2, latent("start"), NoiseSchedule(), CONTEXT, NULL)
    assert result.shape == SHAPE


def test_sde_draws_once_per_step_but_not_at_the_last() -> None:
    drawn = []

    def noise(step: int) -> Tensor:
        drawn.append(step)
        return step_noise(step)

    sampler = DPMpp2MSDESampler(6)
    sampler.sample(lambda x, t, c, a: x / 2, latent("start"), NoiseSchedule(), CONTEXT, NULL, noise)
    assert drawn == [0, 1, 2, 3, 4]
    with pytest.raises(AssertionError, match="needs step_noise"):
        sampler.sample(lambda x, t, c, a: x, latent("start"), NoiseSchedule(), CONTEXT, NULL)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_network_gets_integer_timesteps_and_rounded_levels(spacing: Any) -> None:
    schedule = NoiseSchedule()
    seen = []

    def denoise(x: Tensor, t: Tensor, context: Tensor, a: Tensor) -> Tensor:
        assert t.dtype == torch.int64 and t.shape == a.shape == (len(x),)
        seen.append((int(t[0]), a[0]))
        return x

    linear = 4 if spacing == "linear_quadratic" else None
    run(DDIMSampler(10, spacing=spacing, linear_steps=linear), denoise)
    assert [timestep for timestep, _ in seen] == schedule.sampling(10, spacing, linear).timesteps.tolist()
    assert all(level in schedule.sqrt_alpha_bar for _, level in seen)


def test_guidance_runs_both_branches_in_one_batch() -> None:
    calls = []

    def denoise(x: Tensor, t: Tensor, context: Tensor, a: Tensor) -> Tensor:
        calls.append(len(x))
        return context[:, :, :, None, None] * torch.ones(SHAPE[1:])  # 1 with a caption, 0 without

    guided = run(DDIMSampler(3, ConstantGuidance(6.0)), denoise)
    assert calls == [4, 4, 4] and torch.equal(guided, torch.full(SHAPE, 6.0))
    calls.clear()
    unguided = run(DDIMSampler(3), denoise)
    assert calls == [2, 2, 2] and torch.equal(unguided, torch.ones(SHAPE))


@pytest.mark.parametrize("kind", SAMPLERS)
def test_split_guidance_is_the_same_in_two_smaller_batches(kind: type[Sampler]) -> None:
    """Bit for bit for a denoiser whose result for a sample does not depend on the batch."""
    calls: list[int] = []

    def denoise(x: Tensor, t: Tensor, context: Tensor, a: Tensor) -> Tensor:
        assert len(t) == len(context) == len(a) == len(x)
        calls.append(len(x))
        return torch.tanh(x + context[:, :, :, None, None]) * a[:, None, None, None, None]

    joint, split = (
        run(kind(6, DynamicGuidance(4.0, 2.0, 6, by="step"), guidance_batch=batch), denoise)
        for batch in ("joint", "split")
    )
    assert torch.equal(joint, split)
    assert calls == [2] + [4] * 5 + [2] * 11  # guidance by step starts at 1, where one branch is enough


def test_progress_is_reported_after_each_step() -> None:
    seen: list[int] = []
    run(DDIMSampler(4), lambda x, t, c, a: x, on_step=seen.append)
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", SAMPLERS)
def test_with_steps_carries_everything_else(kind: type[Sampler]) -> None:
    guidance = DynamicGuidance(5.0, 3.0, 50, by="step")
    sampler = kind(50, guidance, "linear_quadratic", 20, "split").with_steps(8)
    assert type(sampler) is kind and isinstance(sampler.guidance, DynamicGuidance)
    assert vars(sampler.guidance) == {"scale": 5.0, "exp": 3.0, "num_steps": 8, "by": "step"}
    rest = {name: value for name, value in vars(sampler).items() if name != "guidance"}
    assert rest == {"num_steps": 8, "spacing": "linear_quadratic", "linear_steps": 3, "guidance_batch": "split"}
    assert kind(50, guidance).with_steps(8).linear_steps is None
    assert kind(50, None, "linear_quadratic", 49).with_steps(2).linear_steps == 1
    constant = ConstantGuidance(3.0)
    assert kind(50, constant).with_steps(8).guidance is constant


def test_guidance_by_step_counts_the_steps_of_its_sampler() -> None:
    sampler = DDIMSampler(25, DynamicGuidance(6.0, 5.0, 50, by="step"))
    assert sampler.guidance is not None and sampler.guidance.scale_at(0, 24) > 6.0
    published = DynamicGuidance(6.0, 5.0, 50)
    assert DDIMSampler(25, published).guidance is published


def test_impossible_samplers_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_steps is 0, must be at least 1"):
        DDIMSampler(0)
    with pytest.raises(ConfigError, match="guidance is a int, must be ConstantGuidance"):
        DDIMSampler(5, guidance=6)
    with pytest.raises(ConfigError, match="num_steps is 1001, must be between 1 and 1000"):
        run(DDIMSampler(1001), lambda x, t, c, a: x)
    with pytest.raises(ConfigError, match="spacing is 'leading', must be trailing or linear_quadratic"):
        DDIMSampler(5, spacing="leading")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="guidance_batch is 'both', must be joint or split"):
        DDIMSampler(5, guidance_batch="both")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="linear_steps is 2, but spacing is trailing: set spacing"):
        DDIMSampler(5, linear_steps=2)
    with pytest.raises(ConfigError, match="linear_steps is 5, must be between 0 and 4"):
        DDIMSampler(5, spacing="linear_quadratic", linear_steps=5)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_coefficients_go_to_the_device_once(kind: type[Sampler], monkeypatch: pytest.MonkeyPatch) -> None:
    """One copy that nobody waits for, before the first step; and nothing is read back in between."""
    copied = []

    def watched(value: Tensor, device: torch.device) -> Tensor:
        copied.append(value)
        return value

    monkeypatch.setattr("cogvideox.diffusion.samplers.to_device", watched)
    seen = []

    def denoise(x: Tensor, t: Tensor, context: Tensor, a: Tensor) -> Tensor:
        seen.append(a)
        return x

    run(kind(6), denoise)
    (coefficients,) = copied
    assert torch.equal(torch.stack(seen), coefficients[:, None].expand(-1, 2))
    assert {a.untyped_storage().data_ptr() for a in seen} == {coefficients.untyped_storage().data_ptr()}
