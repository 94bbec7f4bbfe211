"""How convolutions run on a CUDA device: the layout of their memory, and cuDNN's search for the fastest kernel.

Which is faster depends on the device, cuDNN's version and the type of numbers, so it is measured once, when the
autoencoder has come to its device. Every process measures its own device for itself: results differ by rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import nn
from torch.nn import functional as F

from cogvideox.log import get_logger

_log = get_logger(__name__)

# What is timed: two frames of a 480 x 720 video at half size, a quarter of one at full size. Input and output of the
# wider convolution take 265 MB in 16 bits, twice that in float32; cuDNN's workspaces come on top.
FRAMES, HEIGHT, WIDTH = 2, 240, 360
WARM_UPS, REPEATS = 2, 5
LIMIT_S = 5.0  # of all calls that were timed; what has not been measured by then is not chosen
MARGIN = 0.95  # something else than the default must take at most so much of its time

Timer = Callable[[Callable[[], object]], float]  # seconds that a piece of work takes


@dataclass(frozen=True)
class Convolutions:
    """channels_last: the layout of weights and features. benchmark: cuDNN tries its kernels at the first call of every
    shape; on CUDA only."""

    channels_last: bool = True
    benchmark: bool = False

    def __str__(self) -> str:
        return f"{'channels last' if self.channels_last else 'contiguous'}{' with a search' if self.benchmark else ''}"

    def memory_format(self, dims: int) -> torch.memory_format:
        """Of tensors with 4 or 5 dimensions."""
        if not self.channels_last:
            return torch.contiguous_format
        return torch.channels_last_3d if dims == 5 else torch.channels_last

    def lay_out(self, network: nn.Module) -> None:
        """Put the weights of all convolutions in this layout."""
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                weight = module.weight
                weight.data = weight.data.contiguous(memory_format=self.memory_format(weight.dim()))

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The time of one call of the autoencoder, whose shapes come again; other parts of the program keep theirs."""
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = before or self.benchmark
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before


DEFAULT = Convolutions()
OPTIONS = (DEFAULT, Convolutions(False), Convolutions(benchmark=True), Convolutions(False, benchmark=True))


def time_on_device(work: Callable[[], object]) -> float:
    """Seconds from the work's first kernel to its last one, on the current CUDA device."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


@torch.no_grad()
def fastest(convs: Sequence[nn.Conv3d], timer: Timer) -> Convolutions:
    """Time causal convolutions in every way, and take the fastest one for all of them together; say so in the log.

    A few hundred MB and LIMIT_S seconds at most, and one call of a convolution more. Where memory doesn't suffice for
    that, the default stays.
    """
    found: dict[Convolutions, float] = {}
    spent = 0.0
    try:
        for option in OPTIONS:
            medians = []
            for conv in convs:
                times = _times(conv, option, timer, LIMIT_S - spent)
                spent += sum(times)
                if len(times) == WARM_UPS + REPEATS:
                    medians.append(median(times[WARM_UPS:]))
            if len(medians) == len(convs):
                found[option] = sum(medians)
    except torch.OutOfMemoryError:
        _log.warning("no memory to time the VAE's convolutions: %s", DEFAULT)
        return DEFAULT
    best = min(found, key=lambda option: found[option], default=DEFAULT)
    if best != DEFAULT and found[best] > MARGIN * found[DEFAULT]:
        best = DEFAULT
    seen = ", ".join(f"{option} {1000 * seconds:.2f}" for option, seconds in found.items())
    _log.info("VAE convolutions: %s (ms: %s)", best, seen or f"none within {LIMIT_S:g} s")
    return best


def _times(conv: nn.Conv3d, option: Convolutions, timer: Timer, limit: float) -> list[float]:
    """Of one call after the other, until they have taken `limit` seconds together."""
    layout = option.memory_format(5)
    weight = conv.weight.contiguous(memory_format=layout)
    shape = (1, conv.in_channels, FRAMES + conv.kernel_size[0] - 1, HEIGHT, WIDTH)
    x = torch.empty(shape, dtype=weight.dtype, device=weight.device, memory_format=layout).fill_(0.5)
    work = partial(F.conv3d, x, weight, conv.bias, padding=conv.padding)
    times: list[float] = []
    with option.in_use():
        while len(times) < WARM_UPS + REPEATS and sum(times) < limit:
            times.append(timer(work))
    return times
