"""Names and layouts of the transformer's tensors in SAT checkpoints and in diffusers' CogVideoXTransformer3DModel.

RULES is the one table for both directions. SAT keeps some tensors whole that diffusers holds in pieces (q, k and v; the
modulation of a block), so a conversion turns one tensor into several or several into one. Conversions are lists of
steps that name what they read and write, so that a tool can stream a checkpoint tensor by tensor:

    for step in to_diffusers(state):
        for name, tensor in zip(step.targets, step.run([state[source] for source in step.sources])):
            ...

Names are those inside the transformer, without SAT's prefix `model.diffusion_model.`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Size, Tensor

from cogvideox.errors import CheckpointError
from cogvideox.weights.families import POSITION_TABLE, ROTARY_SIGNS, has_learned_table

_WHOLE = ((0,),)


@dataclass(frozen=True)
class Rule:
    """One stored tensor of SAT and the diffusers tensors made of it. {i} is a layer, {p} weight or bias.

    chunks: for each diffusers tensor, which of SAT's equal chunks along dimension 0 it holds, in order.
    optional: not every family has it.
    """

    sat: str
    diffusers: tuple[str, ...]
    chunks: tuple[tuple[int, ...], ...] = _WHOLE
    optional: bool = False

    @property
    def num_chunks(self) -> int:
        """Equal chunks that SAT's tensor consists of."""
        return sum(len(chosen) for chosen in self.chunks)


_BLOCK = "transformer_blocks.{i}"
RULES = (
    Rule("mixins.patch_embed.proj.{p}", ("patch_embed.proj.{p}",)),
    Rule("mixins.patch_embed.text_proj.{p}", ("patch_embed.text_proj.{p}",)),
    Rule(POSITION_TABLE, ("patch_embed.pos_embedding",), optional=True),
    Rule("time_embed.0.{p}", ("time_embedding.linear_1.{p}",)),
    Rule("time_embed.2.{p}", ("time_embedding.linear_2.{p}",)),
    Rule("ofs_embed.0.{p}", ("ofs_embedding.linear_1.{p}",), optional=True),
    Rule("ofs_embed.2.{p}", ("ofs_embedding.linear_2.{p}",), optional=True),
    Rule("transformer.layers.{i}.input_layernorm.{p}", (f"{_BLOCK}.norm1.norm.{{p}}",)),
    Rule("transformer.layers.{i}.post_attention_layernorm.{p}", (f"{_BLOCK}.norm2.norm.{{p}}",)),
    Rule(
        "transformer.layers.{i}.attention.query_key_value.{p}",
        (f"{_BLOCK}.attn1.to_q.{{p}}", f"{_BLOCK}.attn1.to_k.{{p}}", f"{_BLOCK}.attn1.to_v.{{p}}"),
        chunks=((0,), (1,), (2,)),
    ),
    Rule("transformer.layers.{i}.attention.dense.{p}", (f"{_BLOCK}.attn1.to_out.0.{{p}}",)),
    Rule("transformer.layers.{i}.mlp.dense_h_to_4h.{p}", (f"{_BLOCK}.ff.net.0.proj.{{p}}",)),
    Rule("transformer.layers.{i}.mlp.dense_4h_to_h.{p}", (f"{_BLOCK}.ff.net.2.{{p}}",)),
    Rule("mixins.adaln_layer.query_layernorm_list.{i}.{p}", (f"{_BLOCK}.attn1.norm_q.{{p}}",), optional=True),
    Rule("mixins.adaln_layer.key_layernorm_list.{i}.{p}", (f"{_BLOCK}.attn1.norm_k.{{p}}",), optional=True),
    Rule(
        # Shift, scale, gate: of the video for attention, of the video for the MLP, then both of the text.
        "mixins.adaln_layer.adaLN_modulations.{i}.1.{p}",
        (f"{_BLOCK}.norm1.linear.{{p}}", f"{_BLOCK}.norm2.linear.{{p}}"),
        chunks=((0, 1, 2, 6, 7, 8), (3, 4, 5, 9, 10, 11)),
    ),
    Rule("transformer.final_layernorm.{p}", ("norm_final.{p}",)),
    Rule("mixins.final_layer.norm_final.{p}", ("norm_out.norm.{p}",)),
    Rule("mixins.final_layer.adaLN_modulation.1.{p}", ("norm_out.linear.{p}",)),
    Rule("mixins.final_layer.linear.{p}", ("proj_out.{p}",)),
)
# diffusers computes rotary tables itself, and SAT's own position table, which rotary models store, is never read.
# 2B's fixed sin/cos table stays behind too; 5B-I2V has a learned one under the same name, which does not.
NOT_IN_DIFFUSERS = ROTARY_SIGNS
PATCH_WEIGHTS = ("mixins.patch_embed.proj.weight", "patch_embed.proj.weight")


