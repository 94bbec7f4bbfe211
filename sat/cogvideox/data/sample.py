"""A clip with its captions. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cogvideox.data.media import Media
from cogvideox.data.order import uniform

CAPTION_CHOICES = ("first", "random")


@dataclass(frozen=True)
class Sample:
    """A clip with its captions.

    Args:
        media: the video; an image counts as a clip of one frame.
        captions: those of which one is taken each time, at least one; "" where there is none and that is allowed.
        sample_id: 63 bits from the name that the sample has in its source: the same on every machine.
        source: number of its entry in args.train_data, from 0.
        image: the first image for image-to-video, where it isn't the first frame.
        window: which full window of a long clip it is, from 0.
        cuts: where its video cuts to another scene, see timing.Cuts; empty where nobody looked.
    """

    media: Media
    captions: tuple[str, ...]
    sample_id: int
    source: int = 0
    image: Media | None = None
    window: int = 0
    cuts: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """The sample as messages name it."""
        return self.media.label


def choose_caption(sample: Sample, seed: int, epoch: int, how: str = "first") -> str:
    """The caption of a sample in an epoch: a function of (seed, epoch, sample id) alone.

    Args:
        how: "first", or "random" for one drawn anew in each epoch.
    """
    assert how in CAPTION_CHOICES, how
    if how == "first" or len(sample.captions) == 1:
        return sample.captions[0]
    return sample.captions[int(uniform(seed, epoch, sample.sample_id, "caption") * len(sample.captions))]


def all_captions(samples: Iterable[Sample]) -> list[str]:
    """Every caption that the samples can be trained with, each once, in order."""
    return list(dict.fromkeys(caption for sample in samples for caption in sample.captions))
