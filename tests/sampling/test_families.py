"""Sampling runs of every family at tiny size: frames, padding, images, and one-frame pictures."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import sample_video
import tiny
import torch
from cogvideox.config.load import load_config
from cogvideox.config.schema import Config
from cogvideox.data.transforms import fit_to_bucket
from cogvideox.errors import ConfigError, DataError, ShapeError, run_cli
from cogvideox.parallel.groups import ProcessGroups
from cogvideox.sampling.batches import VideoFormat, check_format
from cogvideox.sampling.jobs import SampleJob
from cogvideox.sampling.run import (
    build_sampler,
    decoded_frames,
    first_frame,
    load_for_sampling,
    run_sampling,
    sample_latents,
)
from cogvideox.sampling.write_video import write_video
from PIL import Image
from safetensors.torch import load_file

ALONE = ProcessGroups(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
Family = Callable[[str], tiny.TinyFamily]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Each family is written once, when it is first asked for."""
    made: dict[str, tiny.TinyFamily] = {}

    def get(name: str) -> tiny.TinyFamily:
        if name not in made:
            made[name] = tiny.write_family(tmp_path_factory.mktemp("family") / name, num_clips=0, family=name)
        return made[name]

    return get


@pytest.fixture(autouse=True)
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the working directory: wide.png and tall.png of noise, broken.png, and square.png."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for name, size in (("wide", (64, 96, 3)), ("tall", (150, 100, 3)), ("square", (50, 50, 3))):
        Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)).save(f"{name}.png")
    Path("broken.png").write_bytes(Path("wide.png").read_bytes()[:500])


def configure(family: tiny.TinyFamily, prompts: list[str], more: list[str] | None = None, **args: Any) -> Config:
    return load_config([str(family.model_yaml)], settings(family, prompts, more, **args), "sample")


def settings(family: tiny.TinyFamily, prompts: list[str], more: list[str] | None = None, **args: Any) -> list[str]:
    given = {
        "load": family.transformer,
        "prompts": prompts,
        "output_dir": "out",
        "sampling_image_size": [tiny.HEIGHT, tiny.WIDTH],
        "sampling_num_frames": 3,
        "save_latents": True,
        "device": "cpu",
        "num_steps": 2,
        **args,
    }
    return [f"args.{key}={'null' if value is None else value}" for key, value in given.items()] + (more or [])


def video(folder: Path) -> tuple[int, int, int]:
    """Frames, height and width of the mp4."""
    with av.open(str(folder / "000000.mp4")) as container:
        stream = container.streams.video[0]
        return len(list(container.decode(stream))), stream.height, stream.width


def latent(folder: Path) -> torch.Tensor:
    return load_file(folder / "latent.safetensors")["latent"]


@pytest.mark.parametrize("name", list(tiny.SIZES))
def test_nine_frames_of_every_family(family: Family, name: str) -> None:
    line = "a red square moves left" + ("@@wide.png" if name.endswith("i2v") else "")
    (folder,) = run_sampling(configure(family(name), [line]), ALONE)
    assert video(folder) == (9, tiny.HEIGHT, tiny.WIDTH)
    assert latent(folder).shape == (3, 16, 4, 6) and latent(folder).isfinite().all()
    assert folder == Path("out/0_a_red_square_moves_left/0")


@pytest.mark.parametrize(("counted", "real", "frames"), [((3, 4), 3, 9), ((5, 6), 5, 17)])
def test_even_counts_of_latents_are_padded_ones(
    family: Family, counted: tuple[int, int], real: int, frames: int
) -> None:
    """As the published 22 and 42 of 1.5; nothing that is stored is padded."""
    stored = []
    for count in counted:
        config = configure(family("1.5"), ["a square"], sampling_num_frames=count, output_dir=f"out{count}")
        (folder,) = run_sampling(config, ALONE)
        assert video(folder)[0] == frames
        stored.append(latent(folder))
    assert stored[0].shape[0] == real and torch.equal(stored[0], stored[1])


