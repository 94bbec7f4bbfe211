"""Make the demo family under demo/ from nothing, with fixed seeds: clips, VAE, latents, transformer, text encoder.

    python tools/make_demo.py all           # all stages in order, about three hours on two cores
    python tools/make_demo.py vae           # one of: clips, vae, encode, transformer, rotary, i2v, figures, manifest

Intermediate files go below runs/make_demo. demo/recipe.md holds the figures of the family in the repository.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cogvideox.config.schema import ModelConfig
    from demo_recipe.train_transformer import Recipe

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "sat", ROOT / "tools"):
    sys.path.insert(0, str(folder))

STAGES = ("clips", "vae", "encode", "transformer", "rotary", "i2v", "figures", "manifest")
CONFIG = Path("configs/demo.yaml")
ROTARY, I2V = Path("configs/demo_5b.yaml"), Path("configs/demo_1.5_i2v.yaml")
WORLD = Path("runs/make_demo/world.pt")
IMAGES = Path("runs/make_demo/images.pt")
DEMO = Path("demo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=(*STAGES, "all"))
    options = parser.parse_args()
    os.chdir(ROOT)
    actions = dict(zip(STAGES, (clips, vae, encode, transformer, rotary, i2v, figures, manifest), strict=True))
    for stage in STAGES if options.stage == "all" else (options.stage,):
        begin = time.perf_counter()
        actions[stage]()
        print(f"{stage}: {time.perf_counter() - begin:.0f} s", flush=True)


def clips() -> None:
    """The fine-tuning clips, and images to start videos from."""
    from demo_recipe.clips import write_clips, write_images

    write_clips(DEMO / "clips")
    write_images(DEMO / "images")


def vae() -> None:
    """The VAE."""
    from demo_recipe import train_vae

    first = WORLD.parent / "vae"
    train_vae.train(first)
    train_vae.train(DEMO / "vae", train_vae.MORE, start=first / "3d-vae.pt", peak=train_vae.MORE_PEAK)


def encode() -> None:
    """Latents of the training world and of its first frames, and the scale factor in the config."""
    from demo_recipe import latents
    from demo_recipe.train_vae import VAE_PARAMS, VideoAutoencoder

    autoencoder = VideoAutoencoder(ckpt_path=str(DEMO / "vae" / "3d-vae.pt"), **VAE_PARAMS)
    latents.encode_world(autoencoder, 6400, WORLD)
    latents.encode_images(autoencoder, WORLD, IMAGES)
    means, deviations, _ = latents.load_world(WORLD)
    std = float((means.float().var() + deviations.float().square().mean()).sqrt())
    text = re.sub(r"scale_factor: [\d.]+", f"scale_factor: {1 / std:.6f}", CONFIG.read_text(encoding="utf-8"))
    CONFIG.write_text(text, encoding="utf-8")
    print(f"standard deviation of the latents {std:.4f}, scale factor {1 / std:.6f} written to {CONFIG}")


def transformer() -> None:
    """The transformer of 2B's layout, and the text encoder."""
    from demo_recipe.train_transformer import BASE, FINISH, Place, train

    base = Place(WORLD.parent / "base" / "transformer", WORLD.parent / "base" / "t5")
    train(_model(CONFIG), WORLD, base, BASE)
    train(_model(CONFIG), WORLD, Place(DEMO / "transformer", DEMO / "t5"), FINISH, start=base)


def rotary() -> None:
    """The transformer of 5B's layout."""
    from demo_recipe.train_transformer import ROTARY_FINISH

    _member(ROTARY, ROTARY_FINISH)


def i2v() -> None:
    """The transformer of 1.5-I2V's layout."""
    from demo_recipe.train_transformer import I2V_FINISH

    _member(I2V, I2V_FINISH, IMAGES)


def _member(config: Path, finish: Recipe, images: Path | None = None) -> None:
    from demo_recipe.train_transformer import MEMBER, Place, train

    text, name = DEMO / "t5", config.stem.replace("demo", "transformer")
    base = Place(WORLD.parent / "base" / name, text)
    train(_model(config), WORLD, base, MEMBER, text=text, images=images)
    train(_model(config), WORLD, Place(DEMO / name, text), finish, start=base, text=text, images=images)


def _model(config: Path) -> ModelConfig:
    from cogvideox.config.load import load_config

    return load_config([str(config)], [], "train", partial=True).model


def figures() -> None:
    """Reconstruction and sampling figures, contact sheets."""
    from demo_recipe.figures import write_figures

    write_figures(CONFIG, ROTARY, I2V, DEMO)


def manifest() -> None:
    """The hashes of all weights, which whoever loads them compares."""
    from cogvideox.conversion.file_records import describe_output
    from cogvideox.conversion.manifest import Manifest
    from cogvideox.weights.integrity import WEIGHT_SUFFIXES

    files = sorted(file for file in DEMO.rglob("*") if file.suffix in WEIGHT_SUFFIXES)
    records = [describe_output(DEMO, file.relative_to(DEMO).as_posix(), with_sha256=True) for file in files]
    Manifest({"source": "tools/make_demo.py"}, (), tuple(records)).write(DEMO)


if __name__ == "__main__":
    main()
