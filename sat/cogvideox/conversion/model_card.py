"""The README.md of a result: what it was made from, how it was trained, how to load it, and its licence.

It is a model card as the Hugging Face hub reads them. A README.md that is there already is somebody's work and stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cogvideox.config.load import load_config
from cogvideox.config.schema import Config
from cogvideox.conversion.licences import copy_licence, find_licence_file, licence_of
from cogvideox.errors import ConfigError
from cogvideox.released import COGVIDEOX_2B, FAMILIES, Clip, Family
from cogvideox.weights.base import LoraFacts
from cogvideox.weights.families import TransformerFacts
from cogvideox.weights.run_config import trained_config

CARD = "README.md"
Kind = Literal["pipeline", "transformer", "vae", "lora", "comfyui", "sat", "original"]
_WHAT = {
    "pipeline": "A diffusers pipeline",
    "transformer": "A transformer for diffusers",
    "vae": "A VAE for diffusers",
    "lora": "A LoRA for diffusers",
    "comfyui": "A LoRA for ComfyUI",
    "sat": "Weights in the layout of SwissArmyTransformer (SAT)",
    "original": "Weights and YAML for the original CogVideoX program",
}
# Class of a part that is exported alone, and the pipeline's argument for it.
_PARTS = {
    "transformer": ("CogVideoXTransformer3DModel", "transformer"),
    "vae": ("AutoencoderKLCogVideoX", "vae"),
}


_DIFFUSERS_TEXT_LENGTH = 226  # of its pipelines, where none is given


@dataclass(frozen=True)
class Card:
    """What is known of a result.

    family: the released model that it was made from; like: the one of its architecture, whatever its size.
    facts: rows of its table; clip: what it was trained on; licence_file: the base's, to be copied.
    """

    kind: Kind
    family: Family | None
    like: Family
    lora: LoraFacts | None
    facts: Mapping[str, str] = field(default_factory=dict)
    licence_file: Path | None = None
    clip: Clip | None = None
    text_length: int | None = None  # tokens; None: as the released model

    @property
    def hub_name(self) -> str | None:
        """Of the base model."""
        return self.family.hub_name if self.family is not None else None

    def text(self, folder_name: str) -> str:
        """The whole file. folder_name: of the result, as the loading code names it."""
        from huggingface_hub import ModelCardData

        base = self.hub_name or "a CogVideoX of another size"
        lines = [f"# {folder_name}", "", f"{_WHAT[self.kind]}, made from {base}.", ""]
        if self.facts:
            lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in self.facts.items()), ""]
        lines += ["## Use", "", *self._usage(folder_name), "", "## Licence", "", *self._licence(), ""]
        lines += ["`conversion.json` lists the files of this folder with their hashes.", ""]
        header = ModelCardData(**self._header()).to_yaml(line_break="\n")
        return f"---\n{header}\n---\n\n" + "\n".join(lines)

    def _header(self) -> dict[str, Any]:
        image = self.like.image_input
        known: dict[str, Any] = {
            "pipeline_tag": "image-to-video" if image else "text-to-video",
            "tags": ["cogvideox", *(["lora"] if self.lora is not None else [])],
        }
        if self.kind in ("pipeline", "transformer", "vae", "lora"):
            known["library_name"] = "diffusers"
        if self.family is not None:
            licence = licence_of(self.family)
            known |= {"base_model": self.hub_name, "license": licence.identifier}
            if licence.identifier == "other":
                known |= {"license_name": "cogvideox-license", "license_link": licence.link}
        return known

    def _licence(self) -> list[str]:
        if self.family is None:
            return ["These weights stay under the licence of the weights that they were made from."]
        licence = licence_of(self.family)
        text = "beside this file" if self.licence_file is not None else f"at {licence.link}"
        return [
            f"[{self.hub_name}](https://huggingface.co/{self.hub_name}) is under the {licence.name}, and so are "
            f"weights that are made from it. {licence.asks} The text is {text}."
        ]

    def _usage(self, name: str) -> list[str]:
        if self.kind == "comfyui":
            return ["Put the `.safetensors` file into `ComfyUI/models/loras`. Strength 1.0 is as trained."]
        if self.kind == "original":
            return ["`python sample_video.py --base model.yaml inference.yaml`, in the folder `sat/` of the original."]
        if self.kind == "sat":
            prompt = "a ship at sea@@ship.png" if self.like.image_input else "a ship at sea"
            yaml = self.family.yaml if self.family is not None else "MODEL.yaml"
            yaml = yaml.replace(".yaml", "_lora.yaml") if self.lora is not None else yaml
            command = (
                f"bash inference.sh {yaml} {self.like.sampling_yaml} args.load={name} 'args.prompts=[\"{prompt}\"]'"
            )
            return ["With the framework that wrote it:", "", "```bash", command, "```"]
        return ["```python", *self.snippet(name), "```"]

    def snippet(self, name: str) -> list[str]:
        """Python that makes a video with diffusers."""
        image, dtype = self.like.image_input, "bfloat16" if self.like.rotary else "float16"
        pipeline = "CogVideoXImageToVideoPipeline" if image else "CogVideoXPipeline"
        clip = self.clip or self.like.generation.clip
        start = ' image=load_image("ship.png"),' if image else ""
        base = self.hub_name or "PIPELINE"
        tokens = self.text_length or self.like.generation.text_length
        length = f" max_sequence_length={tokens}," if tokens != _DIFFUSERS_TEXT_LENGTH else ""
        lines = [
            "import torch",
            f"from diffusers import {', '.join(sorted([*_PARTS.get(self.kind, ())[:1], pipeline]))}",
            f"from diffusers.utils import export_to_video{', load_image' if image else ''}",
            "",
            'device = "cuda" if torch.cuda.is_available() else "cpu"',
            f'dtype = torch.{dtype} if device == "cuda" else torch.float32',
        ]
        if self.kind == "pipeline":
            lines.append(f'pipe = {pipeline}.from_pretrained("{name}", torch_dtype=dtype)')
        elif self.kind in _PARTS:
            part, argument = _PARTS[self.kind]
            lines.append(f'{argument} = {part}.from_pretrained("{name}", torch_dtype=dtype)')
            lines.append(f'pipe = {pipeline}.from_pretrained("{base}", {argument}={argument}, torch_dtype=dtype)')
        else:
            lines.append(f'pipe = {pipeline}.from_pretrained("{base}", torch_dtype=dtype)')
        if self.lora is not None and self.kind in ("lora", "pipeline"):
            lines.append(f'pipe.load_lora_weights("{name}")  # weight 1.0 is as trained')
        return [
            *lines,
            "pipe.to(device)  # less memory, slower: pipe.enable_model_cpu_offload()",
            "pipe.vae.enable_tiling()",
            "video = pipe(",
            f'    prompt="a ship at sea",{start}',
            f"    height={clip.height}, width={clip.width}, num_frames={clip.frames},",
            f"    num_inference_steps=50, guidance_scale=6.0, use_dynamic_cfg=True,{length}",
            ").frames[0]",
            f'export_to_video(video, "ship.mp4", fps={clip.fps:g})',
        ]


def card_of(
    weights: Path,
    facts: TransformerFacts | Family | None,
    lora: LoraFacts | None,
    *,
    kind: Kind,
    files: Iterable[Path] = (),
    more: Mapping[str, str] | None = None,
    text_length: int | None = None,
) -> Card:
    """The card of a result.

    Args:
        weights: the weight file that it is made of; the run around it says how it was trained.
        facts: of the model, if known.
        files: all weight files, the base's last; a licence is looked for beside them.
        more: further rows of the table.
        text_length: tokens per caption, where it isn't the released model's.
    """
    family, like = (facts.family, facts.nearest) if isinstance(facts, TransformerFacts) else (facts, facts)
    rows: dict[str, str] = {}
    if lora is not None:
        rows["LoRA"] = f"rank {lora.rank}, alpha {lora.alpha:g} (scale {lora.scaling:g})"
    config = _run_config(weights)
    rows |= {**_training(weights, config), **(more or {})}
    data = None if config is None else config.data
    clip = None if data is None else Clip(data.max_num_frames, *data.video_size, data.fps)
    return Card(
        kind, family, like or COGVIDEOX_2B, lora, rows, find_licence_file(files or [weights]), clip, text_length
    )


def family_named(base: Mapping[str, Any]) -> Family | None:
    """The released model that an adapter's record of its base describes; None for none or another."""
    model = base.get("model") or {}
    return next((each for each in FAMILIES if str(model.get("name", "")).partition(" (")[0] == each.name), None)