@dataclass(frozen=True)
class Step:
    """Part of a conversion: `run` takes the tensors of `sources` and returns those of `targets`, in order.

    `shapes` does the same with shapes, without computing.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    run: Callable[[Sequence[Tensor]], list[Tensor]]
    shapes: Callable[[Sequence[Size]], list[Size]]


def to_diffusers(names: Iterable[str], patch_size: tuple[int, int, int] = (1, 2, 2)) -> list[Step]:
    """Steps from SAT's names to diffusers', in the order given.

    Raises:
        CheckpointError: a name that SAT's transformer does not have.
    """
    present = list(names)
    left_out = NOT_IN_DIFFUSERS if has_learned_table(present) else (*NOT_IN_DIFFUSERS, POSITION_TABLE)
    return [_sat_step(name, patch_size) for name in present if name not in left_out]


def to_sat(names: Iterable[str], patch_size: tuple[int, int, int] = (1, 2, 2)) -> list[Step]:
    """Steps from diffusers' names to SAT's. Tables that are computed are not among them: the model fills in its own.

    Raises:
        CheckpointError: a name that diffusers' transformer does not have, or a piece without its siblings.
    """
    present = dict.fromkeys(names)
    steps: dict[str, Step] = {}
    for name in present:
        rule, fields = find_rule(RULES, name, "diffusers")
        target = rule.sat.format(**fields)
        sources = tuple(template.format(**fields) for template in rule.diffusers)
        absent = [source for source in sources if source not in present]
        if absent:
            raise CheckpointError(f"the diffusers transformer holds {name} but not {absent[0]}; {target} needs both")
        run, shapes = partial(_join, rule, target, patch_size), partial(_join_shapes, rule, target, patch_size)
        steps.setdefault(target, Step(sources, (target,), run, shapes))
    return list(steps.values())


def convert_state(state: Mapping[str, Tensor], steps: Iterable[Step]) -> Iterator[tuple[str, Tensor]]:
    """Run steps over a state dict (or any mapping that loads on access), one at a time."""
    for step in steps:
        yield from zip(step.targets, step.run([state[source] for source in step.sources]), strict=True)


def find_rule(rules: Iterable[Rule], name: str, family: str) -> tuple[Rule, dict[str, str]]:
    """The rule that covers a name of `family` ("SAT" or "diffusers"), and what its placeholders stand for.

    Raises:
        CheckpointError: no rule does.
    """
    for rule in rules:
        for template in (rule.sat,) if family == "SAT" else rule.diffusers:
            match = _pattern(template).fullmatch(name)
            if match:
                return rule, match.groupdict()
    raise CheckpointError(f"{name!r} is no tensor of a CogVideoX transformer in {family}'s naming")


def fit_patch_weight(weight: Tensor, patch_size: tuple[int, int, int]) -> Tensor:
    """A patch projection in its family's layout: [d, c, ph, pw] when pt is 1, else [d, c * pt * ph * pw].

    Both hold the same numbers in the same order (c, pt, ph, pw).

    Raises:
        CheckpointError: the weight does not divide into such patches.
    """
    return weight.reshape(_patch_shape(weight.shape, patch_size))


def _patch_shape(shape: Size, patch_size: tuple[int, int, int]) -> Size:
    frames, height, width = patch_size
    volume = frames * height * width
    if len(shape) not in (2, 4) or shape[1:].numel() % volume:
        raise CheckpointError(
            f"the patch projection has shape {tuple(shape)}, which is not made of patches {patch_size}"
        )
    columns = shape[1:].numel()
    return Size((shape[0], columns // volume, height, width) if frames == 1 else (shape[0], columns))


def _sat_step(name: str, patch_size: tuple[int, int, int]) -> Step:
    rule, fields = find_rule(RULES, name, "SAT")
    targets = tuple(template.format(**fields) for template in rule.diffusers)
    run, shapes = partial(_split, rule, name, patch_size), partial(_split_shapes, rule, name, patch_size)
    return Step((name,), targets, run, shapes)


def _split(rule: Rule, name: str, patch_size: tuple[int, int, int], tensors: Sequence[Tensor]) -> list[Tensor]:
    (whole,) = tensors
    if name in PATCH_WEIGHTS:
        return [fit_patch_weight(whole, patch_size)]
    if rule.chunks == _WHOLE:
        return [whole]
    _check_rows(name, whole.shape, rule.num_chunks)
    pieces = whole.chunk(rule.num_chunks)
    return [torch.cat([pieces[index] for index in chosen]) for chosen in rule.chunks]


def _split_shapes(rule: Rule, name: str, patch_size: tuple[int, int, int], shapes: Sequence[Size]) -> list[Size]:
    (whole,) = shapes
    if name in PATCH_WEIGHTS:
        return [_patch_shape(whole, patch_size)]
    if rule.chunks == _WHOLE:
        return [whole]
    _check_rows(name, whole, rule.num_chunks)
    rows = whole[0] // rule.num_chunks
    return [Size((rows * len(chosen), *whole[1:])) for chosen in rule.chunks]


def _join(rule: Rule, target: str, patch_size: tuple[int, int, int], tensors: Sequence[Tensor]) -> list[Tensor]:
    if target in PATCH_WEIGHTS:
        return [fit_patch_weight(tensors[0], patch_size)]
    if rule.chunks == _WHOLE:
        return list(tensors)
    pieces: dict[int, Tensor] = {}
    for chosen, tensor in zip(rule.chunks, tensors, strict=True):
        _check_rows(f"a part of {target}", tensor.shape, len(chosen))
        pieces.update(zip(chosen, tensor.chunk(len(chosen)), strict=True))
    return [torch.cat([pieces[index] for index in sorted(pieces)])]


def _join_shapes(rule: Rule, target: str, patch_size: tuple[int, int, int], shapes: Sequence[Size]) -> list[Size]:
    if target in PATCH_WEIGHTS:
        return [_patch_shape(shapes[0], patch_size)]
    if rule.chunks == _WHOLE:
        return list(shapes)
    for chosen, shape in zip(rule.chunks, shapes, strict=True):
        _check_rows(f"a part of {target}", shape, len(chosen))
    return [Size((sum(shape[0] for shape in shapes), *shapes[0][1:]))]


def _check_rows(name: str, shape: Size, parts: int) -> None:
    if shape[0] % parts:
        raise CheckpointError(f"{name} has {shape[0]} rows, which are not {parts} equal parts")


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{p\}", r"(?P<p>weight|bias)"))
