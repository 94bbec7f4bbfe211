"""The block of block.py through torch.compile, with a bounded number of graphs, which the log says.

Letters: b batch, v video tokens.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from cogvideox.log import get_logger
from cogvideox.transformer.block import transformer_block

_log = get_logger(__name__)
# Graphs that can come up: for the first size, for batches of one and for larger ones of any other size; each of them
# without gradients, with them, and with them in the first layer, whose input needs none (adapters).
MOST_GRAPHS = 9
# torch ends the run with an error here; its own limit is 8.
_RECOMPILE_LIMIT = 64


class CompiledBlock:
    """`transformer_block` in one graph without breaks, the same code for every layer.

    The size that comes first gets code of its own, which is the fastest: that of training. The first other size gets
    code for every further one. (Left alone, torch would make new code for another batch, and again for other tokens.)
    """

    def __init__(self, backend: str = "inductor") -> None:
        self.num_graphs = 0
        self._first_size: tuple[int, int] | None = None
        self._reported = 0
        self._modes: set[bool] = set()
        compiler: Any = torch._dynamo.lookup_backend(backend)

        def counted(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
            self.num_graphs += 1
            return compiler(graph, inputs)

        self._run = torch.compile(transformer_block, fullgraph=True, backend=counted, **_graph_limit())

    def __call__(
        self,
        layer: Any,
        modulation: Any,
        query_norm: Any,
        key_norm: Any,
        num_heads: int,
        text: Tensor,
        video: Tensor,
        conditioning: Tensor,
        rotation: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `transformer_block`."""
        size = (video.shape[0], video.shape[1])
        if self._first_size is None:
            self._first_size = size
        elif size != self._first_size:
            for tensor, batch, tokens in ((text, 0, None), (video, 0, 1), (conditioning, 0, None), (rotation, None, 1)):
                if tensor is not None and batch is not None and size[0] > 1:
                    torch._dynamo.maybe_mark_dynamic(tensor, batch)
                if tensor is not None and tokens is not None:
                    torch._dynamo.maybe_mark_dynamic(tensor, tokens)
        return self._run(layer, modulation, query_norm, key_norm, num_heads, text, video, conditioning, rotation)

    def report(self, video: Tensor) -> None:
        """After the last layer: say in the log what was compiled for `video` [b, v, d], if anything was."""
        if self.num_graphs == self._reported:
            return
        self._reported = self.num_graphs
        with_gradients = torch.is_grad_enabled()
        again = with_gradients in self._modes
        self._modes.add(with_gradients)
        gradients = "with gradients" if with_gradients else "without gradients"
        place = f"batch {video.shape[0]}, {video.shape[1]} video tokens, {gradients}"
        if again:
            _log.warning(
                "torch.compile made new code for another size (%s): %d graphs of the block by now, at most %d; each "
                "takes minutes, so keep batch and video size the same in training, evaluation and previews",
                place, self.num_graphs, MOST_GRAPHS,
            )  # fmt: skip
        else:
            _log.info("torch.compile: %d graphs of the block by now (%s)", self.num_graphs, place)


def _graph_limit() -> dict[str, Any]:
    """The limit as an argument of torch.compile; before it took one, as torch's setting for the whole process."""
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        return {"recompile_limit": _RECOMPILE_LIMIT}
    settings = torch._dynamo.config
    settings.cache_size_limit = max(settings.cache_size_limit, _RECOMPILE_LIMIT)
    return {}
