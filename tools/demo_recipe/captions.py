"""Captions of the rendered clips: a few sentence forms and synonyms for every motion."""

from __future__ import annotations

import random

from .render import BACKGROUNDS, COLORS, MOTIONS, SHAPES, ClipSpec

MOTION_PHRASES = {
    "right": ("moves to the right", "slides right", "travels to the right"),
    "left": ("moves to the left", "slides left", "travels to the left"),
    "up": ("rises", "moves up", "floats upward"),
    "down": ("falls", "moves down", "drops downward"),
    "grow": ("grows", "gets bigger", "becomes larger"),
    "shrink": ("shrinks", "gets smaller", "becomes tiny"),
}
FORMS = (
    "a {color} {shape} {motion} on a {background} background",
    "a {color} {shape} {motion} in front of a {background} background",
    "{color} {shape} {motion}, {background} background",
    "on a {background} background a {color} {shape} {motion}",
    "a video of a {color} {shape} that {motion} on {background}",
)


def plain_caption(spec: ClipSpec) -> str:
    """The first form with the first phrase, as evaluation prompts use it."""
    return _fill(FORMS[0], spec, MOTION_PHRASES[spec.motion][0])


def caption(spec: ClipSpec, rng: random.Random) -> str:
    """One of the ways to say what `spec` shows; half of them are the plain one."""
    if rng.random() < 0.4:
        return plain_caption(spec)
    return _fill(rng.choice(FORMS), spec, rng.choice(MOTION_PHRASES[spec.motion]))


def random_spec(rng: random.Random, shapes: tuple[str, ...] = SHAPES) -> ClipSpec:
    """A clip drawn uniformly from the world."""
    return ClipSpec(
        shape=rng.choice(shapes),
        color=rng.choice(tuple(COLORS)),
        motion=rng.choice(MOTIONS),
        background=rng.choice(tuple(BACKGROUNDS)),
        seed=rng.getrandbits(48),
    )


def _fill(form: str, spec: ClipSpec, motion: str) -> str:
    return form.format(color=spec.color, shape=spec.shape, background=spec.background, motion=motion)
