"""Opening a converted folder with diffusers and comparing it with the SAT weights: tensors, tables, outputs.

Tensors are translated back by the reverse tables and compared bit by bit. Outputs are compared in float32 on a few
latents, one implementation after the other, so that a large model is in memory once.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from cogvideox.diffusion.schedule import NoiseSchedule
from cogvideox.errors import CheckpointError
from cogvideox.transformer.model import DiffusionTransformer
from cogvideox.vae.autoencoder import VideoAutoencoder
from cogvideox.weights import diffusers_folder as folders
from cogvideox.weights import transformer_map, vae_map
from cogvideox.weights.lora_map import plain_name
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from diffusers_export.plan import Plan

OUTPUT_LIMIT = 1e-3  # largest difference of outputs, in standard deviations of the output; about 1e-5 is usual
TABLE_LIMIT = 1e-5  # of positions and noise levels, both of size 1, in float32
_TABLE = "mixins.pos_embed.pos_embedding"
_ROOM = "cogvideox.transformer."
_LARGE = 4 * 2**30  # bytes; a text encoder beyond this is not opened
_SCHEDULERS = {kind.__name__: kind for kind in (CogVideoXDDIMScheduler, CogVideoXDPMScheduler)}


def verify(plan: Plan) -> None:
    """Print the figures of every comparison.

    Raises: CheckpointError for the first that fails, or when diffusers can't open the folder.
    """
    print("verifying with diffusers")
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    with torch.no_grad():
        if plan.writes_transformer or plan.writes_lora:
            _verify_transformer(plan)
        if plan.vae is not None:
            _verify_vae(plan)
        if plan.options.part == "pipeline":
            _verify_scheduler(plan)


def _verify_transformer(plan: Plan) -> None:
    assert plan.weights is not None, "a transformer without weights"
    with _transformer_folder(plan) as folder:
        theirs = _open(CogVideoXTransformer3DModel, folder, _widest(plan.weights.plain, plan.dtype))
        _compare_transformer_tensors(plan, theirs)
        theirs = theirs.float()
        pipeline = _open_pipeline(plan, theirs)
        if plan.writes_lora:
            pipeline.load_lora_weights(str(plan.options.output))
        inputs = _transformer_inputs(plan)
        latent, timestep, context = inputs
        expected = theirs(latent, context, timestep).sample
        _compare_table(plan, theirs.patch_embed.pos_embedding)
    del theirs, pipeline
    gc.collect()
    ours = _our_transformer(plan)
    what = "output with the LoRA at weight 1.0" if plan.writes_lora else "output"
    _report_outputs(f"transformer: {what}", ours(*inputs), expected)


@contextmanager
def _transformer_folder(plan: Plan) -> Iterator[Path]:
    """Where the converted transformer is; for a lone LoRA file, its base, converted for this occasion."""
    if plan.writes_transformer:
        yield plan.options.output / ("transformer" if plan.options.part == "pipeline" else "")
        return
    assert plan.weights is not None and plan.facts is not None, "a LoRA without a base"
    with tempfile.TemporaryDirectory(dir=plan.options.output.parent) as scratch:
        shapes = {name: (value.shape, value.dtype) for name, value in plan.weights.plain.items()}
        entries = folders.transformer_entries(shapes, plan.facts, plan.dtype)
        config = folders.transformer_config(plan.facts, plan.settings)
        folders.write_transformer(Path(scratch), plan.weights.plain, entries, config, plan.facts)
        yield Path(scratch)


def _open(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    try:
        model, report = kind.from_pretrained(folder, torch_dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"diffusers can't open {folder}: {str(error).splitlines()[0]}") from error
    wrong = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if wrong:
        raise CheckpointError(f"{folder}: diffusers finds {len(wrong)} tensors that don't fit, first {wrong[0]}")
    return model.eval()


def _open_pipeline(plan: Plan, transformer: nn.Module) -> Any:
    """The pipeline around an opened transformer: from its folder, or bare for a lone part."""
    output = plan.options.output
    if plan.options.part != "pipeline":
        scheduler = _SCHEDULERS[plan.settings.scheduler]()
        return CogVideoXPipeline(None, None, None, transformer, scheduler)
    large = folders.folder_bytes(output / "text_encoder") > _LARGE
    without = {"text_encoder": None} if large else {}
    try:
        pipeline = CogVideoXPipeline.from_pretrained(output, transformer=transformer, **without)
    except (OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"diffusers can't open {output}: {str(error).splitlines()[0]}") from error
    left_out = " (without its text encoder: too large to open here)" if large else ""
    print(f"  pipeline: CogVideoXPipeline opens {output}{left_out}")
    return pipeline


def _compare_transformer_tensors(plan: Plan, theirs: nn.Module) -> None:
    assert plan.facts is not None, "a transformer without facts"
    state, found = plan.transformer_state, theirs.state_dict()
    expected = {name for name in state if name not in transformer_map.NOT_IN_DIFFUSERS}
    steps = transformer_map.to_sat(found, plan.facts.patch_size)
    compared = 0
    for name, value in transformer_map.convert_state(found, steps):
        if name not in expected:
            raise CheckpointError(f"the converted transformer holds {name}, which the checkpoint doesn't")
        _compare_bits(name, state[name], value, plan.dtype)
        compared += 1
    if compared != len(expected):
        raise CheckpointError(f"the converted transformer holds {compared} of {len(expected)} tensors")
    print(f"  transformer: {compared} tensors equal bit by bit")


def _compare_bits(name: str, source: Tensor, converted: Tensor, dtype: torch.dtype | None) -> None:
    wanted = source.to(dtype or source.dtype)
    if not torch.equal(wanted.reshape(converted.shape), converted.to(wanted.dtype)):
        raise CheckpointError(f"{name} differs after conversion")


def _compare_table(plan: Plan, theirs: Tensor) -> None:
    """The stored position table against the one that diffusers computes."""
    assert plan.weights is not None, "a transformer without weights"
    stored = plan.weights.plain.get(_TABLE)
    if stored is None or stored.shape != theirs.shape:
        print("  positions: not compared, the checkpoint's table is absent or for another clip size")
        return
    difference = (stored.float() - theirs.float()).abs().max().item()
    limit = max(TABLE_LIMIT, torch.finfo(stored.dtype).eps)
    print(f"  positions: largest difference {difference:.1e} (limit {limit:.0e})")
    if not difference <= limit:
        raise CheckpointError(
            f"diffusers computes other positions than the checkpoint holds (difference {difference:.1e}): check "
            "num_frames, latent_height, latent_width and the interpolation factors in the YAML"
        )


def _transformer_inputs(plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """noised_latent b f c y x, timestep b, context b l e: two frames, a few patches wide."""
    facts, settings = plan.facts, plan.settings
    assert facts is not None, "a transformer without facts"
    frames, height, width = facts.patch_size
    latent = torch.randn(
        1,
        2 * frames,
        facts.in_channels,
        min(4 * height, settings.latent_height),
        min(6 * width, settings.latent_width),
    )
    return latent, torch.tensor([500]), torch.randn(1, settings.text_length, facts.text_width)


def _our_transformer(plan: Plan) -> DiffusionTransformer:
    """This framework's transformer in float32 with the converted values, adapters included if kept apart."""
    weights = plan.weights
    assert weights is not None, "a transformer without weights"
    with torch.device("meta"):
        model = _build_transformer(plan)
    model.to_empty(device="cpu")
    model.mixins["pos_embed"].reinit()  # the one table that is computed
    state = {**plan.transformer_state, **weights.adapters} if plan.writes_lora else plan.transformer_state
    for name, target in model.state_dict().items():
        if name != _TABLE:
            value = state[name if name in state else plain_name(name)]
            target.copy_(value.to(plan.dtype or value.dtype).reshape(target.shape))
    return model.eval()


