"""What is known of the data of a configuration: listed, seen, counted. No torch, but for pictures and tokens."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tqdm import tqdm

from cogvideox.data.decode import VideoReader, open_reader
from cogvideox.data.listing import Found, find_samples
from cogvideox.data.media import Media
from cogvideox.data.survey import Failure, Survey, look_here
from cogvideox.doctor.subject import Subject
from cogvideox.errors import CheckpointError
from cogvideox.user_files import shown_path

if TYPE_CHECKING:
    from cogvideox.doctor.pictures import Pictures

_CAPTIONS_AT_A_TIME = 1000


@dataclass(frozen=True, eq=False)
class Part:
    """One of train_data and valid_data.

    Args:
        name: which one.
        found: what it holds, and what became of each file.
        first: the number of its first clip, from 1 over all parts.
    """

    name: str
    found: Found
    first: int


@dataclass(eq=False)
class Look:
    """What was found.

    Args:
        parts: of the data.
        pictures: of each file whose frames were decoded, a Pictures or why not; empty where nobody asked.
        tokens: of each caption; empty where the tokenizer isn't there.
        why_no_tokens: the reason.
    """

    subject: Subject
    parts: list[Part]
    pictures: dict[Media, Pictures | Failure] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    why_no_tokens: str = ""
    has_pictures: bool = False


def look(subject: Subject, with_pictures: bool = True) -> Look:
    """List, look at every file that isn't remembered, and count.

    Args:
        with_pictures: decode a few frames of every clip.

    Raises:
        DataError: for entries that can't be read, see listing.find_samples.
    """
    reader = open_reader(subject.data.reader, subject.data.scene_cuts)
    result = Look(subject, [], has_pictures=with_pictures)
    first = 1
    for name in subject.entries:
        result.parts.append(Part(name, find(subject, name, reader), first))
        first += len(result.parts[-1].found.samples)
    _count_tokens(result)
    if with_pictures:
        _take_pictures(result, reader)
    return result


def find(subject: Subject, name: str, reader: VideoReader) -> Found:
    """What the entries of "train_data" or "valid_data" hold. Raises: DataError."""
    data, args = subject.data, subject.args
    return find_samples(
        subject.entries[name],
        subject.spec,
        reader,
        look=lambda medias: tqdm(
            look_here(medias, reader, data.clip_timeout_s), f"{name}: headers", len(medias), unit="clip", disable=None
        ),
        missing_captions=data.missing_captions,
        captions=data.captions,
        max_failed_share=data.max_failed_share,
        cache=args.cache,
        buckets=subject.buckets,
    )


def open_counter(subject: Subject) -> Callable[[Sequence[str]], list[int]]:
    """Counts tokens as training does. Raises: CheckpointError where the tokenizer isn't on this machine."""
    folder = os.path.expanduser(subject.text_encoder)
    if not os.path.isdir(folder):
        raise CheckpointError(f"there is no folder {shown_path(folder)} (model_dir of the text encoder)")
    from cogvideox.text.encoders import open_tokenizer  # takes seconds

    return open_tokenizer(subject.text_encoder)


def _count_tokens(result: Look) -> None:
    captions = list(dict.fromkeys(caption for part in result.parts for caption in part.found.samples.captions()))
    if not captions:
        return
    try:
        count = open_counter(result.subject)
        for first in range(0, len(captions), _CAPTIONS_AT_A_TIME):
            some = captions[first : first + _CAPTIONS_AT_A_TIME]
            result.tokens.update(zip(some, count(some), strict=True))
    except CheckpointError as error:
        result.why_no_tokens = str(error)


def _take_pictures(result: Look, reader: VideoReader) -> None:
    from cogvideox.doctor.pictures import take_pictures  # imports torch

    medias: dict[Media, None] = {}
    for part in result.parts:
        samples = part.found.samples
        for media, outcome in zip(samples.medias(0, len(samples)), part.found.outcomes, strict=True):
            if isinstance(outcome, Survey):
                medias[media] = None
    data, args = result.subject.data, result.subject.args
    taken = take_pictures(
        list(medias), reader, cache=args.cache, num_workers=args.num_workers, timeout_s=data.clip_timeout_s
    )
    result.pictures.update(taken)
