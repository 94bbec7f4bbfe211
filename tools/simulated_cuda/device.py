"""Starting the device, and the mode in which tensors live on it."""

from __future__ import annotations

import ctypes
import os
import sys
from importlib.metadata import version
from pathlib import Path

from cogvideox.errors import ConfigError

from simulated_cuda.libraries import guard_library, preload_library

_PRELOAD = "LD_PRELOAD"
_HOOK = "fake_cuda_hooks"
LEAST_TORCH = (2, 6)


def start() -> None:
    """Make this process one whose torch believes in a CUDA device, once more from its beginning, with a library
    preloaded. Real devices are hidden. Before torch is imported; there is no way back.

    Raises: ConfigError on another system than Linux, for a torch before 2.6, where a library can't be built.
    """
    if sys.platform != "linux":
        raise ConfigError(f"the simulated device works on Linux only, this is {sys.platform}")
    torch_version = version("torch")
    if tuple(int(part) for part in torch_version.split(".")[:2]) < LEAST_TORCH:
        raise ConfigError(f"the simulated device needs torch 2.6 or newer, this is {torch_version}")
    _preload()
    import torch

    ctypes.CDLL(str(guard_library(Path(torch.__file__).parent, torch_version)))
    from simulated_cuda import tensors, torch_cuda

    torch_cuda.install()
    tensors.install()


def _preload() -> None:
    """Start this process again with the library in front of torch's; after that, programs that it starts don't get
    it."""
    library = str(preload_library())
    others = [each for each in os.environ.get(_PRELOAD, "").split(":") if each and each != library]
    if hasattr(ctypes.CDLL(None), _HOOK):
        os.environ[_PRELOAD] = ":".join(others)
        return
    if os.environ.get(_PRELOAD, "").startswith(library):
        raise ConfigError(f"{library} was not loaded although it stands in {_PRELOAD}: is this a static Python?")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", _PRELOAD: ":".join([library, *others])}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
