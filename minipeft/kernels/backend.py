"""The switch between a kernel's definition and its compiled form, and the one place where compiling and threads are settled.

Three decisions live here, so that a kernel file holds only mathematics:

* **Which form runs.** ``MINIPEFT_BACKEND=numpy|numba`` or ``use_backend("numpy")``.
* **How a loop is compiled.** ``@jit`` compiles at the first call, never at import, and keeps the machine code on disk.
* **How a large input uses several cores.** A compiled loop is a plain serial loop over rows that releases Python's
  global lock; ``run_rows`` cuts the rows into blocks and hands the blocks to threads. A row is always computed by the
  same instructions, so the bits do not depend on the number of threads. There is no Numba ``parallel=True``: its
  thread pools compete with the BLAS library's (a training step can become ten times slower), starting one costs
  50-130 microseconds a call, and a parallel loop takes several times longer to compile.
"""

import contextlib
import ctypes
import hashlib
import os
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
from numba.core import config as numba_config

# LLVM may reorder sums and use fused multiply-add, but must not assume that there is no NaN or infinity:
# attention masks and diverging losses contain them.
FASTMATH = {"nsz", "arcp", "contract", "reassoc"}

# Below this much work one core is faster, and not only because waking a second thread takes some 50 microseconds:
# between two matrix products the other cores are held by BLAS threads that spin, waiting for the next product.
# Measured on two cores: a training step of width 384 on 32 x 256 tokens takes a sixth less time with threads,
# steps on a quarter of the tokens or fewer take 0 to 3 % more.
PARALLEL_THRESHOLD = 1 << 23

REGISTRY = {}  # name of a kernel -> Kernel; the tests and the benchmarks run over all of it

_backend = os.environ.get("MINIPEFT_BACKEND", "numba")


def _check_backend(name, where):
    if name not in ("numpy", "numba"):
        raise ValueError(f"{where}: expected 'numpy' or 'numba', got {name!r}")


def current_backend():
    """Name of the backend in use: ``"numpy"`` (the definitions) or ``"numba"`` (the compiled loops)."""
    _check_backend(_backend, "MINIPEFT_BACKEND")
    return _backend


class use_backend:
    """Choose the backend, for good or for a ``with`` block.

    >>> use_backend("numpy")            # from here on
    >>> with use_backend("numba"): ...  # inside the block only

    Raises ValueError for any other name.
    """

    def __init__(self, name):
        global _backend
        _check_backend(name, "use_backend")
        self._previous, _backend = _backend, name

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        global _backend
        _backend = self._previous


class Kernel:
    """A function with two forms of one signature: ``reference`` (the definition) and ``compiled`` (the fast one).

    Calling it runs the form that the backend names. ``REGISTRY`` lists every kernel by name.
    """

    def __init__(self, name, reference, compiled):
        self.name, self.reference, self.compiled = name, reference, compiled
        self.__doc__ = reference.__doc__
        REGISTRY[name] = self

    def __call__(self, *args, **kwargs):
        form = self.reference if current_backend() == "numpy" else self.compiled
        return form(*args, **kwargs)

    def __repr__(self):
        return f"Kernel({self.name}, backend={current_backend()})"


# ---- compiling -------------------------------------------------------------------------------------------------


def _source_hash():
    """Hash of every file in this package: Numba's cache watches only the file of the function itself."""
    digest = hashlib.sha256(f"{numba.__version__} {sys.version_info[:2]}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _writable(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _user_cache():
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "minipeft"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/minipeft"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "minipeft"


def _find_cache_folder():
    """Where machine code is kept: ``NUMBA_CACHE_DIR`` if set, else beside this file, else the user's cache, else None."""
    if os.environ.get("NUMBA_CACHE_DIR"):
        candidates = [Path(os.environ["NUMBA_CACHE_DIR"])]
    else:
        candidates = [Path(__file__).parent / "__pycache__", _user_cache()]
    for folder in candidates:
        if _writable(folder):
            return folder / f"compiled-{_source_hash()}"
    return None


CACHE_FOLDER = _find_cache_folder()


def jit(function, fastmath=FASTMATH):
    """Compile a loop at its first call; keep the machine code in ``CACHE_FOLDER`` where there is one."""
    previous = numba_config.CACHE_DIR
    numba_config.CACHE_DIR = str(CACHE_FOLDER or "")  # Numba reads it while it decorates
    try:
        return numba.njit(nogil=True, fastmath=fastmath, error_model="numpy", cache=CACHE_FOLDER is not None)(function)
    finally:
        numba_config.CACHE_DIR = previous


_announced = False


def _announce_first_compile():
    """Tell a person who waits why the very first run is slow."""
    global _announced
    if not _announced:
        _announced = True
        if CACHE_FOLDER is None or not any(CACHE_FOLDER.rglob("*.nbc")):
            print("minipeft: compiling the kernels (once for this machine, a few seconds in all) ...", file=sys.stderr)


# ---- threads ---------------------------------------------------------------------------------------------------


def available_cores():
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _threads_from_environment():
    text = os.environ.get("MINIPEFT_NUM_THREADS")
    if text is None:
        return available_cores()
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"MINIPEFT_NUM_THREADS: expected a whole number of at least 1, got {text!r}")
    return int(text)


