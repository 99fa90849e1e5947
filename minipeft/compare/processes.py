"""Runs in processes of their own, several at a time, through joblib: here with threads that wait for them, or on a Dask cluster.

A process of its own makes a run's peak memory true, and its number of threads is fixed from outside before NumPy loads. Every
run has the same number, whatever runs beside it: results are the same bits for any ``--jobs``.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ..data import files
from .run import RESULT, Run

CHILD = """import signal, sys
sys.path[:] = {path}  # the same package as ours, whatever lies in the folder we are in
try:
    from minipeft.compare.child import main
    if hasattr(signal, "pthread_sigmask"):  # from here on a Ctrl-C is heard, also one that came before
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    code = main(sys.argv[1:])
except KeyboardInterrupt:
    code = 130
sys.exit(code)
"""
# Whoever brings threads of its own: OpenBLAS, OpenMP, Intel's and Apple's libraries, Rust's tokenizers, and our kernels.
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "RAYON_NUM_THREADS",
           "MINIPEFT_NUM_THREADS")
GRACE = 10.0  # seconds after a Ctrl-C in which a run that heard it ends its step and writes a checkpoint
_alive, _stop = {}, threading.Event()  # {process of a run: the Dask client that asked for it, or None}
_gone = {}  # on a worker: {a Dask client that was interrupted: the processes that were told}


@dataclass
class Job:
    """A `Run` with the folder it goes to, what it is called, and of what it speaks (see `run.execute`)."""

    run: Run
    folder: Path
    label: str
    notes: tuple = ()


@dataclass
class Outcome:
    """How a job ended: with a ``result``, with the ``reason`` why there is none, or ``stopped`` by Ctrl-C."""

    job: Job
    result: dict | None = None
    reason: str | None = None
    stopped: bool = False


def environment(threads):
    """The environment of a run's process."""
    return {**os.environ, "PYTHONIOENCODING": "utf-8", **dict.fromkeys(THREADS, str(threads))}


def in_own_process(job, threads=1, listen=None, here=None, client=None):
    """Run a `Job` in a new process; returns its `Outcome`.

    Args:
        threads: of the process. listen: function of (job, {"step", "total", ...}) that is told of its progress.
        here: the folder that paths are relative to; default: the current one. client: the Dask client that asks, by its name.
    """
    if _stop.is_set() or client in _gone:
        return Outcome(job, stopped=True)
    here, reason = Path(here or os.getcwd()), None
    folder = here / job.folder
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "spec.json", {**asdict(job.run), "notes": list(job.notes)})
    arguments = [sys.executable, "-c", CHILD.format(path=sys.path), str(job.folder / "spec.json"), str(job.folder)]
    with _deaf():
        process = subprocess.Popen(arguments, cwd=here, text=True, encoding="utf-8", stdout=subprocess.PIPE,
                                   env=environment(threads))
    _alive[process] = client
    if client in _gone:  # whoever stopped it did not see this one yet
        process.send_signal(signal.SIGINT)
    for line in process.stdout:
        said = _read(line)
        if "error" in said:
            reason = said["error"]
        elif listen is not None:
            listen(job, said)
    process.wait()
    _alive.pop(process, None)
    if process.returncode == 130 or (_stop.is_set() or client in _gone) and process.returncode == -signal.SIGINT:
        return Outcome(job, stopped=True)
    if process.returncode:
        return Outcome(job, reason=reason or f"its process ended with code {process.returncode}" + (
            ", killed by the system, perhaps for lack of memory" if process.returncode < 0 else ""))
    return Outcome(job, result=files.read_json(folder / RESULT, "result"))


@contextlib.contextmanager
def _deaf():
    """A process that is started inside this block does not hear a Ctrl-C while Python starts and knows no way to stop cleanly."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _read(line):
    """The object that a line of a run's standard output holds; a line of anything else is passed on to a person."""
    try:
        said = json.loads(line)
    except ValueError:
        said = None
    if isinstance(said, dict):
        return said
    print(line, end="", file=sys.stderr)
    return {}


def run_all(jobs, workers, threads, dask=None, board=None):
    """Run every job; returns {folder: Outcome} in the order in which they ended.

    Args:
        jobs: list of `Job`. workers: how many at a time. threads: of each.
        dask: the address of a Dask scheduler, whose workers then run the jobs; they must see the same folders as we do.
        board: what is told of the progress: ``listen(job, said)``, ``finished(outcome)``.

    Raises:
        KeyboardInterrupt: Ctrl-C; the runs in hand have ended. ValueError: no Dask, or no scheduler at the address.
    """
    outcomes, listen = {}, board.listen if board is not None and dask is None else None
    _stop.clear()
    try:
        for outcome in (_on_dask(jobs, threads, dask) if dask is not None else _here(jobs, workers, threads, listen)):
            if outcome.stopped:
                raise KeyboardInterrupt
            outcomes[outcome.job.folder] = outcome
            if board is not None:
                board.finished(outcome)
    except KeyboardInterrupt:
        _stop.set()
        _wait_for_runs()
        raise
    return outcomes


def _here(jobs, workers, threads, listen):
    """The outcomes of jobs whose processes are started by as many threads as there are workers."""
    from joblib import Parallel, delayed

    pool = Parallel(n_jobs=workers, backend="threading", batch_size=1, pre_dispatch="n_jobs", return_as="generator_unordered")
    yield from pool(delayed(in_own_process)(job, threads, listen) for job in jobs)


def _on_dask(jobs, threads, address):
    """The outcomes of jobs whose processes are started by the workers of a Dask cluster, through joblib's own backend."""
    try:
        import distributed
    except ModuleNotFoundError:
        raise ValueError('dask: needs the package distributed; in the project\'s folder run: pip install ".[dask]"') from None
    from joblib import Parallel, delayed, parallel_config

    try:
        client = distributed.Client(address, timeout=5, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"dask: no scheduler answers at {address!r} ({error}); expected an address such as "
                         "tcp://192.168.1.5:8786, as dask scheduler prints it") from None
    with client, parallel_config(backend="dask", client=client):
        pool = Parallel(n_jobs=-1, batch_size=1, return_as="generator_unordered")
        try:
            yield from pool(delayed(in_own_process)(job, threads, None, os.getcwd(), client.id) for job in jobs)
        except (KeyboardInterrupt, GeneratorExit):
            with contextlib.suppress(OSError):  # the cluster is gone
                while any(client.run(_stop_runs_of, client.id, on_error="ignore").values()):
                    time.sleep(0.2)
            raise


def _stop_runs_of(client):
    """On a worker: tell the runs of a Dask client that it was interrupted, each once, and begin none;
    returns how many are left."""
    told, left = _gone.setdefault(client, set()), [process for process, whose in list(_alive.items()) if whose == client]
    for process in left:
        if process not in told:
            told.add(process)
            process.send_signal(signal.SIGINT)
    return len(left)


def _wait_for_runs():
    """Let the runs in hand end: the same Ctrl-C has reached them, they end their step and write a checkpoint.

    Where it reached us alone they are told after a while; a second Ctrl-C ends them at once.
    """
    deadline = time.monotonic() + GRACE
    try:
        for process in list(_alive):
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
                process.wait()
    finally:
        for process in list(_alive):
            process.kill()
        _alive.clear()
