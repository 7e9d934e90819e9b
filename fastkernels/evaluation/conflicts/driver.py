"""Has this process initialised the CUDA driver? A child that is forked after that cannot use CUDA."""

from __future__ import annotations

import ctypes
import os

NOT_INITIALISED = 3  # CUDA_ERROR_NOT_INITIALIZED


def driver_initialised() -> bool:
    """Asked of the driver itself, and only where something has loaded it already; the asking initialises nothing."""
    try:
        driver = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOW | os.RTLD_NOLOAD)
    except (OSError, AttributeError):
        return False  # not loaded, or a system without such libraries
    return driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) != NOT_INITIALISED
