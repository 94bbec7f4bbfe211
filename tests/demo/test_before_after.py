"""The picture at the end of the demo: which prompt, before or after, at which step."""

from __future__ import annotations

from pathlib import Path

import torch
from cogvideox.sampling.write_video import write_video
from demo_recipe.before_after import draw_sheet, write_before_after
from PIL import Image, ImageChops

RED, BLUE = (255, 0, 0), (0, 0, 255)


def solid(colour: tuple[int, int, int]) -> list[Image.Image]:
    return [Image.new("RGB", (120, 80), colour)] * 6


def colours(sheet: Image.Image) -> dict[tuple[int, int, int], int]:
    """Colour -> pixels."""
    return {colour: count for count, colour in sheet.getcolors(2**20)}  # type: ignore[union-attr, misc]


def test_every_frame_is_shown_whole_and_every_row_has_its_words() -> None:
    rows = [("a red ship", [solid(RED), solid(BLUE)])]
    sheet = draw_sheet(rows, ["before\nstep 0", "after\nstep 220"])
    found = colours(sheet)
    assert found[RED] == found[BLUE] == 6 * 120 * 80
    other = draw_sheet([("a red shop", rows[0][1])], ["before\nstep 0", "after\nstep 220"])
    caption = ImageChops.difference(sheet, other).getbbox()
    assert caption is not None and caption[3] < 40  # above the frames
    other = draw_sheet(rows, ["before\nstep 0", "after\nstep 230"])
    label = ImageChops.difference(sheet, other).getbbox()
    assert label is not None and label[1] > 34 + 80 and label[2] < sheet.width - 6 * 120  # left of the second row


def test_a_long_prompt_is_wrapped_not_cut() -> None:
    (short,) = [draw_sheet([("word", [solid(RED)])], ["before"])]
    long = draw_sheet([("word " * 60, [solid(RED)])], ["before"])
    assert long.width == short.width and long.height > short.height + 40


def test_prompts_go_with_their_videos_in_their_order(tmp_path: Path) -> None:
    """12 prompts: by name 10 would come before 2. Videos grow whiter with their number; small ones are enlarged."""
    prompts = [f"prompt {number}" for number in range(12)]
    samples = {step: str(tmp_path / step) for step in ("0", "40")}
    for number in range(12):
        video = torch.full((5, 3, 32, 48), 20 * number, dtype=torch.uint8)
        for folder in samples.values():
            write_video(Path(folder) / f"{number}_prompt_{number}.mp4", video, 8)
    with Image.open(write_before_after(tmp_path, samples, prompts)) as sheet:
        step = (sheet.height - 12) / 12
        seen = [sheet.getpixel((sheet.width - 40, int(12 + step * n + 40)))[0] for n in range(12)]
    assert all(abs(value - 20 * n) < 4 for n, value in enumerate(seen)), seen