def _build_transformer(plan: Plan) -> DiffusionTransformer:
    facts, settings, weights = plan.facts, plan.settings, plan.weights
    assert facts is not None and weights is not None, "a transformer without weights"
    scale = settings.spatial_interpolation
    positions = {
        "height_interpolation": scale,
        "width_interpolation": scale,
        "time_interpolation": settings.temporal_interpolation,
    }
    modules = {
        "pos_embed_config": _node("positions.SinCosPositionMixin", positions),
        "patch_embed_config": _node("patch_embed.PatchEmbedMixin", {"text_hidden_size": facts.text_width}),
        "adaln_layer_config": _node("adaln.AdaLNMixin", {"qk_ln": facts.qk_norm}),
        "final_layer_config": _node("final_layer.FinalLayerMixin", {}),
    }
    if plan.writes_lora and weights.lora is not None:
        adapters = {"r": weights.lora.rank, "lora_alpha": weights.lora.alpha}
        modules["lora_config"] = _node("lora.LoraMixin", adapters)
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
        modules=modules,
        dtype=torch.float32,
    )


def _node(target: str, params: dict[str, Any]) -> dict[str, Any]:
    return {"target": _ROOM + target, "params": params}


def _verify_vae(plan: Plan) -> None:
    state = plan.vae
    assert state is not None, "a VAE without weights"
    folder = plan.options.output / ("vae" if plan.options.part == "pipeline" else "")
    theirs = _open(AutoencoderKLCogVideoX, folder, _widest(state, plan.dtype))
    config, found = theirs.config, theirs.state_dict()
    levels = len(config.block_out_channels)
    back = {vae_map.diffusers_to_sat(name, levels): value for name, value in found.items()}
    if back.keys() != state.keys():
        raise CheckpointError(f"the converted VAE lacks or adds tensors: {sorted(back.keys() ^ state.keys())[:3]}")
    for name, value in back.items():
        _compare_bits(name, state[name], value, plan.dtype)
    print(f"  VAE: {len(back)} tensors equal bit by bit")
    theirs = theirs.float()
    ours = _our_vae(config, back)
    latent = torch.randn(1, 3, config.latent_channels, 4, 6)
    video = torch.rand(1, 2 * ours.temporal_compression + 1, config.in_channels, 32, 48) * 2 - 1
    decoded = theirs.decode(latent.transpose(1, 2)).sample.transpose(1, 2)
    _report_outputs("VAE: decoded video", ours.decode(latent), decoded)
    encoded = theirs.encode(video.transpose(1, 2)).latent_dist.mean.transpose(1, 2)
    _report_outputs("VAE: encoded latent", ours.encode(video).mean, encoded)


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


