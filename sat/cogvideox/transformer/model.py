"""The CogVideoX transformer as a SAT BaseModel composed of mixins.

Letters: b batch, f latent frames, c channels, y x latent height/width, l text tokens, e text width, v video tokens,
d hidden.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from sat.model.base_model import BaseModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cogvideox.config.targets import ComponentNode, instantiate
from cogvideox.errors import ConfigError, ShapeError
from cogvideox.transformer.linear import Linear
from cogvideox.transformer.offload import ActivationOffload, offload_for
from cogvideox.transformer.position_tables import Grid
from cogvideox.transformer.positions import UNLIMITED
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

    in_channels: those of the latent, out_channels, and for I2V as many of the image latent behind them.
    num_frames: pixel frames; latent frames that patches don't divide count as padded (81: 21, padded to 22).
    offload_activations: what checkpoint_activations keeps of each block waits in host memory (see offload.py).
    ofs_embed_dim, ofs: 1.5-I2V adds the embedding of the constant ofs to that of the timestep; equal to time_embed_dim.

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
        ofs_embed_dim: int | None = None,
        ofs: float = 2.0,
        checkpoint_activations: bool = False,
        offload_activations: bool = False,
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
        _check_network(network, ofs_embed_dim)
        if offload_activations and not checkpoint_activations:
            raise ConfigError(
                "network_config.offload_activations is true, which moves the inputs of recomputed blocks: set "
                "checkpoint_activations: true as well"
            )
        nodes = _check_modules(modules or {})
        with own_random_state():
            super().__init__(argparse.Namespace(), transformer=build_transformer(network))
            self.network = network
            self.checkpoint_activations = checkpoint_activations
            self.offload_activations = offload_activations
            self._offload: ActivationOffload[Any] | None = None
            self.ofs = ofs
            # Stored names.
            self.time_embed = _embedding(hidden_size, time_embed_dim, dtype)
            self.ofs_embed = None if ofs_embed_dim is None else _embedding(ofs_embed_dim, ofs_embed_dim, dtype)
            for key, name in _MIXINS.items():
                if key in nodes:
                    self.add_mixin(name, instantiate(nodes[key], network=network), reinit=True)
        # Recomputation has to repeat random numbers only where there are any.
        self._draws_dropout = any(isinstance(m, nn.Dropout) and m.p > 0 for m in self.transformer.modules())
        if compile_blocks:
            self.mixins["adaln_layer"].compile_blocks()

    @torch.no_grad()
    def init_unstored(self) -> None:
        """Fill what a checkpoint may lack, after `to_empty`: fixed tables, adapters, SAT's table that nothing reads."""
        self.mixins["pos_embed"].reinit()
        if "lora" in self.mixins:
            self.mixins["lora"].init_adapters()
        unused = getattr(self.transformer, "position_embeddings", None)
        if unused is not None:
            nn.init.zeros_(unused.weight)

    def forward(self, noised_latent: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """v_prediction [b, f, c_out, y, x] in the parameters' dtype.

        Args:
            noised_latent: [b, f, c, y, x] with f, y, x multiples of the patch, and as large as the positions allow; for
                I2V with the image latent behind it on the channels.
            timestep: [b], 0..999.
            context: [b, l, e] text states, l exactly text_length.

        Raises:
            ShapeError: a shape that the network does not take; says what it takes.
        """
        grid = self._check_inputs(noised_latent, timestep, context)
        dtype = next(self.time_embed.parameters()).dtype
        conditioning = self._conditioning(timestep, dtype)
        text, video = self.hooks["word_embedding_forward"](noised_latent.to(dtype), context.to(dtype))
        text, video = self.hooks["position_embedding_forward"](text, video, grid)
        rotation = self.mixins["pos_embed"].rotation(grid, video.device)
        for layer_id in range(self.network.num_layers):
            text, video = self._layer(text, video, conditioning, rotation, layer_id)
        return self.hooks["final_forward"](self.transformer.final_layernorm(video), conditioning, grid)

    def _conditioning(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        """The SiLU of the time embedding, to which that of the constant `ofs` is added where there is one."""
        embedded = self.time_embed(sinusoidal_embedding(timestep, self.network.hidden_size).to(dtype))
        if self.ofs_embed is not None:
            ofs = torch.full((1,), self.ofs, device=timestep.device)
            embedded = embedded + self.ofs_embed(sinusoidal_embedding(ofs, embedded.shape[-1]).to(dtype))
        return F.silu(embedded)

    def _layer(
        self, text: Tensor, video: Tensor, conditioning: Tensor, rotation: Tensor | None, layer_id: int
    ) -> tuple[Tensor, Tensor]:
        layer_forward = self.hooks["layer_forward"]
        if not self.checkpoint_activations or not torch.is_grad_enabled():
            return layer_forward(text, video, conditioning, rotation, layer_id=layer_id)
        if self.offload_activations and self._offload is None:
            self._offload = offload_for(video.device)
        offload = self._offload
        moved = nullcontext() if offload is None else offload.block(layer_id, self.network.num_layers, (text, video))
        with moved:
            return checkpoint(
                layer_forward,
                text,
                video,
                conditioning,
                rotation,
                layer_id=layer_id,
                use_reentrant=False,
                preserve_rng_state=self._draws_dropout,
            )

    def _check_inputs(self, noised_latent: Tensor, timestep: Tensor, context: Tensor) -> Grid:
        """The token grid (frames, height, width) of an input that fits."""
        network = self.network
        if noised_latent.ndim != 5 or noised_latent.shape[2] != network.in_channels:
            image = f", the last {network.image_channels} of them of the image latent" if network.image_channels else ""
            raise ShapeError(
                f"noised_latent has shape {tuple(noised_latent.shape)}; the transformer takes "
                f"(batch, frames, {network.in_channels} channels, height, width){image}"
            )
        batch, frames, _, height, width = noised_latent.shape
        if timestep.shape != (batch,):
            raise ShapeError(f"timestep has shape {tuple(timestep.shape)}; expected ({batch},), one per sample")
        expected = (batch, network.text_length, self.mixins["patch_embed"].text_hidden_size)
        if context.shape != expected:
            raise ShapeError(
                f"context has shape {tuple(context.shape)}; expected {expected} (batch, text_length, text_hidden_size)"
            )
        return self._check_grid((frames, height, width))

    def _check_grid(self, sizes: tuple[int, int, int]) -> Grid:
        """Tokens along (frames, height, width) for a latent of these sizes."""
        patch, largest = self.network.patch_size, self.mixins["pos_embed"].largest_grid
        grid = (sizes[0] // patch[0], sizes[1] // patch[1], sizes[2] // patch[2])
        nearest = tuple(
            min(max(round(size / step), 1), most) * step for size, step, most in zip(sizes, patch, largest, strict=True)
        )
        if min(grid) < 1 or any(size % step for size, step in zip(sizes, patch, strict=True)):
            raise ShapeError(
                f"a latent of (frames, height, width) {sizes} does not divide into patches {patch}; "
                f"nearest legal: {nearest}"
            )
        if any(size > most for size, most in zip(grid, largest, strict=True)):
            limits = ("any" if most == UNLIMITED else str(most * n) for most, n in zip(largest, patch, strict=True))
            raise ShapeError(
                f"a latent of (frames, height, width) {sizes} is larger than the position table "
                f"({', '.join(limits)}); nearest legal: {nearest}"
            )
        return grid


def _embedding(width_in: int, width: int, dtype: torch.dtype) -> nn.Sequential:
    return nn.Sequential(Linear(width_in, width, dtype=dtype), nn.SiLU(), Linear(width, width, dtype=dtype))


def _check_network(network: NetworkShape, ofs_embed_dim: int | None) -> None:
    if network.hidden_size % network.num_attention_heads:
        raise ConfigError(
            f"network_config.hidden_size {network.hidden_size} is not a multiple of num_attention_heads "
            f"{network.num_attention_heads}"
        )
    _, *steps = network.patch_size  # frames are padded
    for name, step in zip(("latent_height", "latent_width"), steps, strict=True):
        size = getattr(network, name)
        if size < step or size % step:
            raise ConfigError(
                f"network_config: {name} is {size}, which patches of {step} do not divide; "
                f"nearest legal: {max(round(size / step), 1) * step}"
            )
    if network.in_channels < network.out_channels:
        raise ConfigError(
            f"network_config.in_channels is {network.in_channels}, fewer than out_channels {network.out_channels}; "
            f"write {network.out_channels}, or {2 * network.out_channels} for image to video"
        )
    if ofs_embed_dim is not None and ofs_embed_dim != network.time_embed_dim:
        raise ConfigError(
            f"network_config.ofs_embed_dim is {ofs_embed_dim}; it is added to the time embedding, so it must be "
            f"time_embed_dim {network.time_embed_dim}, or null for networks without it"
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
