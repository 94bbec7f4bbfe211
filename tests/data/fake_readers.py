"""Readers that misbehave on purpose. Decoding processes import this module, so it has to stay light."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
from cogvideox.data.decode import ClipInfo, DecodedFrames, FrameChooser
from cogvideox.data.media import Media
from cogvideox.errors import DataError


class ScriptedReader:
    """Does what the file says by its name: hang, crash, bug, broken, or short (which only reading shows); others give
    frames of one grey value.

    Reads are counted in the file `<video>.reads` beside the video.
    """

    name = "scripted"

    def probe(self, media: Media) -> ClipInfo:
        path = media.path
        file = os.path.basename(path)
        if "unreadable" in file:
            raise DataError(f"{path}: no good")
        if "hang" in file:
            Path(f"{path}.reads").write_text("x")
            time.sleep(600)
        return ClipInfo(16, 16, np.arange(49) / 8)

    def read(self, media: Media, choose: FrameChooser) -> DecodedFrames:
        path = media.path
        file = os.path.basename(path)
        with open(f"{path}.reads", "a") as reads:
            reads.write("x")
        if "hang" in file:
            time.sleep(600)
        if "crash" in file:
            os._exit(3)
        if "bug" in file:
            raise ZeroDivisionError("a mistake in a reader")
        if "broken" in file:
            raise DataError(f"{path}: broken on purpose")
        choice = choose(np.arange(3 if "short" in file else 49) / 8)
        grey = sum(file.encode()) % 256
        frames = np.full((len(choice.indices), 16, 16, 3), grey, dtype=np.uint8)
        return DecodedFrames(frames, choice, self.name)
