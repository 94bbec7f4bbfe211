"""What a transformer's tensor names and shapes say: its sizes, positions, LoRA, and which published model
it is.

Names here are relative: without the prefix `model.diffusion_model.`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Size

from cogvideox.errors import CheckpointError
from cogvideox.released import FAMILIES, Family

TRANSFORMER_PREFIX = "model.diffusion_model."
# Added to the tokens: 2B's fixed sin/cos table, or the learned table of 5B-I2V.
POSITION_TABLE = "mixins.pos_embed.pos_embedding"
# What only rotary models store: the tables of 1.0, and SAT's own position embeddings, which nothing reads.
ROTARY_SIGNS = (
    "mixins.pos_embed.freqs_sin",
    "mixins.pos_embed.freqs_cos",
    "transformer.position_embeddings.weight",
)

_PATCH = "mixins.patch_embed.proj.weight"
_TEXT = "mixins.patch_embed.text_proj.weight"
_FINAL = "mixins.final_layer.linear.weight"
_TIME = "time_embed.0.weight"
_OFS = "ofs_embed.0.weight"
_QUERY_NORM = "mixins.adaln_layer.query_layernorm_list.0.weight"
_LAYER = re.compile(r"transformer\.layers\.(\d+)\.")
_ADAPTER = re.compile(r"transformer\.layers\.(\d+)\.attention\.(query_key_value|dense)\.matrix_A\.\d+$")
_HEAD_DIM = 64  # of every published model; used when there is no query norm to read it from
_LATENT_CHANNELS = 16  # of every published VAE; splits a flat patch weight into patch volume and channels
_SPATIAL_PATCH = 2


@dataclass(frozen=True)
class TransformerFacts:
    """Sizes of a transformer, read from shapes. The text length and the grid are missing: no shape says."""

    hidden_size: int
    num_layers: int
    head_dim: int
    qk_norm: bool
    patch_size: tuple[int, int, int]  # frames, height, width
    in_channels: int
    out_channels: int
    text_width: int
    time_embed_dim: int
    rotary: bool
    table_length: int | None  # tokens of the additive position table, text included
    ofs_embed_dim: int | None
    lora_rank: int | None

    @property
    def num_heads(self) -> int:
        return self.hidden_size // self.head_dim

    @property
    def learned_table(self) -> bool:
        """Whether the position table is a weight (5B-I2V), not the fixed one of 2B."""
        return self.rotary and self.table_length is not None

    @property
    def family(self) -> Family | None:
        """The published model with these sizes, None for any other."""
        sizes, nearest = (self.hidden_size, self.num_layers), self.nearest
        return nearest if nearest and sizes == (nearest.hidden_size, nearest.num_layers) else None

    @property
    def nearest(self) -> Family | None:
        """The published model of the same architecture, whatever its width and depth."""
        return next((family for family in FAMILIES if family.architecture == self.architecture), None)

    @property
    def architecture(self) -> tuple[object, ...]:
        """What tells the published models apart, sizes aside."""
        image_input = self.in_channels > self.out_channels
        return (self.rotary, self.learned_table, self.patch_size[0], image_input, self.ofs_embed_dim is not None)

    @property
    def suitable_yaml(self) -> str:
        """What to start from, for messages."""
        if self.family is not None:
            return self.family.yaml
        return f"the YAML that it was trained with (like {self.nearest.yaml})" if self.nearest else "its own YAML"

    @property
    def summary(self) -> str:
        """E.g. `CogVideoX-2B (hidden size 1920, 30 layers, sin/cos positions, 16 input channels)`."""
        like = f"{self.nearest.name} layout of another size" if self.nearest else "CogVideoX of another layout"
        name = self.family.name if self.family else like
        # A table without a sign of rotations is 2B's, or a learned one whose file lacks the signs.
        positions = "rotary" if self.rotary else "sin/cos" if self.nearest else "sin/cos or learned"
        positions += " and learned" if self.learned_table else ""
        frames = f", patches of {self.patch_size[0]} frames" if self.patch_size[0] > 1 else ""
        ofs = f", ofs_embed_dim {self.ofs_embed_dim}" if self.ofs_embed_dim is not None else ""
        return (
            f"{name} (hidden size {self.hidden_size}, {self.num_layers} layers, {positions} positions, "
            f"{self.in_channels} input channels{frames}{ofs})"
        )


def is_rotary(names: Collection[str]) -> bool:
    """Whether relative names are those of a rotary model: it stores a sign of it, or has no table to add."""
    return any(name in names for name in ROTARY_SIGNS) or POSITION_TABLE not in names


def has_learned_table(names: Collection[str]) -> bool:
    """Whether relative names hold a position table that is a weight."""
    return POSITION_TABLE in names and is_rotary(names)


def read_facts(shapes: Mapping[str, Size], source: str = "the checkpoint") -> TransformerFacts:
    """Derive the sizes from relative names and shapes.

    Raises: CheckpointError when the names are not those of a CogVideoX transformer, or are not complete.
    """
    for name in (_PATCH, _TEXT, _FINAL, _TIME):
        if name not in shapes:
            hint = " (it is in diffusers' layout)" if any("transformer_blocks." in key for key in shapes) else ""
            first = ", ".join(list(shapes)[:3]) or "none"
            raise CheckpointError(
                f"{source} is not a CogVideoX transformer in SAT layout{hint}: no {name}; names: {first}"
            )
    patch, final = shapes[_PATCH], shapes[_FINAL]
    layers = {int(match.group(1)) for name in shapes if (match := _LAYER.match(name))}
    patch_size, in_channels, out_channels = _patch_facts(patch, final)
    return TransformerFacts(
        hidden_size=patch[0],
        num_layers=len(layers),
        head_dim=shapes[_QUERY_NORM][0] if _QUERY_NORM in shapes else _HEAD_DIM,
        qk_norm=_QUERY_NORM in shapes,
        patch_size=patch_size,
        in_channels=in_channels,
        out_channels=out_channels,
        text_width=shapes[_TEXT][1],
        time_embed_dim=shapes[_TIME][0],
        rotary=is_rotary(shapes),
        table_length=shapes[POSITION_TABLE][1] if POSITION_TABLE in shapes else None,
        ofs_embed_dim=shapes[_OFS][1] if _OFS in shapes else None,
        lora_rank=next((shape[0] for name, shape in shapes.items() if _ADAPTER.match(name)), None),
    )


def _patch_facts(patch: Size, final: Size) -> tuple[tuple[int, int, int], int, int]:
    """(patch size, input channels, output channels) from the first and the last weight."""
    if len(patch) == 4:
        volume = patch[2] * patch[3]
        return (1, patch[2], patch[3]), patch[1], final[0] // volume
    volume = final[0] // _LATENT_CHANNELS
    frames = max(volume // _SPATIAL_PATCH**2, 1)
    return (frames, _SPATIAL_PATCH, _SPATIAL_PATCH), patch[1] // max(volume, 1), _LATENT_CHANNELS