def test_the_stored_latents_of_padded_families_are_those_of_the_video(family: Family) -> None:
    config = configure(family("1.5"), ["a square"])
    model = load_for_sampling(config.model, config.sample_args, ALONE.device)
    (folder,) = run_sampling(config, ALONE)
    job = SampleJob("a square", 0, 0, 42, folder)
    (padded,) = sample_latents(model, build_sampler(config.model.sampler_config), [job], VideoFormat(3, 32, 48, 8))
    assert len(padded) == 4
    torch.testing.assert_close(latent(folder) * model.scale_factor, padded[1:], rtol=1e-4, atol=1e-4)
    pieces = list(decoded_frames(model, padded))
    assert sum(len(piece) for piece in pieces) == 9
    expected = model.vae.decode(latent(folder)[None])[0]
    torch.testing.assert_close(torch.cat(pieces), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["5b_i2v", "1.5_i2v"])
@pytest.mark.parametrize("batch", ["joint", "split"])
def test_both_branches_of_guidance_see_the_image(family: Family, name: str, batch: str) -> None:
    prompts = ["a square@@wide.png", "a square@@square.png"]
    config = configure(family(name), prompts, [f"model.sampler_config.params.guidance_batch={batch}"])
    model = load_for_sampling(config.model, config.sample_args, ALONE.device)
    form = VideoFormat(3, tiny.HEIGHT, tiny.WIDTH, 8)
    jobs = [SampleJob("a square", n, 0, 0, Path(), Path(file)) for n, file in enumerate(("wide.png", "square.png"))]
    images = model.image_latent(torch.stack([first_frame(job, form) for job in jobs]), 3)
    seen = []
    model.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, :, 16:]))
    sample_latents(model, build_sampler(config.model.sampler_config), jobs, form)
    assert len(seen) == (2 if batch == "joint" else 4)
    for each in seen:
        assert torch.equal(each, torch.cat([images, images]) if batch == "joint" else images)
    assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize("name", ["2b", "1.5_i2v"])
def test_split_guidance_gives_the_same_video(family: Family, name: str) -> None:
    """Up to fp32 rounding: the matrix products of two batches of 1 and one of 2 add up in another order."""
    line = "a red square" + ("@@wide.png" if name.endswith("i2v") else "")
    results = []
    for batch in ("joint", "split"):
        more = [f"model.sampler_config.params.guidance_batch={batch}"]
        (folder,) = run_sampling(configure(family(name), [line], more, output_dir=batch), ALONE)
        results.append(latent(folder))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_the_image_decides_the_video(family: Family) -> None:
    prompts = ["a square@@wide.png", "a square@@square.png"]
    config = configure(family("5b_i2v"), prompts, only_save_latents=True, batch_size=2)
    one, other = (latent(folder) for folder in run_sampling(config, ALONE))
    assert (one - other).abs().max() > 1e-2


def test_images_are_fitted_as_training_fits_frames() -> None:
    form = VideoFormat(3, tiny.HEIGHT, tiny.WIDTH, 8)
    frame = first_frame(SampleJob("a", 0, 0, 0, Path(), Path("tall.png")), form)
    pixels = np.array(Image.open("tall.png"))
    assert frame.shape == (3, tiny.HEIGHT, tiny.WIDTH) and frame.dtype == torch.uint8
    assert torch.equal(frame, fit_to_bucket(pixels[None], (tiny.HEIGHT, tiny.WIDTH))[0])


INTERPOLATE = ["model.network_config.params.modules.pos_embed_config.params.resize=interpolate"]


def test_sizes_from_images_and_batches_of_equal_sizes(family: Family) -> None:
    """wide.png is 64 x 96, square.png 50 x 50, tall.png 150 x 100; the family's short side is 32."""
    prompts = [f"a {name} square@@{name}.png" for name in ("wide", "square", "tall")] + ["a white square@@wide.png"]
    config = configure(family("1.5_i2v"), prompts, INTERPOLATE, sampling_image_size=None, batch_size=4)
    folders = run_sampling(config, ALONE)
    sizes = {folder.parent.name: video(folder)[1:] for folder in folders}
    assert sizes == {
        "0_a_wide_square": (32, 48),
        "3_a_white_square": (32, 48),
        "1_a_square_square": (32, 32),
        "2_a_tall_square": (48, 32),
    }


