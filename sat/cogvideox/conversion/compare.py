"""SAT weights here and their diffusers twin there: tensors, position tables, one forward pass. For both converters.

Tensors are compared bit by bit, outputs in float32 on a few latents.

Letters: b batch, f latent frames, c channels, y x latent height/width, l text tokens, e text width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import Tensor

from cogvideox.conversion.differences import OFS
from cogvideox.errors import CheckpointError
from cogvideox.geometry import Geometry
from cogvideox.transformer.model import DiffusionTransformer
from cogvideox.vae.autoencoder import VideoAutoencoder
from cogvideox.weights.base import LoraFacts
from cogvideox.weights.diffusers_folder import PipelineSettings
from cogvideox.weights.families import POSITION_TABLE, ROTARY_SIGNS, TransformerFacts
from cogvideox.weights.lora_map import plain_name

OUTPUT_LIMIT = 1e-3  # largest difference of outputs, in standard deviations of the output; about 1e-5 is usual
TABLE_LIMIT = 1e-5  # of positions and noise levels, both of size 1, in float32
# Angles reach 84 (the width of 1.5's largest clips), so sines of fp32 angles computed in two ways differ by up to
# 84 * 2**-23 = 1e-5 or, at the 150 tokens of its position table, twice that.
ROTATION_LIMIT = 2e-5
_ROOM = "cogvideox.transformer."


def open_model(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A model of diffusers. Raises: CheckpointError when it can't be opened or tensors don't fit."""
    try:
        model, report = kind.from_pretrained(folder, torch_dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"diffusers can't open {folder}: {str(error).splitlines()[0]}") from error
    wrong = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if wrong:
        raise CheckpointError(f"{folder}: diffusers finds {len(wrong)} tensors that don't fit, first {wrong[0]}")
    return model.eval()


def widest(state: Mapping[str, Tensor], dtype: torch.dtype | None) -> torch.dtype:
    """The type in which diffusers loads everything, such that nothing is rounded."""
    if dtype is not None:
        return dtype
    kinds = {value.dtype for value in state.values()}
    return kinds.pop() if len(kinds) == 1 else torch.float32


def compare_bits(name: str, source: Tensor, converted: Tensor, dtype: torch.dtype | None) -> None:
    """Raises: CheckpointError when the two are not the same numbers once the source has the type asked for."""
    wanted = source.to(dtype or source.dtype)
    if not torch.equal(wanted.reshape(converted.shape), converted.to(wanted.dtype)):
        raise CheckpointError(f"{name} differs after conversion")


def compare_outputs(what: str, ours: Tensor, theirs: Tensor) -> None:
    """Print the largest difference. Raises: CheckpointError when it is too large."""
    spread = theirs.std().item()
    difference = (ours - theirs).abs().max().item() / spread if spread > 0 else float("inf")
    print(f"  {what} differs by at most {difference:.1e} of its standard deviation (limit {OUTPUT_LIMIT:.0e})")
    if not difference <= OUTPUT_LIMIT:
        raise CheckpointError(f"{what} of diffusers and of this framework differ by {difference:.1e} (see above)")


def compare_fixed_table(stored: Tensor | None, theirs: Any) -> None:
    """A 2B checkpoint's position table against the one that diffusers computes. Raises: CheckpointError."""
    table = theirs.patch_embed.pos_embedding
    if stored is None or stored.shape != table.shape:
        print("  positions: not compared, the checkpoint's table is absent or for another clip size")
        return
    _compare_positions(stored, table, max(TABLE_LIMIT, torch.finfo(stored.dtype).eps))


def their_rotations(pipeline: Any, settings: PipelineSettings, facts: TransformerFacts) -> tuple[Tensor, Tensor]:
    """(cos, sin) [f*y*x, head_dim] of diffusers' pipeline at the configured size."""
    geometry = Geometry(settings.temporal_compression, patch_size=facts.patch_size)
    frames = geometry.token_grid(geometry.latent_frames(settings.num_frames), 0, 0)[0] * facts.patch_size[0]
    height, width = 8 * settings.latent_height, 8 * settings.latent_width
    return pipeline._prepare_rotary_positional_embeddings(height, width, frames, torch.device("cpu"))


