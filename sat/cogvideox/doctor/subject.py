"""What a page is about: the data of a configuration, and what a run would make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cogvideox.buckets import Buckets, micro_batch_size
from cogvideox.caching.layout import LatentLayout, context_bytes
from cogvideox.config.clip_sizes import latent_channels
from cogvideox.config.schema import Config, DataConfig, TrainArgs
from cogvideox.config.signatures import read_signature
from cogvideox.data.sources.spec import SourceSpec
from cogvideox.data.timing import ClipSpec
from cogvideox.geometry import Bucket

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Subject:
    """A training configuration, seen from its data.

    Args:
        config: of a training run.
        entries: of "train_data" and, where there are any, of "valid_data".
        spec: what every clip becomes; buckets: the shapes of `data.buckets`, None without.
        processes: of the run that is planned.
    """

    config: Config
    entries: Mapping[str, Sequence[SourceSpec]]
    spec: ClipSpec
    buckets: Buckets | None = None
    processes: int = 1

    @property
    def args(self) -> TrainArgs:
        return self.config.train_args

    @property
    def data(self) -> DataConfig:
        assert self.config.data is not None, "a training configuration has a section data"
        return self.config.data

    @property
    def words(self) -> tuple[str, ...]:
        """The files and overrides of the configuration."""
        return (*self.config.files, *self.config.overrides)

    @property
    def moment_bytes(self) -> int:
        """Of a number of a clip's latents in a cache, see training's dtype and `args.cache_dtype`."""
        stored = self.args.cache_dtype
        return _BYTES[self.config.deepspeed.precision if stored == "computed" else stored]

    @property
    def context_bytes(self) -> int:
        """Of a caption's context in a cache."""
        return context_bytes((self.text_limit, self.text_width), _BYTES[self.config.deepspeed.precision])

    @property
    def layout(self) -> LatentLayout:
        """What a cache holds of a clip."""
        model = self.config.model
        return LatentLayout(self.spec.geometry, latent_channels(model.first_stage_config), model.noised_image_input)

    @property
    def text_encoder(self) -> str:
        """Its folder or name."""
        return str(self._encoder["model_dir"])

    @property
    def text_limit(self) -> int:
        """Tokens of a caption that the text encoder reads."""
        return int(self._encoder["max_length"])

    @property
    def text_width(self) -> int:
        """Numbers of a token's context."""
        modules = self.config.model.network_config["params"].get("modules", {})
        patches = modules.get("patch_embed_config", {}).get("params", {})
        return int(patches.get("text_hidden_size", 4096))

    @property
    def _encoder(self) -> dict[str, Any]:
        node = self.config.model.conditioner_config["params"]["encoder"]
        return {**read_signature(node["target"]).defaults, **node["params"]}

    def batch_size(self, bucket: Bucket) -> int:
        """Samples of an optimizer step of this bucket, over all processes."""
        micro, accumulation = self._batch_factors()
        tokens = self.spec.geometry.num_video_tokens(*bucket)
        return micro_batch_size(tokens, self.data.tokens_per_micro_batch, micro) * accumulation * self.processes

    def _batch_factors(self) -> tuple[int, int]:
        """Micro batch and accumulation; of these and the whole batch, one may be left out."""
        section = self.config.deepspeed
        micro: int | None = section.get("train_micro_batch_size_per_gpu")
        accumulation: int | None = section.get("gradient_accumulation_steps")
        per_process = max(1, (section.get("train_batch_size") or 1) // self.processes)
        if micro is None:
            return max(1, per_process // (accumulation or 1)), accumulation or 1
        return micro, accumulation or max(1, per_process // micro)