def test_a_size_beyond_the_positions_names_the_line_before_anything_is_loaded(family: Family, tmp_path: Path) -> None:
    prompts = ["a square@@wide.png", "a square@@tall.png"]
    config = configure(family("5b_i2v"), prompts, sampling_image_size=None, load=str(tmp_path))
    message = (
        r"args.prompts, line 2: an image of 150 x 100 .* video of 48 x 32, .*\.sampling_image_size=\[32,32\] crops"
    )
    with pytest.raises(DataError, match=message):
        run_sampling(config, ALONE)


@pytest.mark.parametrize("name", ["2b", "5b", "5b_i2v"])
def test_one_frame_is_a_picture(family: Family, name: str) -> None:
    line = "a red square" + ("@@wide.png" if name.endswith("i2v") else "")
    config = configure(family(name), [line], sampling_num_frames=1)
    (folder,) = run_sampling(config, ALONE)
    assert sorted(path.name for path in folder.iterdir()) == ["000000.png", "latent.safetensors"]
    assert Image.open(folder / "000000.png").size == (tiny.WIDTH, tiny.HEIGHT) and len(latent(folder)) == 1
    with pytest.raises(DataError, match=r"1 of 1 outputs exist already: .*000000.png"):
        run_sampling(config, ALONE)


def test_one_frame_is_refused_where_patches_hold_two(family: Family) -> None:
    with pytest.raises(ConfigError, match="sampling_num_frames: must be at least 3, not 1: patches hold 2 latent"):
        configure(family("1.5"), ["a square"], sampling_num_frames=1)
    config = configure(family("1.5"), ["a square"])
    model = load_for_sampling(config.model, config.sample_args, ALONE.device)
    for frames, message in ((1, "1 latent frames .* nearest: 3"), (4, "4 latent frames .* nearest: 3 or 5")):
        with pytest.raises(ShapeError, match=message):
            check_format(model, VideoFormat(frames, 32, 48, 8))


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("5b_i2v", "a square@@broken.png", r"prompts, line 2: .*broken.png: can't be read as an image"),
        ("5b_i2v", "a square@@none.png", r"prompts, line 2: there is no image file none.png"),
        ("5b_i2v", "a square", r"prompts, line 2: 'a square' has no image; this is an image-to-video model"),
        ("5b", "a square@@wide.png", r"prompts, line 2: 'prompt@@image' is for image-to-video models"),
    ],
)
def test_what_does_not_suit_the_model_is_one_line_of_check_too(
    family: Family, capsys: pytest.CaptureFixture[str], name: str, line: str, message: str
) -> None:
    first = "a square@@wide.png" if name.endswith("i2v") else "a square"
    given = ["--base", str(family(name).model_yaml), *settings(family(name), [first, line])]
    for arguments in (given, [*given, "--check"]):
        assert run_cli(sample_video.main, arguments) == 2
        (said,) = [text for text in capsys.readouterr().err.splitlines() if "line 2" in text]
        with pytest.raises(DataError, match=message):
            raise DataError(said)
    assert not Path("out").exists()


def test_check_accepts_what_runs_and_does_not_wait_for_a_terminal(
    family: Family, capsys: pytest.CaptureFixture[str]
) -> None:
    model = family("1.5_i2v")
    for prompts in (["a square@@wide.png"], []):
        assert run_cli(sample_video.main, ["--base", str(model.model_yaml), *settings(model, prompts), "--check"]) == 0
        assert "the configuration is valid" in capsys.readouterr().out


def test_pieces_are_decoded_as_they_are_written(family: Family, tmp_path: Path) -> None:
    """At most the last piece is kept while the next is decoded, whatever the length of the video."""
    config = configure(family("2b"), ["a square"])
    model = load_for_sampling(config.model, config.sample_args, ALONE.device)
    pieces: list[weakref.ref[torch.Tensor]] = []
    alive_when_decoding: list[int] = []
    model.vae.decoder.register_forward_pre_hook(
        lambda *_: alive_when_decoding.append(sum(piece() is not None for piece in pieces))
    )

    def watched() -> Iterator[torch.Tensor]:
        decoded = decoded_frames(model, torch.randn(9, 16, 4, 6))
        while (piece := next(decoded, None)) is not None:
            pieces.append(weakref.ref(piece))
            yield piece

    iterator = watched()
    assert len(next(iterator)) == 9 and len(alive_when_decoding) == 1
    write_video(tmp_path / "clip.mp4", iterator, 8)
    assert len(pieces) == 4 and max(alive_when_decoding) == 1
