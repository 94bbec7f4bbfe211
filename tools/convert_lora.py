"""Turn a LoRA into the form that another program reads: this framework (SAT), diffusers, or ComfyUI.

What the source is, the tool finds out by itself: a run folder or checkpoint of this framework or of the original
SAT code, or a .safetensors file of diffusers, peft, finetrainers, kohya's naming or ComfyUI.

    for diffusers, from a training run (`pipe.load_lora_weights("my_lora")` then applies it as trained):
        python tools/convert_lora.py ckpts/lora-06-01-12-00 --to diffusers --output_path my_lora
    for ComfyUI's own CogVideoX nodes (put the file into ComfyUI/models/loras; strength 1.0 is as trained):
        python tools/convert_lora.py ckpts/lora-06-01-12-00 --to comfyui --output_path my_lora_comfyui
    for ComfyUI with kijai's CogVideoXWrapper:
        python tools/convert_lora.py ckpts/lora-06-01-12-00 --to comfyui-wrapper --output_path my_lora_wrapper
    from diffusers, to sample or train on here:
        python tools/convert_lora.py my_lora --to sat --base CogVideoX-2b-sat/transformer --output_path my_lora_sat
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sat"))

from cogvideox.conversion.command_line import Parser, add_output, positive, possible_path
from cogvideox.conversion.lora.base_model import open_base
from cogvideox.conversion.lora.convert import LAYOUT_CHOICES, convert
from cogvideox.conversion.lora.source import open_adapter
from cogvideox.conversion.next_steps import after_comfyui, after_diffusers, after_sat, show
from cogvideox.errors import run_cli
from cogvideox.log import setup_logging


def main(argv: Sequence[str]) -> None:
    """Read, check, write. Raises: UserError for everything that the user can put right."""
    setup_logging("WARNING")
    parser = Parser(__doc__ or "")
    parser.add_argument("source", type=possible_path, help="run folder, iteration folder, .pt or .safetensors file")
    parser.add_argument("--to", required=True, choices=LAYOUT_CHOICES, help="who is to read it")
    parser.add_argument("--iteration", metavar="N", help="of a run folder, instead of its latest (500, 500-ema)")
    parser.add_argument("--base", type=possible_path, metavar="PATH", help="SAT checkpoint that the LoRA belongs to")
    parser.add_argument(
        "--alpha",
        type=positive,
        help="lora_alpha it was trained with, for files that don't say (scale is alpha / rank)",
    )
    add_output(parser)
    options = parser.parse_args(list(argv))
    adapter = open_adapter(options.source, options.iteration, options.alpha)
    print(f"{adapter.path}: {adapter.summary}")
    base = open_base(options.base) if options.base is not None else None
    for note in convert(adapter, options.to, options.output_path, base, options.dtype):
        print(f"note: {note}")
    print(f"wrote {options.output_path}")
    if options.to == "sat" and base is not None:
        show(after_sat(options.output_path, base.facts, base.path, lora=True))
    elif options.to != "sat":
        show((after_diffusers if options.to == "diffusers" else after_comfyui)(options.output_path))


if __name__ == "__main__":
    sys.exit(run_cli(main))
