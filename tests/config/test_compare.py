"""What changed between two configurations."""

from __future__ import annotations

from cogvideox.config.compare import changed_settings


def test_changes_of_values_lists_and_whole_sections() -> None:
    before = "model: {scale: 0.7, image: null}\nargs: {data: [a, b], seed: 1}\n"
    after = "model: {scale: 1.0, image: null}\nargs: {data: [a], seed: 1}\ndeepspeed: {fp16: {enabled: true}}\n"
    assert changed_settings(before, after) == {
        "model.scale": (0.7, 1.0),
        "args.data": (["a", "b"], ["a"]),
        "deepspeed.fp16.enabled": (None, True),
    }
    assert changed_settings(after, after) == {}
