"""Guidance scales."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from cogvideox.diffusion.guidance import ConstantGuidance, DynamicGuidance, guide
from cogvideox.errors import ConfigError


def test_guide_combines_the_two_predictions() -> None:
    conditional, unconditional = torch.full((1, 2), 3.0), torch.full((1, 2), 1.0)
    assert torch.equal(guide(conditional, unconditional, 1.0), conditional)
    assert torch.equal(guide(conditional, unconditional, 0.0), unconditional)
    assert torch.equal(guide(conditional, unconditional, 6.0), torch.full((1, 2), 13.0))


def test_constant() -> None:
    guidance = ConstantGuidance(4.5)
    assert {guidance.scale_at(t, i) for i, t in enumerate((999, 500, 0))} == {4.5}


@pytest.mark.parametrize("timestep", [999, 979, 500, 20, 0])
def test_dynamic_by_timestep_is_the_published_formula(timestep: int) -> None:
    expected = 1 + 6 * (1 - math.cos(math.pi * ((50 - timestep) / 50) ** 5.0)) / 2
    assert DynamicGuidance(6.0, 5.0, 50).scale_at(timestep, step=0) == pytest.approx(expected, abs=1e-12)


def test_dynamic_by_timestep_jumps_between_its_ends() -> None:
    guidance = DynamicGuidance(6.0, 5.0, 50)
    scales = [guidance.scale_at(999 - 20 * step, step) for step in range(50)]
    assert all(1.0 <= scale <= 7.0 for scale in scales)
    assert max(abs(b - a) for a, b in itertools.pairwise(scales)) > 3.0


def test_dynamic_by_step_rises_from_one() -> None:
    guidance = DynamicGuidance(6.0, 5.0, 50, by="step")
    scales = [guidance.scale_at(0, step) for step in range(51)]
    assert scales[0] == 1.0 and scales[-1] == pytest.approx(7.0)
    assert scales == sorted(scales)


@pytest.mark.parametrize("exp", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("num_steps", [1, 8, 50])
def test_dynamic_by_step_against_the_half_angle_form(exp: float, num_steps: int) -> None:
    """(1 - cos u) / 2 = sin^2(u / 2)."""
    steps = np.arange(num_steps)
    expected = 1 + 4.0 * np.sin(np.pi / 2 * (steps / num_steps) ** exp) ** 2
    guidance = DynamicGuidance(4.0, exp, num_steps, by="step")
    np.testing.assert_allclose([guidance.scale_at(999, int(step)) for step in steps], expected, rtol=1e-12)


def test_dynamic_by_step_is_the_published_formula_on_a_network_with_as_many_timesteps_as_steps() -> None:
    """What the published form computes when timestep n - i comes at step i: the reading its authors had in mind."""
    by_step, by_timestep = DynamicGuidance(6.0, 5.0, 50, by="step"), DynamicGuidance(6.0, 5.0, 50)
    assert [by_step.scale_at(0, i) for i in range(50)] == [by_timestep.scale_at(50 - i, i) for i in range(50)]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ConstantGuidance(-1.0), "scale is -1.0, must not be negative"),
        (lambda: DynamicGuidance(scale=-1.0), "scale is -1.0, must not be negative"),
        (lambda: DynamicGuidance(num_steps=0), "num_steps is 0, must be at least 1"),
        (lambda: DynamicGuidance(by="sigma"), "by is 'sigma', must be timestep or step"),
        (lambda: DynamicGuidance(exp=2.5), "exp is 2.5, must be a whole number with by: timestep"),
    ],
)
def test_impossible_guidance_is_refused(build: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()  # type: ignore[operator]
