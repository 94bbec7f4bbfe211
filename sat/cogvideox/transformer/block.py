"""The arithmetic of one transformer block, as functions of modules and tensors only.

No process groups, no masks, no values read back to the host: the whole block is one graph for torch.compile, and the
same compiled code serves every layer.

Letters: b batch, l text tokens, v video tokens, s = l + v (text first), d hidden, n heads, h head width,
e time embedding width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogvideox.transformer.modulation import Modulation, modulate
from cogvideox.transformer.rotary import rotate

# Shift, scale and gate of the video for attention and for the MLP, then the same six of the text.
NUM_CHUNKS = 12


def transformer_block(
    layer: Any,
    modulation: Modulation,
    query_norm: nn.LayerNorm | None,
    key_norm: nn.LayerNorm | None,
    num_heads: int,
    text: Tensor,
    video: Tensor,
    conditioning: Tensor,
    rotation: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One block: joint attention over text and video, then the MLP, each with its own modulation for the two.

    Args:
        layer: a SAT BaseTransformerLayer (input_layernorm, attention, post_attention_layernorm, mlp).
        text, video: the residual streams [b, l, d] and [b, v, d]; kept apart, so that no residual is concatenated.
        conditioning: [b, e], the SiLU of the time embedding.
        rotation: of queries and keys, [2, s, 1, h/2, 2] fp32 (see rotary.rotate); None for none.

    Returns:
        The new text [b, l, d] and video [b, v, d].
    """
    chunks = modulation.chunks(conditioning)
    lengths = [text.shape[1], video.shape[1]]

    tokens = joint_modulated_norm(layer.input_layernorm, text, video, chunks[6:8], chunks[0:2])
    tokens = joint_attention(layer.attention, query_norm, key_norm, num_heads, tokens, rotation)
    text_out, video_out = tokens.split(lengths, dim=1)
    text = torch.addcmul(text, chunks[8], text_out)
    video = torch.addcmul(video, chunks[2], video_out)

    tokens = joint_modulated_norm(layer.post_attention_layernorm, text, video, chunks[9:11], chunks[3:5])
    tokens = layer.mlp.dense_4h_to_h(F.gelu(layer.mlp.dense_h_to_4h(tokens), approximate="tanh"))
    text_out, video_out = tokens.split(lengths, dim=1)
    return torch.addcmul(text, chunks[11], text_out), torch.addcmul(video, chunks[5], video_out)


def joint_modulated_norm(
    norm: nn.LayerNorm, text: Tensor, video: Tensor, text_modulation: Any, video_modulation: Any
) -> Tensor:
    """LayerNorm and modulation of both streams as one [b, s, d]; a modulation is (shift, scale), each [b, 1, d]."""
    return torch.cat([modulate(norm(text), *text_modulation), modulate(norm(video), *video_modulation)], dim=1)


def joint_attention(
    attention: Any,
    query_norm: nn.LayerNorm | None,
    key_norm: nn.LayerNorm | None,
    num_heads: int,
    tokens: Tensor,
    rotation: Tensor | None = None,
) -> Tensor:
    """Full self-attention over [b, s, d] with LayerNorm on each head's queries and keys, and then their rotation."""
    query, key, value = (
        part.unflatten(-1, (num_heads, -1)) for part in attention.query_key_value.forward_parts(tokens, 3)
    )
    if query_norm is not None and key_norm is not None:
        query, key = query_norm(query), key_norm(key)
    if rotation is not None:
        query, key = rotate(query, rotation), rotate(key, rotation)
    mixed = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return attention.dense(mixed.transpose(1, 2).flatten(2))
