"""A tiny CogVideoX family with random weights, on disk as users have it, and clips to train on.

`family` says which one's layout: "2b" (default), "5b", "5b_i2v", "1.5" or "1.5_i2v".

    <folder>/transformer/1/mp_rank_00_model_states.pt + latest      hidden 64, 2 layers
    <folder>/vae/3d-vae.pt     <folder>/t5/     <folder>/clips/*.mp4 + *.txt     <folder>/model.yaml

9 frames of 32 x 48 pixels at 8 fps: latents of 3 x 4 x 6 (1.5: padded to 4), 18 video tokens (1.5: 12) and 12 text
tokens. A training step takes about 20 ms. All weights are random and non-zero, so that nothing hides behind zero
initialisation.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import yaml
from torch import Tensor, nn

FRAMES, HEIGHT, WIDTH, FPS = 9, 32, 48, 8
TEXT_LENGTH, TEXT_WIDTH = 12, 16
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (40, 60, 220), "white": (240, 240, 240)}
MOTIONS = ("left", "right", "up", "down")
POSITIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "2b": ("SinCosPositionMixin", {}),
    "5b": ("RotaryPositionMixin", {}),
    "5b_i2v": ("RotaryPositionMixin", {"learnable_pos_embed": True}),
    "1.5": ("RotaryPositionMixin", {}),
    "1.5_i2v": ("RotaryPositionMixin", {}),
}
SIZES: dict[str, dict[str, Any]] = {
    "2b": {},
    "5b": {},
    "5b_i2v": {"in_channels": 32},
    "1.5": {"patch_size": [2, 2, 2]},
    "1.5_i2v": {"patch_size": [2, 2, 2], "in_channels": 32, "ofs_embed_dim": 32},
}
WORDS = ("a", "square", "moves", *COLOURS, *MOTIONS)


@dataclass(frozen=True)
class TinyFamily:
    """Paths of a family that `write_family` made."""

    folder: Path

    @property
    def transformer(self) -> Path:
        return self.folder / "transformer"

    @property
    def vae(self) -> Path:
        return self.folder / "vae" / "3d-vae.pt"

    @property
    def t5(self) -> Path:
        return self.folder / "t5"

    @property
    def clips(self) -> Path:
        return self.folder / "clips"

    @property
    def model_yaml(self) -> Path:
        return self.folder / "model.yaml"


FamilyOf = Callable[[str], TinyFamily]  # the fixture of tests/conftest.py


def write_family(
    folder: Path, num_clips: int = 8, dtype: torch.dtype = torch.float32, family: str = "2b"
) -> TinyFamily:
    """Make a whole family in an empty folder; about two seconds."""
    from cogvideox.config.targets import instantiate

    paths = TinyFamily(folder)
    write_t5(paths.t5)
    config = model_section(paths, family=family)
    vae = instantiate(_without_weights(config["first_stage_config"]))
    randomise(vae, seed=1)
    paths.vae.parent.mkdir(parents=True)
    torch.save({"state_dict": vae.state_dict()}, paths.vae)
    write_transformer(paths, dtype, family)
    write_clips(paths.clips, num_clips)
    paths.model_yaml.write_text(yaml.safe_dump({"model": config}, sort_keys=False))
    return paths


def write_transformer(paths: TinyFamily, dtype: torch.dtype = torch.float32, family: str = "2b") -> None:
    """The transformer of `write_family` alone."""
    from cogvideox.config.targets import instantiate
    from cogvideox.weights.sat_folder import write_checkpoint

    torch.manual_seed(2)
    transformer = instantiate(network_node(family=family), dtype=dtype)
    randomise(transformer, seed=2)
    names = {f"model.diffusion_model.{name}": each for name, each in transformer.state_dict().items()}
    write_checkpoint(paths.transformer, 1, names, {})


def model_section(paths: TinyFamily, lora: dict[str, Any] | None = None, family: str = "2b") -> dict[str, Any]:
    """The `model` section of the family's YAML."""
    image = {"noised_image_input": True, "noised_image_dropout": 0.05} if family.endswith("i2v") else {}
    if family == "1.5_i2v":
        image["image_latent_scale"] = 1.0
    return {
        "scale_factor": 1.15258426 if family == "2b" else 0.7,
        **image,
        "network_config": network_node(lora, family),
        "schedule_config": {
            "target": "cogvideox.diffusion.schedule.NoiseSchedule",
            "params": {"shift_scale": 3.0 if family == "2b" else 1.0},
        },
        "conditioner_config": {
            "target": "cogvideox.text.conditioner.Conditioner",
            "params": {
                "encoder": {
                    "target": "cogvideox.text.encoders.T5Encoder",
                    "params": {"model_dir": str(paths.t5), "max_length": TEXT_LENGTH},
                }
            },
        },
        "first_stage_config": {
            "target": "cogvideox.vae.autoencoder.VideoAutoencoder",
            "params": {
                "ckpt_path": str(paths.vae),
                "ch": 8,
                "ch_mult": [1, 1, 2, 2],
                "num_res_blocks": 1,
                "norm_num_groups": 4,
            },
        },
        "sampler_config": {
            "target": "cogvideox.diffusion.samplers.DPMpp2MSDESampler",
            "params": {
                "num_steps": 3,
                "guidance": {
                    "target": "cogvideox.diffusion.guidance.ConstantGuidance",
                    "params": {"scale": 2.0},
                },
            },
        },
    }