def compare_rotations(ours: DiffusionTransformer, theirs: tuple[Tensor, Tensor]) -> None:
    """Raises: CheckpointError when the rotations at the configured size differ."""
    tables: dict[str, Tensor] = ours.mixins["pos_embed"].stored_tables()
    for name, table in zip(("freqs_cos", "freqs_sin"), theirs, strict=True):
        if tables[name].shape != table.shape:
            raise CheckpointError(f"diffusers rotates {len(table)} tokens, this framework {len(tables[name])}")
        _compare_positions(tables[name], table, ROTATION_LIMIT)


def _compare_positions(ours: Tensor, theirs: Tensor, limit: float) -> None:
    difference = (ours.float() - theirs.float()).abs().max().item()
    print(f"  positions: largest difference {difference:.1e} (limit {limit:.0e})")
    if not difference <= limit:
        raise CheckpointError(
            f"diffusers computes other positions than the checkpoint holds (difference {difference:.1e}): check "
            "num_frames, latent_height, latent_width and the interpolation factors in the YAML"
        )


def transformer_inputs(facts: TransformerFacts, settings: PipelineSettings) -> tuple[Tensor, Tensor, Tensor]:
    """noised_latent b f c y x, timestep b, context b l e: a few patches along every axis."""
    frames, height, width = facts.patch_size
    size = (min(4 * height, settings.latent_height), min(6 * width, settings.latent_width))
    latent = torch.randn(1, 2 * frames, facts.in_channels, *size)
    return latent, torch.tensor([500]), torch.randn(1, settings.text_length, facts.text_width)


