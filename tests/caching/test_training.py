"""Training from a cache gives the losses of training online, for every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cogvideox.errors import DataError
from cogvideox.text.encoders import T5Encoder
from cogvideox.vae.autoencoder import VideoAutoencoder

STEPS = ("args.train_iters=4", "args.eval_split=0.34")  # more than an epoch


class Built(Exception):
    """A part was built that nothing needs."""


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[[type], None]:
    """Let a part's weights not be loaded."""

    def forbid(part: type) -> None:
        def refused(*_: Any, **__: Any) -> None:
            raise Built(part.__name__)

        monkeypatch.setattr(part, "__init__", refused)

    return forbid


@pytest.mark.parametrize("name", ["2b", "5b", "5b_i2v", "1.5", "1.5_i2v"])
def test_cached_equals_online(
    filled: Callable[[str], None], train: Callable[..., list[float]], refuse: Callable[[type], None], name: str
) -> None:
    dropout = ["model.noised_image_dropout=0.3"] if name.endswith("i2v") else []
    online = train(name, *STEPS, *dropout, "args.cache=null")
    filled(name)
    refuse(T5Encoder)
    if not name.endswith("i2v"):  # these encode the first frame with its noise
        refuse(VideoAutoencoder)
    assert train(name, *STEPS, *dropout) == online and len(online) == 4 + 2


def test_in_bf16_the_moments_take_half_the_place_and_lose_nothing(
    fill: Callable[..., None], train: Callable[..., list[float]], entries: Callable[[str], list[Path]]
) -> None:
    from safetensors.torch import load_file

    words = ("deepspeed.bf16.enabled=true", "args.train_iters=2")
    fill("2b", *words)
    assert {value.dtype for file in entries("latents") for value in load_file(file).values()} == {torch.bfloat16}
    assert train("2b", *words) == train("2b", *words, "args.cache=null")


def test_random_starts_are_stored_as_so_many_views(
    fill: Callable[..., None], train: Callable[..., list[float]], entries: Callable[[str], list[Path]]
) -> None:
    """The first epochs are those of training online."""
    words = ("data.random_start=true", "data.max_num_frames=5", "args.cache_views=2", "args.train_iters=6")
    fill("2b", *words)
    assert len(entries("latents")) == 12
    assert train("2b", *words) == train("2b", *words, "args.cache=null")


@pytest.mark.parametrize("name", ["2b", "5b_i2v"])
def test_every_bucket_that_a_clip_may_be_drawn_for_is_stored(
    fill: Callable[..., None], train: Callable[..., list[float]], entries: Callable[[str], list[Path]], name: str
) -> None:
    words = ("data.buckets={shapes: [[9,32,48],[5,32,48],[1,32,48]], vary: frames}", "args.train_iters=5")
    fill(name, *words)
    assert len(entries("latents")) == 6 * 3
    assert train(name, *words) == train(name, *words, "args.cache=null")


def test_a_few_draws_of_each_clips_bucket_are_stored(
    fill: Callable[..., None], train: Callable[..., list[float]], entries: Callable[[str], list[Path]]
) -> None:
    """The first epochs are those of training online; later ones draw the same again, and miss nothing."""
    words = ("data.buckets={shapes: [[9,32,48],[5,32,48],[1,32,48]], vary: frames}", "args.cache_views=2")
    fill("2b", *words)
    assert 6 < len(entries("latents")) <= 12
    losses = train("2b", *words, "args.train_iters=8")
    assert losses[:4] == train("2b", *words, "args.cache=null", "args.train_iters=4")
    assert len(losses) == 8


@pytest.mark.slow
def test_two_workers_read_the_same(
    fill: Callable[..., None], train: Callable[..., list[float]], entries: Callable[[str], list[Path]]
) -> None:
    """Also where some rows are missing, and jobs of the batch before are still under way."""
    words = ("args.num_workers=2", *STEPS)
    fill("5b_i2v", *words)
    expected = train("5b_i2v", *STEPS, "args.cache=null")
    assert train("5b_i2v", *words) == expected
    for file in entries("latents")[:2]:
        file.unlink()
    assert train("5b_i2v", *words, "args.cache_missing=online") == expected


def test_what_is_missing_is_encoded_online(
    filled: Callable[[str], None], train: Callable[..., list[float]], entries: Callable[[str], list[Path]]
) -> None:
    expected = train("2b", *STEPS, "args.cache=null")
    filled("2b")
    for file in (*entries("latents")[:2], *entries("contexts")[:2]):
        file.unlink()
    assert train("2b", *STEPS, "args.cache_missing=online") == expected
    with pytest.raises(DataError, match=r"lacks the latents of 2 of 6 clips .* and the contexts of 2 of 6 captions"):
        train("2b", *STEPS)


def test_an_empty_cache_names_the_command_that_fills_it(train: Callable[..., list[float]], tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"the latents of 6 of 6 clips .*fill the cache with: .*cache_dataset.py --base"
    ):
        train("2b")
    assert not (tmp_path / "runs").exists()


def test_a_cache_of_other_weights_says_of_which(
    filled: Callable[[str], None], train: Callable[..., list[float]], family_of: Any, tmp_path: Path
) -> None:
    filled("2b")
    other = tmp_path / "other.pt"
    content = torch.load(family_of("2b").vae, weights_only=True)
    next(iter(content["state_dict"].values())).view(-1)[0] += 1
    torch.save(content, other)
    with pytest.raises(DataError, match=r"latents made with .*3d-vae.pt, this run's weights are .*other.pt \(vae \["):
        train("2b", f"model.first_stage_config.params.ckpt_path={other}")


def test_previews_load_what_they_need(filled: Callable[[str], None], train: Callable[..., list[float]]) -> None:
    words = ("args.train_iters=1", "args.eval_prompts=['a red square']", "args.cache_missing=error")
    filled("2b")  # without the prompt, which the text encoder then encodes
    assert train("2b", *words) == train("2b", *words, "args.cache=null")
