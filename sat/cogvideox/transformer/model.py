"""The CogVideoX transformer as a SAT BaseModel composed of mixins.

Letters: b batch, f latent frames, c channels, y x latent height/width, l text tokens, e text width, v video tokens,
d hidden.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from sat.model.base_model import BaseModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cogvideox.config.targets import ComponentNode, instantiate
from cogvideox.errors import ConfigError, ShapeError
from cogvideox.transformer.linear import Linear
from cogvideox.transformer.sat_stack import build_transformer, own_random_state
from cogvideox.transformer.shape import NetworkShape, latent_frame_count, patch_triple
from cogvideox.transformer.timestep import sinusoidal_embedding

# Keys of `modules` in YAML, and the mixins' stored names. LoRA comes last: it wraps layers that exist by then.
_MIXINS = {
    "pos_embed_config": "pos_embed",
    "patch_embed_config": "patch_embed",
    "adaln_layer_config": "adaln_layer",
    "final_layer_config": "final_layer",
    "lora_config": "lora",
}
_OPTIONAL = {"lora_config"}


class DiffusionTransformer(BaseModel):
    """Predicts v from a noised latent, a timestep and text states.

    The mixins override SAT's hooks; `forward` calls the hooks in SAT's order but runs the layers itself, because SAT's
    own loop builds an attention mask and checkpoints by hand. Building draws its weights from torch's generator and
    leaves every generator, and torch.distributed, as it found them.

    Raises:
        ConfigError: sizes that do not divide, an illegal frame count, a missing or unknown entry of `modules`.
    """

    def __init__(
        self,
        hidden_size: int,
        num_layers: int,
        num_attention_heads: int,
        num_frames: int = 49,
        latent_height: int = 60,
        latent_width: int = 90,
        patch_size: int | Sequence[int] = 2,
        in_channels: int = 16,
        out_channels: int = 16,
        time_embed_dim: int = 512,
        temporal_compression: int = 4,
        text_length: int = 226,
        checkpoint_activations: bool = False,
        compile_blocks: bool = False,
        modules: dict[str, ComponentNode] | None = None,
        *,
        dtype: torch.dtype,
    ) -> None:
        network = NetworkShape(
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_attention_heads=num_attention_heads,
            latent_frames=latent_frame_count(num_frames, temporal_compression),
            latent_height=latent_height,
            latent_width=latent_width,
            patch_size=patch_triple(patch_size),
            in_channels=in_channels,
            out_channels=out_channels,
            time_embed_dim=time_embed_dim,
            text_length=text_length,
            dtype=dtype,
        )
        _check_network(network)
        nodes = _check_modules(modules or {})
        with own_random_state():
            super().__init__(argparse.Namespace(), transformer=build_transformer(network))
            self.network = network
            self.checkpoint_activations = checkpoint_activations
            self.time_embed = nn.Sequential(  # stored name
                Linear(hidden_size, time_embed_dim, dtype=dtype),
                nn.SiLU(),
                Linear(time_embed_dim, time_embed_dim, dtype=dtype),
            )
            for key, name in _MIXINS.items():
                if key in nodes:
                    self.add_mixin(name, instantiate(nodes[key], network=network), reinit=True)
        # Recomputation has to repeat random numbers only where there are any.
        self._draws_dropout = any(isinstance(m, nn.Dropout) and m.p > 0 for m in self.transformer.modules())
        if compile_blocks:
            self.mixins["adaln_layer"].compile_blocks()

    def forward(self, noised_latent: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """v_prediction [b, f, c_out, y, x] in the parameters' dtype.

        Args:
            noised_latent: [b, f, c, y, x] with f, y, x multiples of the patch, at most as large as configured.
            timestep: [b], 0..999.
            context: [b, l, e] text states, l exactly text_length.

        Raises:
            ShapeError: a shape that the network does not take; says what it takes.
        """
        grid = self._check_inputs(noised_latent, timestep, context)
        dtype = next(self.time_embed.parameters()).dtype
        conditioning = F.silu(self.time_embed(sinusoidal_embedding(timestep, self.network.hidden_size).to(dtype)))
        text, video = self.hooks["word_embedding_forward"](noised_latent.to(dtype), context.to(dtype))
        text, video = self.hooks["position_embedding_forward"](text, video, grid)
        for layer_id in range(self.network.num_layers):
            text, video = self._layer(text, video, conditioning, layer_id)
        return self.hooks["final_forward"](self.transformer.final_layernorm(video), conditioning, grid)

    def _layer(self, text: Tensor, video: Tensor, conditioning: Tensor, layer_id: int) -> tuple[Tensor, Tensor]:
        layer_forward = self.hooks["layer_forward"]
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(
                layer_forward,
                text,
                video,
                conditioning,
                layer_id=layer_id,
                use_reentrant=False,
                preserve_rng_state=self._draws_dropout,
            )
        return layer_forward(text, video, conditioning, layer_id=layer_id)

    def _check_inputs(self, noised_latent: Tensor, timestep: Tensor, context: Tensor) -> tuple[int, int, int]:
        """The token grid (frames, height, width) of an input that fits."""
        network = self.network
        if noised_latent.ndim != 5 or noised_latent.shape[2] != network.in_channels:
            raise ShapeError(
                f"noised_latent has shape {tuple(noised_latent.shape)}; the transformer takes "
                f"(batch, frames, {network.in_channels} channels, height, width)"
            )
        batch, frames, _, height, width = noised_latent.shape
        if timestep.shape != (batch,):
            raise ShapeError(f"timestep has shape {tuple(timestep.shape)}; expected ({batch},), one per sample")
        expected = (batch, network.text_length, self.mixins["patch_embed"].text_hidden_size)
        if context.shape != expected:
            raise ShapeError(
                f"context has shape {tuple(context.shape)}; expected {expected} (batch, text_length, text_hidden_size)"
            )
        sizes, patch = (frames, height, width), network.patch_size
        if any(size < step or size % step for size, step in zip(sizes, patch, strict=True)):
            legal = tuple(max(round(size / step), 1) * step for size, step in zip(sizes, patch, strict=True))
            raise ShapeError(
                f"a latent of (frames, height, width) {sizes} does not divide into patches {patch}; "
                f"nearest legal: {legal}"
            )
        grid = (frames // patch[0], height // patch[1], width // patch[2])
        self.mixins["pos_embed"].check_grid(grid)
        return grid


def _check_network(network: NetworkShape) -> None:
    if network.hidden_size % network.num_attention_heads:
        raise ConfigError(
            f"network_config.hidden_size {network.hidden_size} is not a multiple of num_attention_heads "
            f"{network.num_attention_heads}"
        )
    for name in ("latent_frames", "latent_height", "latent_width"):
        size, step = (
            getattr(network, name),
            network.patch_size[("latent_frames", "latent_height", "latent_width").index(name)],
        )
        if size < step or size % step:
            raise ConfigError(
                f"network_config: {name} is {size}, which patches of {step} do not divide; "
                f"nearest legal: {max(round(size / step), 1) * step}"
            )


def _check_modules(modules: dict[str, ComponentNode]) -> dict[str, ComponentNode]:
    modules = {key: node for key, node in modules.items() if node is not None}  # null switches an entry off
    unknown = sorted(set(modules) - set(_MIXINS))
    missing = sorted(set(_MIXINS) - _OPTIONAL - set(modules))
    if unknown or missing:
        raise ConfigError(
            f"network_config.modules: unknown {unknown}, missing {missing}; it holds {sorted(_MIXINS)}, "
            f"of which {sorted(_OPTIONAL)} may be left out"
        )
    return modules
