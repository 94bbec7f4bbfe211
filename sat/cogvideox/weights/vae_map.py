"""Names of the VAE's tensors in SAT checkpoints and in diffusers' AutoencoderKLCogVideoX.

Tensors are equal in both, only names differ: one table serves both directions. The decoder's stages are numbered
by level in SAT (0 is the full resolution) and by order of execution in diffusers (0 is the smallest): mirrored.
"""

from __future__ import annotations

import re

from cogvideox.errors import CheckpointError

NUM_LEVELS = 4  # stages of the released VAE; spatial compression is 2 ** (NUM_LEVELS - 1)

# (SAT, diffusers). {n}: a number kept as it is; {m}: one less in diffusers; {r}: mirrored over the levels.
BLOCK_RULES = (
    ("encoder.down.{n}.block.{n}.", "encoder.down_blocks.{n}.resnets.{n}."),
    ("encoder.down.{n}.downsample.", "encoder.down_blocks.{n}.downsamplers.0."),
    ("encoder.mid.block_{m}.", "encoder.mid_block.resnets.{m}."),
    ("encoder.conv_in.", "encoder.conv_in."),
    ("encoder.norm_out.", "encoder.norm_out."),
    ("encoder.conv_out.", "encoder.conv_out."),
    ("decoder.up.{r}.block.{n}.", "decoder.up_blocks.{r}.resnets.{n}."),
    ("decoder.up.{r}.upsample.", "decoder.up_blocks.{r}.upsamplers.0."),
    ("decoder.mid.block_{m}.", "decoder.mid_block.resnets.{m}."),
    ("decoder.conv_in.", "decoder.conv_in."),
    ("decoder.norm_out.", "decoder.norm_out."),
    ("decoder.conv_out.", "decoder.conv_out."),
)
LEAF_RULES = (("nin_shortcut.", "conv_shortcut."),)
_LEAF = re.compile(
    r"(?:(?:norm[12]|conv[12]|nin_shortcut|conv_shortcut|norm_layer|conv_y|conv_b|conv)\.)*(?:weight|bias)"
)
_SAT, _DIFFUSERS = 0, 1


def sat_to_diffusers(name: str, num_levels: int = NUM_LEVELS) -> str:
    """Name in diffusers for a name in SAT. Raises: CheckpointError that names an unknown key."""
    return _translate(name, num_levels, _SAT, _DIFFUSERS)


def diffusers_to_sat(name: str, num_levels: int = NUM_LEVELS) -> str:
    """Name in SAT for a name in diffusers. Raises: CheckpointError that names an unknown key."""
    return _translate(name, num_levels, _DIFFUSERS, _SAT)


def _translate(name: str, num_levels: int, source: int, target: int) -> str:
    for rule in BLOCK_RULES:
        match = re.match(_pattern(rule[source]), name)
        if match is None:
            continue
        leaf = name[match.end() :]
        foreign = any(leaf.startswith(pair[target]) for pair in LEAF_RULES)
        if foreign or not _LEAF.fullmatch(leaf):
            break
        kinds = re.findall(r"\{(\w)\}", rule[source])
        numbers = [
            _shift(kind, int(text), num_levels, target) for kind, text in zip(kinds, match.groups(), strict=True)
        ]
        if min(numbers, default=0) < 0:
            break
        for pair in LEAF_RULES:
            leaf = leaf.replace(pair[source], pair[target])
        return re.sub(r"\{\w\}", "{}", rule[target]).format(*numbers) + leaf
    family = ("SAT", "diffusers")[source]
    raise CheckpointError(f"{name!r} is no tensor of a CogVideoX VAE with {num_levels} levels in {family}'s naming")


def _pattern(template: str) -> str:
    return re.sub(r"\\\{\w\\\}", r"(\\d+)", re.escape(template))


def _shift(kind: str, number: int, num_levels: int, target: int) -> int:
    if kind == "r":
        return num_levels - 1 - number
    if kind == "m":
        return number - 1 if target == _DIFFUSERS else number + 1
    return number
