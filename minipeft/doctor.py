"""Look at the installation and the machine, and say what to do about each thing that is wrong."""

import ctypes
import glob
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from . import __version__


class Finding(NamedTuple):
    """One line of the report: what was looked at, what was found, and what to do about it (empty when all is well)."""

    name: str
    value: str
    advice: str = ""


def _versions():
    yield Finding("python", platform.python_version(),
                  "" if sys.version_info >= (3, 10) else "minipeft needs Python 3.10 or later")
    yield Finding("minipeft", f"{__version__} in {Path(__file__).parent}")
    for name in ("numpy", "numba", "llvmlite", "safetensors", "tokenizers", "rich", "matplotlib", "joblib"):
        try:
            yield Finding(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, "not installed", f"pip install {name}")


def blas():
    """(name, threads or None) of the library that multiplies matrices."""
    import numpy as np

    try:
        name = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
    except (KeyError, TypeError):
        name = "unknown"
    folder = Path(np.__file__).parent
    for path in glob.glob(str(folder.parent / "numpy.libs" / "*openblas*")) + glob.glob(str(folder / ".dylibs" / "*openblas*")):
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for symbol in ("scipy_openblas_get_num_threads64_", "openblas_get_num_threads64_", "openblas_get_num_threads"):
            if hasattr(library, symbol):
                return name, getattr(library, symbol)()
    return name, None


def _threads():
    import numba

    from .kernels import backend as b

    cores = b.available_cores()
    name, threads = blas()
    shown = f"{name}, {threads if threads is not None else 'an unknown number of'} threads on {cores} cores"
    advice = ""
    if threads is not None and threads < cores:
        setting = next((f"{v}={os.environ[v]}" for v in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS") if v in os.environ), None)
        advice = (f"unset {setting.split('=')[0]} (it is {setting.split('=')[1]}) to use all cores" if setting
                  else f"set OPENBLAS_NUM_THREADS={cores}")
    yield Finding("BLAS", shown, advice)
    yield Finding("kernel threads", str(b.num_threads()),
                  "" if b.num_threads() >= cores else "unset MINIPEFT_NUM_THREADS to use all cores")
    yield Finding("Numba threading layer", "none: kernels are serial loops, cut into blocks of rows for minipeft's own threads")
    off = numba.config.DISABLE_JIT
    yield Finding("Numba compiles", "no" if off else "yes",
                  "unset NUMBA_DISABLE_JIT: the kernels need their compiled form" if off else "")
    yield Finding("backend", b.current_backend(),
                  "" if b.current_backend() == "numba" else "unset MINIPEFT_BACKEND: the NumPy definitions are slow")


def _folders():
    from .kernels import backend, memory

    folder = backend.CACHE_FOLDER
    if folder is None:
        yield Finding("cache of compiled kernels", "none is writable",
                      "set NUMBA_CACHE_DIR to a folder you can write, or every start compiles for some seconds")
    else:
        count = len(list(folder.rglob("*.nbc"))) if folder.is_dir() else 0
        yield Finding("cache of compiled kernels", f"{folder} ({count} compiled so far)")
    yield Finding("freed memory is kept", "yes" if memory.KEPT else "no",
                  "" if memory.KEPT or not sys.platform.startswith("linux") or os.environ.get("MINIPEFT_KEEP_MEMORY") != "0"
                  else "unset MINIPEFT_KEEP_MEMORY: steps may take half again as long")


def _best(function, seconds):
    function()
    best, stop = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < stop:
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


def _speed():
    import numpy as np

    from . import kernels

    rng, n = np.random.default_rng(0), 768
    a = rng.standard_normal((n, n), np.float32)
    rate = 2 * n**3 / _best(lambda: a @ a, 0.4) / 1e9
    yield Finding("matrix products", f"{rate:.0f} GFLOP/s in float32",
                  "" if rate > 10 else "this NumPy has a slow BLAS; reinstall it from PyPI: pip install --force-reinstall numpy")
    x = rng.standard_normal((4096, n), np.float32)
    gain, bias = np.ones(n, np.float32), np.zeros(n, np.float32)
    per = _best(lambda: kernels.norm(x, gain, bias, 1e-5, True), 0.3) / x.size * 1e9
    plain = _best(lambda: kernels.REGISTRY["norm"].reference(x, gain, bias, 1e-5, True), 0.3) / x.size * 1e9
    yield Finding("compiled layer norm", f"{per:.2f} ns an element, {plain / per:.0f} times as fast as NumPy",
                  "" if per < plain else "compiled kernels should beat NumPy; is MINIPEFT_BACKEND or NUMBA_DISABLE_JIT set?")


def examine():
    """All findings, in the order of the report; takes about two seconds. A check that fails is a finding, too."""
    findings = []
    for name, check in (("versions", _versions), ("threads", _threads), ("folders", _folders), ("speed", _speed)):
        try:
            findings.extend(check())
        except Exception as error:
            advice = (f"pip install {error.name}" if isinstance(error, ModuleNotFoundError)
                      else "mend what is said above; if nothing is, reinstall minipeft")
            findings.append(Finding(f"{name}: check failed", f"{type(error).__name__}: {error}", advice))
    return findings


def show(findings):
    """Print the report to standard output."""
    width = max(len(f.name) for f in findings)
    for finding in findings:
        print(f"{'!!' if finding.advice else 'ok'}  {finding.name:<{width}}  {finding.value}")
        if finding.advice:
            print(f"    {'':<{width}}  -> {finding.advice}")
    wrong = sum(bool(f.advice) for f in findings)
    print("all is well" if not wrong else f"{wrong} thing{'s' if wrong > 1 else ''} to look at")
