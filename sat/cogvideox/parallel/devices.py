"""Whether this machine has a GPU, asked without torch: `--check` answers before torch is imported."""

from __future__ import annotations

import ctypes
import os


def has_gpu() -> bool:
    """Whether CUDA would find a device that it may use (CUDA_VISIBLE_DEVICES counts), or ROCm's driver is there."""
    if os.path.exists("/dev/kfd"):
        return True
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