def _verify_scheduler(plan: Plan) -> None:
    settings = plan.settings
    theirs = _SCHEDULERS[settings.scheduler].from_pretrained(plan.options.output / "scheduler")
    ours = NoiseSchedule(
        num_timesteps=settings.num_timesteps,
        beta_start=settings.beta_start,
        beta_end=settings.beta_end,
        shift_scale=settings.shift_scale,
        zero_terminal_snr=settings.zero_terminal_snr,
    )
    difference = (theirs.alphas_cumprod.sqrt() - ours.sqrt_alpha_bar).abs().max().item()
    print(f"  scheduler: noise levels differ by at most {difference:.1e} (limit {TABLE_LIMIT:.0e})")
    if not difference <= TABLE_LIMIT:
        raise CheckpointError(f"the scheduler's noise levels differ by {difference:.1e} from those of training")


def _widest(state: Mapping[str, Tensor], dtype: torch.dtype | None) -> torch.dtype:
    """The type in which diffusers loads everything, such that nothing is rounded."""
    if dtype is not None:
        return dtype
    kinds = {value.dtype for value in state.values()}
    return kinds.pop() if len(kinds) == 1 else torch.float32


def _report_outputs(what: str, ours: Tensor, theirs: Tensor) -> None:
    spread = theirs.std().item()
    difference = (ours - theirs).abs().max().item() / spread if spread > 0 else float("inf")
    print(f"  {what} differs by at most {difference:.1e} of its standard deviation (limit {OUTPUT_LIMIT:.0e})")
    if not difference <= OUTPUT_LIMIT:
        raise CheckpointError(f"{what} of diffusers and of this framework differ by {difference:.1e} (see above)")
