"""What several test files share: where the golden files lie, the peer libraries, the two backends, and a fresh interpreter."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: a thread each, settled before NumPy reads it
    os.environ.update({name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MINIPEFT_NUM_THREADS")})

import numpy as np
import pytest
from hypothesis import settings

import minipeft.kernels as kernels

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"

settings.register_profile("minipeft", deadline=None, max_examples=25, derandomize=True, database=None)
settings.load_profile("minipeft")


@pytest.fixture(scope="session")
def shared():
    """The folder of golden files, models and data beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared")
    return SHARED


@pytest.fixture(scope="session")
def peer():
    """``peer("torch")``: a library that minipeft is compared with, or a skip where it is not installed."""
    return lambda name: pytest.importorskip(name, reason=f"needs the peers extra: {name}")


@pytest.fixture(params=["numpy", "numba"])
def backend(request):
    """Runs the test once with the definitions in NumPy and once with the compiled loops."""
    with kernels.use_backend(request.param):
        yield request.param


@pytest.fixture
def rng():
    """A generator with a fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def run_python():
    """``run_python(code, NAME="value")``: run code in a fresh interpreter that finds this package;
    returns the finished process."""

    def run(code, **environment):
        paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p), **environment}
        return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=variables, capture_output=True,
                              text=True, timeout=300)

    return run
