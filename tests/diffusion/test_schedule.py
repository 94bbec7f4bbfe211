"""The noise schedule against an independent numpy computation, and its known facts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cogvideox.diffusion.schedule import NoiseSchedule, linear_quadratic_progress
from cogvideox.errors import ConfigError


def reference_alpha_bar(shift: float) -> np.ndarray:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha_bar = np.cumprod(1 - betas)
    return alpha_bar / (shift + (1 - shift) * alpha_bar)


def reference_levels(alpha_bar: np.ndarray) -> np.ndarray:
    a = np.sqrt(alpha_bar)
    return (a - a[-1]) * a[0] / (a[0] - a[-1])


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_training_table(shift: float) -> None:
    table = NoiseSchedule(shift_scale=shift).sqrt_alpha_bar
    assert table.dtype == torch.float32 and table.shape == (1000,)
    np.testing.assert_allclose(table.numpy(), reference_levels(reference_alpha_bar(shift)), atol=2e-7)


def test_last_timestep_is_pure_noise_and_the_first_keeps_its_level() -> None:
    schedule = NoiseSchedule()
    assert schedule.sqrt_alpha_bar[-1] == 0.0
    assert schedule.sqrt_alpha_bar[0] == pytest.approx(reference_alpha_bar(3.0)[0] ** 0.5, abs=1e-7)
    assert (schedule.sqrt_alpha_bar.diff() < 0).all()
    noise = torch.randn(2, 3)
    noised = schedule.add_noise(torch.randn(2, 3), noise, torch.tensor([999, 999]))
    assert torch.equal(noised, noise)


def test_without_zero_terminal_snr_some_signal_is_left() -> None:
    schedule = NoiseSchedule(zero_terminal_snr=False)
    np.testing.assert_allclose(schedule.sqrt_alpha_bar.numpy(), reference_alpha_bar(3.0) ** 0.5, atol=1e-7)
    assert schedule.sampling(50).sqrt_alpha_bar[0] > 0.01


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 99, 999, 1000])
def test_sampling_schedule(steps: int) -> None:
    schedule = NoiseSchedule()
    sampling = schedule.sampling(steps)
    expected = np.linspace(999, 0, steps, endpoint=False).astype(int)
    assert sampling.timesteps.tolist() == expected.tolist()
    assert sampling.sqrt_alpha_bar.shape == (steps + 1,) and sampling.sqrt_alpha_bar[-1] == 1.0
    assert sampling.sqrt_alpha_bar[0] == 0.0
    assert (sampling.sqrt_alpha_bar.diff() > 0).all()
    if steps > 1:
        rescaled = reference_levels(reference_alpha_bar(3.0)[expected[::-1]])[::-1]
        np.testing.assert_allclose(sampling.sqrt_alpha_bar[:-1].numpy(), rescaled, atol=3e-7)


def test_sampling_levels_are_rescaled_after_sub_sampling() -> None:
    schedule = NoiseSchedule()
    sampling = schedule.sampling(50)
    subset = schedule.sqrt_alpha_bar[sampling.timesteps]
    difference = (sampling.sqrt_alpha_bar[:-1] - subset).abs().max()
    assert 1e-5 < difference < 2e-3


def test_denoiser_levels_are_the_nearest_table_entries() -> None:
    schedule = NoiseSchedule()
    sampling = schedule.sampling(13)
    for level, rounded in zip(sampling.sqrt_alpha_bar, sampling.denoiser_sqrt_alpha_bar, strict=False):
        assert rounded in schedule.sqrt_alpha_bar
        assert (rounded - level).abs() == (schedule.sqrt_alpha_bar - level).abs().min()


@pytest.mark.parametrize(("steps", "linear"), [(1, 0), (2, 1), (8, 4), (50, 25), (50, 10), (30, 0), (7, 6)])
def test_linear_quadratic_progress(steps: int, linear: int) -> None:
    """A thousandth per step at first, then growing evenly, up to 1."""
    gaps = np.diff([*linear_quadratic_progress(steps, linear, 1000), 1.0])
    np.testing.assert_allclose(gaps[:linear], 1e-3, atol=1e-12)
    np.testing.assert_allclose(np.diff(gaps[linear:], 2), 0, atol=1e-12)
    assert (gaps >= 1e-3 - 1e-12).all() and gaps.sum() == pytest.approx(1.0)
    if linear and steps - linear > 1:  # the slope is continuous: the first quadratic gap starts where the linear ended
        assert gaps[linear] - 1e-3 == pytest.approx((gaps[linear + 1] - gaps[linear]) / 2, rel=1e-9)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(("steps", "linear"), [(1, None), (2, None), (8, None), (16, 4), (50, None), (30, 0), (7, 6)])
def test_linear_quadratic_levels(shift: float, steps: int, linear: int | None) -> None:
    """Entries of the training table whose share of signal is the wanted one, as near as the table has it."""
    schedule = NoiseSchedule(shift_scale=shift)
    sampling = schedule.sampling(steps, "linear_quadratic", linear)
    assert sampling.timesteps[0] == 999 and sampling.sqrt_alpha_bar[0] == 0.0 and sampling.sqrt_alpha_bar[-1] == 1.0
    assert torch.equal(sampling.sqrt_alpha_bar[:-1], schedule.sqrt_alpha_bar[sampling.timesteps])
    assert torch.equal(sampling.denoiser_sqrt_alpha_bar, sampling.sqrt_alpha_bar[:-1])
    assert (sampling.timesteps.diff() < 0).all() and (sampling.sqrt_alpha_bar.diff() > 0).all()
    table = reference_levels(reference_alpha_bar(shift))
    signal = table / (table + np.sqrt(1 - table**2))
    wanted = linear_quadratic_progress(steps, steps // 2 if linear is None else linear, 1000)
    for value, timestep in zip(wanted, sampling.timesteps.tolist(), strict=True):
        gap = signal[max(timestep - 1, 0)] - signal[min(timestep + 1, 999)]
        assert abs(signal[timestep] - value) <= gap / 2 + 1e-6 or value > signal[0]


def test_linear_quadratic_timesteps_never_repeat() -> None:
    for schedule in (NoiseSchedule(), NoiseSchedule(zero_terminal_snr=False), NoiseSchedule(num_timesteps=20)):
        most = schedule.num_timesteps
        for steps in {1, 2, most // 3, most // 2, most - 1, most}:
            for linear in {0, steps // 3, steps // 2, steps - 1}:
                timesteps = schedule.sampling(steps, "linear_quadratic", linear).timesteps
                assert timesteps[0] == most - 1 and timesteps[-1] >= 0 and (timesteps.diff() < 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_timesteps": 1}, "num_timesteps is 1"),
        ({"beta_start": 0.02}, "0 < beta_start <= beta_end"),
        ({"shift_scale": 0.0}, "shift_scale is 0.0"),
    ],
)
def test_impossible_schedules_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NoiseSchedule(**arguments)


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_step_counts_are_refused(steps: int) -> None:
    with pytest.raises(ConfigError, match=f"num_steps is {steps}, must be between 1 and 1000"):
        NoiseSchedule().sampling(steps)


def test_a_device_gets_the_table_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the model is moved, so that the first step waits for no copy."""
    copies = []

    def copied(table: torch.Tensor, device: torch.device) -> torch.Tensor:
        copies.append(device)
        return table.to(device)

    monkeypatch.setattr("cogvideox.diffusion.schedule.to_device", copied)
    schedule = NoiseSchedule()
    for device in ("cpu", "meta", "meta"):
        schedule.move(torch.device(device))
    assert schedule.level(torch.zeros(2, dtype=torch.int64, device="meta")).device.type == "meta"
    assert torch.equal(schedule.level(torch.tensor([3, 999])), schedule.sqrt_alpha_bar[[3, 999]])
    assert copies == [torch.device("meta")]
