"""Each case needs a fresh process: what counts is the order of loading."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.no_openblas import WITHOUT_OPENBLAS

ROOT = Path(__file__).parents[2]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere MLX brings its own")
LOG = """
import logging
logging.basicConfig(format="%(name)s %(levelname)s %(message)s", level=logging.INFO)
"""
PRELOAD = "from model_kit.blas import preload_openblas\n"


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LOG + code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, **env},
    )


@pytest.fixture(scope="module")
def openblas() -> None:
    code = "import ctypes; ctypes.CDLL('libopenblas.so.0')"
    if subprocess.run([sys.executable, "-c", code], capture_output=True).returncode:
        pytest.skip("no OpenBLAS on this system")


def provider_of_sgemm(code: str) -> str:
    """The library whose `cblas_sgemm` the dynamic linker gave to mlx."""
    trace = run(code, LD_DEBUG="bindings").stderr.splitlines()
    [line] = [x for x in trace if "libmlx.so" in x and "`cblas_sgemm'" in x]
    return line.split(" to ")[1]


@LINUX
@pytest.mark.usefixtures("openblas")
def test_mlx_gets_its_products_from_openblas() -> None:
    code = PRELOAD + "assert preload_openblas() == 'libopenblas.so.0'\nimport mlx.core"
    assert "openblas" in provider_of_sgemm(code)


@LINUX
@pytest.mark.usefixtures("openblas")
def test_after_mlx_it_is_too_late() -> None:
    late = "import mlx.core, ctypes; ctypes.CDLL('libopenblas.so.0', mode=ctypes.RTLD_GLOBAL)"
    assert "openblas" not in provider_of_sgemm(late)


@LINUX
def test_being_too_late_is_logged_once() -> None:
    done = run("import mlx.core\n" + PRELOAD + "print(preload_openblas(), preload_openblas())")
    assert done.stdout.split() == ["None", "None"]
    [line] = done.stderr.splitlines()
    assert line.startswith("sightline WARNING mlx was imported before")


@LINUX
@pytest.mark.usefixtures("openblas")
def test_repeated_calls_say_the_same_and_log_nothing() -> None:
    done = run(
        PRELOAD + "print(preload_openblas())\nimport mlx.core\nprint(preload_openblas())\n"
        "preload_openblas.cache_clear()\nprint(preload_openblas())"
    )
    assert done.stdout.split() == ["libopenblas.so.0"] * 3
    assert done.stderr == ""


@LINUX
def test_without_openblas_one_line_names_the_package() -> None:
    done = run(WITHOUT_OPENBLAS + PRELOAD + "print(preload_openblas(), preload_openblas())")
    assert done.stdout.split() == ["None", "None"]
    [line] = done.stderr.splitlines()
    assert line.startswith("sightline INFO no OpenBLAS")
    assert "libopenblas0-pthread" in line


def test_other_systems_are_left_alone() -> None:
    broken = "import sys, ctypes\nsys.platform = 'darwin'\nctypes.CDLL = None\n"
    done = run("import ctypes\n" + PRELOAD + broken + "print(preload_openblas())")
    assert done.stdout.split() == ["None"]
    assert done.stderr == ""


def test_importing_the_module_does_nothing() -> None:
    code = PRELOAD + "import sys, ctypes\nprint(*[m for m in sys.modules if m.startswith('mlx')])\n"
    code += "print(hasattr(ctypes.CDLL(None), 'openblas_get_config'))"
    assert run(code).stdout.split() == ["False"]