def their_output(
    theirs: Any, facts: TransformerFacts, settings: PipelineSettings, inputs: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """diffusers' transformer on small inputs, with positions counted from the origin, as this framework does.

    Its learned table is cropped to the inputs: diffusers itself takes that table at one size only.
    """
    latent, timestep, context = inputs
    grid = tuple(size // step for size, step in zip(_sizes(latent), facts.patch_size, strict=True))
    rotation = None
    if facts.rotary:
        frames, plane = grid[0], (grid[1], grid[2])
        rotation = get_3d_rotary_pos_embed(facts.head_dim, None, plane, frames, grid_type="slice", max_size=plane)
    if facts.learned_table:
        _crop_table(theirs.patch_embed, grid, latent, settings)
    ofs = None if facts.ofs_embed_dim is None else torch.full((1,), OFS)
    return theirs(latent, context, timestep, ofs=ofs, image_rotary_emb=rotation).sample


def _sizes(latent: Tensor) -> tuple[int, int, int]:
    return latent.shape[1], latent.shape[3], latent.shape[4]


def _crop_table(patch_embed: Any, grid: tuple[int, ...], latent: Tensor, settings: PipelineSettings) -> None:
    frames, height, width = _sizes(latent)
    text, video = patch_embed.pos_embedding.split(
        [settings.text_length, patch_embed.pos_embedding.shape[1] - settings.text_length], dim=1
    )
    patch = patch_embed.patch_size
    video = video.unflatten(1, (-1, settings.latent_height // patch, settings.latent_width // patch))
    corner = video[:, : grid[0], : grid[1], : grid[2]].flatten(1, 3)
    patch_embed.pos_embedding = torch.cat([text, corner], dim=1)
    patch_embed.sample_height, patch_embed.sample_width = height, width
    patch_embed.sample_frames = Geometry(settings.temporal_compression).pixel_frames(frames)


def our_transformer(
    state: Mapping[str, Tensor],
    facts: TransformerFacts,
    settings: PipelineSettings,
    dtype: torch.dtype | None = None,
    lora: LoraFacts | None = None,
) -> DiffusionTransformer:
    """This framework's transformer in float32 with the values of `state` (relative SAT names) rounded to `dtype`."""
    with torch.device("meta"):
        model = _build_transformer(facts, settings, lora)
    model.to_empty(device="cpu")
    model.mixins["pos_embed"].reinit()  # fixed tables are computed
    computed = ROTARY_SIGNS if facts.learned_table else (*ROTARY_SIGNS, POSITION_TABLE)
    for name, target in model.state_dict().items():
        if name not in computed:
            value = state[name if name in state else plain_name(name)]
            target.copy_(value.to(dtype or value.dtype).reshape(target.shape))
    return model.eval()


def _build_transformer(
    facts: TransformerFacts, settings: PipelineSettings, lora: LoraFacts | None
) -> DiffusionTransformer:
    modules = {
        "pos_embed_config": _positions_node(facts, settings),
        "patch_embed_config": _node("patch_embed.PatchEmbedMixin", {"text_hidden_size": facts.text_width}),
        "adaln_layer_config": _node("adaln.AdaLNMixin", {"qk_ln": facts.qk_norm}),
        "final_layer_config": _node("final_layer.FinalLayerMixin", {}),
    }
    if lora is not None:
        modules["lora_config"] = _node("lora.LoraMixin", {"r": lora.rank, "lora_alpha": lora.alpha})
    return DiffusionTransformer(
        hidden_size=facts.hidden_size,
        num_layers=facts.num_layers,
        num_attention_heads=facts.num_heads,
        num_frames=settings.num_frames,
        latent_height=settings.latent_height,
        latent_width=settings.latent_width,
        patch_size=facts.patch_size,
        in_channels=facts.in_channels,
        out_channels=facts.out_channels,
        time_embed_dim=facts.time_embed_dim,
        temporal_compression=settings.temporal_compression,
        text_length=settings.text_length,
        ofs_embed_dim=facts.ofs_embed_dim,
        ofs=OFS,
        modules=modules,
        dtype=torch.float32,
    )


def _positions_node(facts: TransformerFacts, settings: PipelineSettings) -> dict[str, Any]:
    if facts.rotary:
        return _node("positions.RotaryPositionMixin", {"learnable_pos_embed": facts.learned_table})
    scale = settings.spatial_interpolation
    factors = {"height_interpolation": scale, "width_interpolation": scale}
    return _node("positions.SinCosPositionMixin", {**factors, "time_interpolation": settings.temporal_interpolation})


def _node(target: str, params: dict[str, Any]) -> dict[str, Any]:
    return {"target": _ROOM + target, "params": params}


def compare_vae_outputs(state: Mapping[str, Tensor], theirs: Any) -> None:
    """Decode and encode a little with diffusers' float32 VAE and with this framework's, which gets `state` (SAT names).

    Raises: CheckpointError when a result differs.
    """
    config = theirs.config
    ours = _our_vae(config, state)
    latent = torch.randn(1, 3, config.latent_channels, 4, 6)
    video = torch.rand(1, 2 * ours.temporal_compression + 1, config.in_channels, 32, 48) * 2 - 1
    decoded = theirs.decode(latent.transpose(1, 2)).sample.transpose(1, 2)
    compare_outputs("VAE: decoded video", ours.decode(latent), decoded)
    encoded = theirs.encode(video.transpose(1, 2)).latent_dist.mean.transpose(1, 2)
    compare_outputs("VAE: encoded latent", ours.encode(video).mean, encoded)


def _our_vae(config: Any, state: Mapping[str, Tensor]) -> VideoAutoencoder:
    width = config.block_out_channels[0]
    ours = VideoAutoencoder(
        z_channels=config.latent_channels,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        ch=width,
        ch_mult=[channels // width for channels in config.block_out_channels],
        num_res_blocks=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        temporal_compression=int(config.temporal_compression_ratio),
    )
    ours.load_state_dict({name: value.float() for name, value in state.items()})
    ours.freeze()
    return ours