def network_node(lora: dict[str, Any] | None = None, family: str = "2b") -> dict[str, Any]:
    """The transformer's node, with adapters when `lora` holds their parameters."""
    room = "cogvideox.transformer."
    modules: dict[str, Any] = {
        "pos_embed_config": {"target": room + "positions." + POSITIONS[family][0], "params": POSITIONS[family][1]},
        "patch_embed_config": {
            "target": room + "patch_embed.PatchEmbedMixin",
            "params": {"text_hidden_size": TEXT_WIDTH},
        },
        "adaln_layer_config": {"target": room + "adaln.AdaLNMixin"},
        "final_layer_config": {"target": room + "final_layer.FinalLayerMixin"},
    }
    if lora is not None:
        modules["lora_config"] = lora_node(**lora)
    return {
        "target": room + "model.DiffusionTransformer",
        "params": {
            "hidden_size": 64,
            "num_layers": 2,
            "num_attention_heads": 2,
            "num_frames": FRAMES,
            "latent_height": HEIGHT // 8,
            "latent_width": WIDTH // 8,
            "time_embed_dim": 32,
            "text_length": TEXT_LENGTH,
            **SIZES[family],
            "modules": modules,
        },
    }


def lora_node(r: int = 4, lora_alpha: float = 4.0) -> dict[str, Any]:
    """The node of LoRA adapters."""
    return {"target": "cogvideox.transformer.lora.LoraMixin", "params": {"r": r, "lora_alpha": lora_alpha}}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing printed: what is made within a test, for it and others, stays out of the output that it looks at."""
    nothing = io.StringIO()  # never closed: log handlers that are made within keep it
    with contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        yield


def randomise(module: nn.Module, seed: int) -> None:
    """Weights of 1/sqrt(fan-in), norms near one, biases small: activations stay near one, nothing is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("pos_embedding") and not parameter.requires_grad:
                continue  # computed, and exports compute it again
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                value = noise / math.sqrt(parameter[0].numel())
            else:
                value = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
            parameter.copy_(value)


def _without_weights(vae_node: dict[str, Any]) -> dict[str, Any]:
    return {**vae_node, "params": {k: v for k, v in vae_node["params"].items() if k != "ckpt_path"}}


def write_t5(folder: Path) -> None:
    """A T5 encoder of one layer and a word-level tokenizer: a Hugging Face folder made without downloads."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    folder.mkdir(parents=True)
    vocabulary = {word: index for index, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = T5Config(vocab_size=len(vocabulary), d_model=TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    torch.manual_seed(3)
    T5EncoderModel(config).save_pretrained(folder)


def sample_overrides(family: TinyFamily, output: Path, **args: Any) -> list[str]:
    """Overrides of a short sampling run on the CPU; `args` are keys of its section, and win."""
    given = {
        "load": family.transformer,
        "output_dir": output,
        "sampling_image_size": [HEIGHT, WIDTH],
        "sampling_num_frames": 3,
        "device": "cpu",
        "num_steps": 2,
        **args,
    }
    return [f"args.{key}={'null' if value is None else value}" for key, value in given.items()]


def write_clips(folder: Path, count: int) -> None:
    """Squares of four colours that move in four directions, one second and a bit each, with captions."""
    folder.mkdir(parents=True)
    for index in range(count):
        colour, motion = list(COLOURS)[index % 4], MOTIONS[(index // 4) % 4]
        write_clip(folder / f"{index:02d}_{colour}_{motion}.mp4", square(COLOURS[colour], motion, index))
        caption = f"a {colour} square moves {motion}\n"
        (folder / f"{index:02d}_{colour}_{motion}.txt").write_text(caption, encoding="utf-8")


def square(colour: tuple[int, int, int], motion: str, seed: int, frames: int = 2 * FRAMES) -> np.ndarray:
    """uint8 [t, h, w, 3]."""
    generator = np.random.default_rng(seed)
    video = np.tile(generator.integers(0, 60, (1, HEIGHT, WIDTH, 3), dtype=np.uint8), (frames, 1, 1, 1))
    step = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}[motion]
    for t in range(frames):
        y = (HEIGHT // 3 + step[0] * t) % (HEIGHT - 10)
        x = (WIDTH // 3 + step[1] * t) % (WIDTH - 10)
        video[t, y : y + 10, x : x + 10] = colour
    return video


def write_clip(path: Path, video: np.ndarray, fps: int = FPS) -> None:
    """H.264 in mp4; video is uint8 [t, h, w, 3]."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = video.shape[2], video.shape[1], "yuv420p"
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def train_settings(paths: TinyFamily, save: Path, family: str = "2b") -> dict[str, Any]:
    """A short LoRA run on the family, as a tree for `write_yaml`; tests change what they are about."""
    model = model_section(paths, lora={}, family=family)
    model["not_trainable_prefixes"] = ["all"]
    return {
        "args": {
            "experiment_name": "tiny",
            "load": str(paths.transformer),
            "save": str(save),
            "train_data": [str(paths.clips)],
            "train_iters": 4,
            "save_interval": 1000,
            "log_interval": 1,
            "num_workers": 0,
            "device": "cpu",
        },
        "data": {
            "video_size": [HEIGHT, WIDTH],
            "fps": FPS,
            "max_num_frames": FRAMES,
            "skip_frms_num": 0.0,
            "reader": "pyav",
        },
        "model": model,
        "deepspeed": {
            "train_micro_batch_size_per_gpu": 2,
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}},
        },
    }


def write_yaml(path: Path, tree: dict[str, Any]) -> Path:
    """Write a configuration."""
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return path


def read_states(folder: Path) -> dict[str, Tensor]:
    """The tensors of the newest checkpoint in a run folder."""
    iteration = (folder / "latest").read_text().strip()
    content = torch.load(folder / iteration / "mp_rank_00_model_states.pt", weights_only=True)
    return content["module"]


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