def write_card(folder: Path, card: Card, name: str) -> None:
    """Write README.md and the licence of the base into a folder; what is there already stays.

    name: of the folder when it is finished.
    """
    copy_licence(card.licence_file, folder)
    if not (folder / CARD).exists():
        (folder / CARD).write_text(card.text(name), encoding="utf-8")


def _run_config(weights: Path) -> Config | None:
    """The configuration of the run that wrote these weights; None for others, and for one of another version."""
    file = trained_config(weights)
    if file is None:
        return None
    try:
        return load_config([str(file)], [], "train", allow_unknown=True, partial=True)
    except ConfigError:
        return None  # the tool itself says so where it matters


def _training(weights: Path, config: Config | None) -> dict[str, str]:
    """What a run's folder says of the training; nothing for weights that lie elsewhere."""
    if config is None or config.data is None:
        return {}
    rows = {}
    steps = weights.parent.name.partition("-")[0]
    if steps.isdigit():
        rows["steps"] = steps
    clips = _summary(weights.absolute().parent.parent).get("training_clips")
    if isinstance(clips, int):
        rows["training clips"] = str(clips)
    data = config.data
    height, width = data.video_size
    rows["each of"] = f"{data.max_num_frames} frames, {height} x {width}, {data.fps:g} per second"
    return rows | {"learning rate": f"{config.deepspeed.optimizer_params['lr']:g}"}


def _summary(run: Path) -> dict[str, Any]:
    try:
        found = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
