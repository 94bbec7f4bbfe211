"""Contact sheets: one row per clip, a few frames side by side, written as JPEG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def contact_sheet(
    clips: list[np.ndarray], labels: list[str], path: Path, frames: int = 6, columns: int = 1, zoom: int = 1
) -> None:
    """Write clips (uint8 [t, h, w, 3] each) with their labels; `columns` clips beside each other."""
    count, (height, width) = len(clips), clips[0].shape[1:3]
    rows = -(-count // columns)
    cell_w, cell_h = frames * (width * zoom + 2) + 6, height * zoom + 16
    sheet = Image.new("RGB", (cell_w * columns, cell_h * rows), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for index, (clip, label) in enumerate(zip(clips, labels, strict=True)):
        left, top = (index // rows) * cell_w, (index % rows) * cell_h
        draw.text((left + 2, top + 1), label, fill=(0, 0, 0))
        for place, frame in enumerate(np.linspace(0, len(clip) - 1, frames).round().astype(int)):
            image = Image.fromarray(clip[frame]).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
            sheet.paste(image, (left + place * (width * zoom + 2), top + 14))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, quality=90, optimize=True)
