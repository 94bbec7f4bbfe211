"""Names of the VAE's tensors in SAT checkpoints and in diffusers' AutoencoderKLCogVideoX.

Tensors are equal in both, only names differ: one table serves both directions. The decoder's stages are numbered
by level in SAT (0 is the full resolution) and by order of execution in diffusers (0 is the smallest): mirrored.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

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
_NORMS = {"encoder": ("",), "decoder": ("norm_layer.", "conv_y.conv.", "conv_b.conv.")}  # the decoder's read the latent
_STAGES = {"encoder": ("down", "downsample"), "decoder": ("up", "upsample")}
_SHOWN = 4


def sat_to_diffusers(name: str, num_levels: int = NUM_LEVELS) -> str:
    """Name in diffusers for a name in SAT. Raises: CheckpointError that names an unknown key."""
    return _translate(name, num_levels, _SAT, _DIFFUSERS)


def diffusers_to_sat(name: str, num_levels: int = NUM_LEVELS) -> str:
    """Name in SAT for a name in diffusers. Raises: CheckpointError that names an unknown key."""
    return _translate(name, num_levels, _DIFFUSERS, _SAT)


def check_whole(shapes: Mapping[str, Sequence[int]], source: str) -> None:
    """Raises: CheckpointError that names what a VAE lacks, in SAT's or diffusers' names, or a name that is unknown.

    shapes: of every tensor. A program that opens a VAE with a hole may fill it at random.
    """
    is_foreign = any(".down_blocks." in name or ".up_blocks." in name for name in shapes)
    if is_foreign:
        levels = 1 + max(
            int(number) for name in shapes for number in re.findall(r"\.(?:down|up)_blocks\.(\d+)\.", name)
        )
        shapes = {diffusers_to_sat(name, levels): shape for name, shape in shapes.items()}
    absent = missing_vae_names(shapes)
    if absent:
        named = [sat_to_diffusers(name, levels) if is_foreign else name for name in absent[:_SHOWN]]
        more = f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
        raise CheckpointError(
            f"{source} is not a whole VAE: it lacks {len(absent)} of its tensors: {', '.join(named)}{more}"
        )


def missing_vae_names(shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """What SAT names and shapes lack of a VAE with as many levels, and blocks in a level, as the highest ones say."""
    levels = 1 + max(max(_numbers(shapes, rf"{half}\.{_STAGES[half][0]}"), default=0) for half in _STAGES)
    return [
        name
        for half in _STAGES
        for stem in _stems(half, levels, shapes)
        for name in (f"{stem}weight", f"{stem}bias")
        if name not in shapes
    ]


def _stems(half: str, levels: int, shapes: Mapping[str, Sequence[int]]) -> Iterator[str]:
    """Every layer of the encoder or decoder, up to `weight` and `bias`."""
    stages, way = _STAGES[half]
    yield f"{half}.conv_in.conv."
    blocks = range(1 + max(_numbers(shapes, rf"{half}\.{stages}\.\d+\.block"), default=0))
    for level in range(levels):
        for block in blocks:
            yield from _block_stems(half, f"{half}.{stages}.{level}.block.{block}.", shapes)
        if level != (levels - 1 if half == "encoder" else 0):  # the smallest and the full resolution
            yield f"{half}.{stages}.{level}.{way}.conv."
    for block in (1, 2):
        yield from _block_stems(half, f"{half}.mid.block_{block}.", shapes)
    yield from (f"{half}.norm_out.{part}" for part in _NORMS[half])
    yield f"{half}.conv_out.conv."


def _block_stems(half: str, block: str, shapes: Mapping[str, Sequence[int]]) -> Iterator[str]:
    yield from (f"{block}{norm}.{part}" for norm in ("norm1", "norm2") for part in _NORMS[half])
    yield from (f"{block}{conv}.conv." for conv in ("conv1", "conv2"))
    outputs, inputs = shapes.get(f"{block}conv1.conv.weight", (0, 0))[:2]
    if outputs != inputs:
        yield f"{block}nin_shortcut."


def _numbers(names: Collection[str], head: str) -> set[int]:
    """The numbers that come behind `head`, a regular expression."""
    return {int(match[1]) for name in names if (match := re.match(head + r"\.(\d+)\.", name))}


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
