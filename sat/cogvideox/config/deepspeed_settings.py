"""The checked section `deepspeed`, as `deepspeed_section.py` hands it on."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from cogvideox.errors import ConfigError

Precision = Literal["fp32", "bf16", "fp16"]


class DeepSpeedSection(Mapping[str, Any]):
    """The checked section. Every key that has a default here is there, with a value in its range.

    A mapping, because that is what `deepspeed.initialize(config=...)` takes; what more than one place asks for has a
    name. `train_batch_size` and the two factors: one of the three may be missing, and follows from the others.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = dict(content)

    def __getitem__(self, key: str) -> Any:
        return self._content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)

    def __repr__(self) -> str:
        return f"DeepSpeedSection({self._content})"

    def as_dict(self) -> dict[str, Any]:
        """A copy to change, or to save."""
        return copy.deepcopy(self._content)

    @property
    def precision(self) -> Precision:
        """Of the weights."""
        return "bf16" if self["bf16"]["enabled"] else "fp16" if self["fp16"]["enabled"] else "fp32"

    def check_device(self, has_gpu: bool) -> None:
        """Raises: ConfigError for fp16 without a CUDA device to run on."""
        if self.precision == "fp16" and not has_gpu:
            raise ConfigError(
                "deepspeed.fp16.enabled: fp16 training needs a CUDA device; on the CPU use bf16.enabled, or neither "
                "for fp32 (if another machine trains, and has one: args.device=cuda)"
            )

    @property
    def stage(self) -> int:
        """Of ZeRO: 0, 1 or 2."""
        stage: int = self["zero_optimization"]["stage"]
        return stage

    @property
    def gradient_sums(self) -> Precision:
        """In which the gradients of a step's micro batches are summed."""
        sums: Precision = self["data_types"]["grad_accum_dtype"]
        return sums

    @property
    def is_offloaded(self) -> bool:
        """Whether the optimizer and its state are on the CPU, under a CUDA device."""
        return is_offloaded(self["zero_optimization"])

    @property
    def optimizer_params(self) -> Mapping[str, Any]:
        """lr, betas, eps and weight_decay, and what else was given."""
        params: dict[str, Any] = self["optimizer"]["params"]
        return params


def is_offloaded(zero: Mapping[str, Any]) -> bool:
    """Whether a block `zero_optimization` keeps the optimizer on the CPU."""
    return ((zero.get("offload_optimizer") or {}).get("device") or "none") != "none"
