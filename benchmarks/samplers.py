"""How near a few sampling steps come to many: the deterministic samplers with each spacing of the noise levels.

    python benchmarks/samplers.py            # from the repository's root: the demo's base model, its first prompt
    python benchmarks/samplers.py --base my_model.yaml inference.yaml args.load=ckpts/run 'args.prompts=["a ship"]'

All start from the same noise, with constant guidance. The figure is the root mean square distance of the latent to that
of `--reference` steps (DPM++ 2M, trailing), in standard deviations of the latter: how far the solver is from the flow
that it follows, which is not the same as how good a video looks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sat"))

from cogvideox.config.load import load_config
from cogvideox.diffusion.guidance import ConstantGuidance
from cogvideox.diffusion.samplers import DDIMSampler, DPMpp2MSampler, Sampler
from cogvideox.sampling.batches import make_batches
from cogvideox.sampling.jobs import read_jobs
from cogvideox.sampling.run import load_for_sampling, sample_latents

DEMO = ["configs/demo.yaml", "configs/demo_inference.yaml", "args.load=demo/transformer", "args.device=cpu"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", nargs="+", default=DEMO)
    parser.add_argument("--steps", nargs="+", type=int, default=[8, 16, 32])
    parser.add_argument("--reference", type=int, default=160)
    parser.add_argument("--scale", type=float, default=3.0, help="of guidance")
    options = parser.parse_args()
    files = [word for word in options.base if "=" not in word]
    config = load_config(files, [word for word in options.base if "=" in word], "sample")
    device = torch.device("cuda" if torch.cuda.is_available() and config.sample_args.device != "cpu" else "cpu")
    model = load_for_sampling(config.model, config.sample_args, device)
    form, jobs = make_batches(read_jobs(config)[:1], config.sample_args, model.patch_frames)[0]

    def result(sampler: Sampler) -> Tensor:
        return sample_latents(model, sampler, jobs, form)

    guidance = ConstantGuidance(options.scale)
    reference = result(DPMpp2MSampler(options.reference, guidance))
    print(f"{'sampler':16}{'steps':>6}{'trailing':>10}{'lin-quad':>10}{'lin-quad, a quarter linear':>28}")
    for kind in (DPMpp2MSampler, DDIMSampler):
        for steps in options.steps:
            samplers = (
                kind(steps, guidance),
                kind(steps, guidance, "linear_quadratic"),
                kind(steps, guidance, "linear_quadratic", steps // 4),
            )
            found = [float((result(each) - reference).square().mean().sqrt() / reference.std()) for each in samplers]
            print(f"{kind.__name__:16}{steps:6}{found[0]:10.3f}{found[1]:10.3f}{found[2]:28.3f}", flush=True)


if __name__ == "__main__":
    main()
