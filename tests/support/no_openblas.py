"""A machine without OpenBLAS, for a process that begins with this."""

WITHOUT_OPENBLAS = """
import ctypes
load = ctypes.CDLL
def no_openblas(name, *args, **kwargs):
    if name and "openblas" in name:
        raise OSError(f"{name}: cannot open shared object file")
    return load(name, *args, **kwargs)
ctypes.CDLL = no_openblas
"""