_num_threads = None
_pool, _pool_owner = None, None
_pool_lock = threading.Lock()
_helpers, _kept_off = [], None  # native ids of the pool's threads, and the core that they stay away from


def num_threads():
    """How many threads share a large kernel: ``MINIPEFT_NUM_THREADS``, else the cores this process may use."""
    global _num_threads
    if _num_threads is None:
        _num_threads = _threads_from_environment()
    return _num_threads


@contextlib.contextmanager
def use_threads(count):
    """Run a block with ``count`` threads for the kernels (matrix products belong to BLAS and keep theirs)."""
    global _num_threads
    previous, _num_threads = num_threads(), count
    try:
        yield
    finally:
        _num_threads = previous


def _thread_pool():
    """The helper threads, started at first need and again in a forked child."""
    global _pool, _pool_owner, _kept_off
    with _pool_lock:
        wanted = (os.getpid(), num_threads())
        if _pool_owner != wanted:
            _helpers.clear()
            _kept_off = None
            _pool = ThreadPoolExecutor(num_threads() - 1, thread_name_prefix="minipeft",
                                       initializer=lambda: _helpers.append(threading.get_native_id()))
            _pool_owner = wanted
        return _pool


try:
    _current_core = ctypes.PyDLL(None).sched_getcpu  # glibc and musl; other systems have no such function
except (AttributeError, OSError, TypeError):
    _current_core = None


def _keep_helpers_off_this_core():
    """Let the helper threads run on every core but the one we are on (Linux).

    Linux likes to wake a thread on the core of the thread that woke it. There it would wait for us, and the blocks
    would run one after another: on two cores most calls did, and a GELU of 1.5 million elements took 0.42 ms, not 0.26.
    """
    global _kept_off
    if _current_core is None or not hasattr(os, "sched_setaffinity"):
        return
    here = (_current_core(), len(_helpers))
    if here == _kept_off:
        return
    cores = os.sched_getaffinity(0) - {here[0]}
    with contextlib.suppress(OSError):  # a helper that has ended, or a system that forbids it
        for helper in _helpers if cores else ():
            os.sched_setaffinity(helper, cores)
    _kept_off = here


def run_rows(loop, rows, elements, *args):
    """Call ``loop(start, stop, *args)`` for the rows 0..rows-1: at once, or in one block a thread when large.

    Args:
        loop: a compiled function that fills rows ``start..stop-1`` of its outputs and touches no other row.
        rows: number of rows.
        elements: how much work that is, counted in plain multiply-adds; it decides whether threads pay.
    """
    compiled = bool(getattr(loop, "signatures", True))  # with NUMBA_DISABLE_JIT=1 it is a plain function, to step through
    if not compiled:
        _announce_first_compile()
    threads = min(num_threads(), rows)
    if threads < 2 or elements < PARALLEL_THRESHOLD:
        loop(0, rows, *args)
        return
    edges = [rows * i // threads for i in range(threads + 1)]
    if not compiled:  # compile in one thread, or every thread would compile
        loop(0, 0, *args)
    pool = _thread_pool()
    _keep_helpers_off_this_core()
    others = [pool.submit(loop, edges[i], edges[i + 1], *args) for i in range(1, threads)]
    loop(edges[0], edges[1], *args)
    for other in others:
        other.result()
