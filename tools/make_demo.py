"""Make the demo family under demo/ from nothing, with fixed seeds: clips, VAE, latents, transformer, text encoder.

    python tools/make_demo.py all           # all stages in order, about two hours on two cores
    python tools/make_demo.py vae           # one stage of: clips, vae, encode, transformer, figures

Intermediate files go below runs/make_demo. demo/recipe.md holds the figures of the family in the repository.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "sat", ROOT / "tools"):
    sys.path.insert(0, str(folder))

STAGES = ("clips", "vae", "encode", "transformer", "figures")
CONFIG = Path("configs/demo.yaml")
WORLD = Path("runs/make_demo/world.pt")
DEMO = Path("demo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=(*STAGES, "all"))
    options = parser.parse_args()
    os.chdir(ROOT)
    actions = dict(zip(STAGES, (clips, vae, encode, transformer, figures), strict=True))
    for stage in STAGES if options.stage == "all" else (options.stage,):
        begin = time.perf_counter()
        actions[stage]()
        print(f"{stage}: {time.perf_counter() - begin:.0f} s", flush=True)


def clips() -> None:
    """The fine-tuning clips."""
    from demo_recipe.clips import write_clips

    write_clips(DEMO / "clips")


def vae() -> None:
    """The VAE."""
    from demo_recipe import train_vae

    first = WORLD.parent / "vae"
    train_vae.train(first)
    train_vae.train(DEMO / "vae", train_vae.MORE, start=first / "3d-vae.pt", peak=train_vae.MORE_PEAK)


def encode() -> None:
    """Latents of the training world, and the scale factor in the config."""
    from demo_recipe import latents
    from demo_recipe.train_vae import VAE_PARAMS, VideoAutoencoder

    autoencoder = VideoAutoencoder(ckpt_path=str(DEMO / "vae" / "3d-vae.pt"), **VAE_PARAMS)
    latents.encode_world(autoencoder, 6400, WORLD)
    means, deviations, _ = latents.load_world(WORLD)
    std = float((means.float().var() + deviations.float().square().mean()).sqrt())
    text = re.sub(r"scale_factor: [\d.]+", f"scale_factor: {1 / std:.6f}", CONFIG.read_text(encoding="utf-8"))
    CONFIG.write_text(text, encoding="utf-8")
    print(f"standard deviation of the latents {std:.4f}, scale factor {1 / std:.6f} written to {CONFIG}")


def transformer() -> None:
    """The transformer and the text encoder."""
    from cogvideox.config.load import load_config
    from demo_recipe import train_transformer

    config = load_config([str(CONFIG)], [], "train", partial=True)
    base = WORLD.parent / "base"
    train_transformer.train(config.model, WORLD, base, train_transformer.BASE)
    train_transformer.train(config.model, WORLD, DEMO, train_transformer.FINISH, start=base)


def figures() -> None:
    """Reconstruction and sampling figures, contact sheet."""
    from demo_recipe.figures import write_figures

    write_figures(CONFIG, DEMO)


if __name__ == "__main__":
    main()
