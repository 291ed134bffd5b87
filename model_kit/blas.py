"""A fast BLAS for MLX on Linux.

The Linux CPU wheel of MLX is linked to the reference BLAS, some 30 times slower in float32 than
OpenBLAS. A library in the process's global namespace is searched before that one, so OpenBLAS
serves MLX once it has been loaded there, but only before MLX: Python's import binds every symbol
at once, and for good.
"""

import ctypes
import logging
import sys
from functools import cache
from importlib.metadata import distributions

_LIBRARY = "libopenblas.so.0"
_log = logging.getLogger("sightline")


@cache
def preload_openblas() -> str | None:
    """Make MLX's float32 matrix products on a Linux CPU use OpenBLAS; call it before importing mlx.

    Returns the name of the library that now serves, or None where there is nothing to load: on
    other systems, without OpenBLAS, and after mlx has been imported. Unless MLX computes on a GPU,
    the last two are logged: being too late is an application's fault, and a warning; a missing
    package is how the machine is, and information.
    Only the first call of a process does anything; later ones return its result.
    """
    if sys.platform != "linux":
        return None
    if hasattr(ctypes.CDLL(None), "openblas_get_config"):  # by LD_PRELOAD, or by the application
        return _LIBRARY
    if (mlx := sys.modules.get("mlx.core")) is not None:
        if mlx.default_device() == mlx.gpu:
            return None
        _log.warning(
            "mlx was imported before OpenBLAS could be loaded, which is too late: its matrix "
            "products stay on the slow built-in BLAS; load the engine before importing mlx"
        )
        return None
    try:
        ctypes.CDLL(_LIBRARY, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        if any(d.name.startswith("mlx-cuda") for d in distributions()):
            return None
        _log.info(
            "no OpenBLAS on this system: float32 on the CPU runs about 9 times slower for prompts "
            "and 3 times for answers; install the Debian package libopenblas0-pthread"
        )
        return None
    return _LIBRARY
