"""The doctor: it says what is there, and for each thing that is wrong what to do, also where much is missing."""

import json
import os
import re
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

import minipeft
from minipeft import cli, doctor
from minipeft.doctor import Finding
from minipeft.kernels import backend, memory


@pytest.fixture
def well(monkeypatch):
    """A machine on which all is well, without the measurements, which take a second and depend on the machine."""
    for name in list(os.environ):
        if name.startswith(("MINIPEFT_", "NUMBA_", "OPENBLAS_", "OMP_")):
            monkeypatch.delenv(name)
    cores = backend.available_cores()
    monkeypatch.setattr(doctor, "blas", lambda: ("some-blas", cores))
    monkeypatch.setattr(backend, "_num_threads", cores)
    monkeypatch.setattr(memory, "KEPT", True)
    monkeypatch.setattr(doctor, "_best", lambda function, seconds: next(times))
    times = iter([1e-3, 1e-3, 7e-3] * 9)  # a matrix product, the compiled norm, the norm in NumPy
    return cores


def advice(findings):
    return {f.name: f.advice for f in findings if f.advice}


def test_all_is_well(well, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor", "--json", "d.json"]) == 0
    out, err = capsys.readouterr()
    written = json.loads((tmp_path / "d.json").read_text())
    assert err == "" and out.splitlines()[-1] == "all is well" and "!!" not in out and "->" not in out
    assert [set(f) for f in written] == [{"name", "value", "advice"}] * len(written)
    values = {f["name"]: f["value"] for f in written}
    assert values["python"] == ".".join(map(str, sys.version_info[:3]))
    assert values["minipeft"].startswith(f"{minipeft.__version__} in ")  # also where it is run from its source and not installed
    for name in ("numpy", "numba", "llvmlite", "safetensors", "tokenizers", "rich", "matplotlib", "joblib"):
        assert values[name] == metadata.version(name)
    assert values["BLAS"] == f"some-blas, {well} threads on {well} cores"
    assert values["kernel threads"] == str(well) and values["Numba threading layer"].startswith("none")
    assert str(backend.CACHE_FOLDER) in values["cache of compiled kernels"]
    assert values["matrix products"] == f"{2 * 768**3 / 1e-3 / 1e9:.0f} GFLOP/s in float32"
    assert values["compiled layer norm"] == f"{1e6 / (4096 * 768):.2f} ns an element, 7 times as fast as NumPy"
    for line, finding in zip(out.splitlines(), written):
        assert re.fullmatch(rf"ok  {re.escape(finding['name'])} +{re.escape(finding['value'])}", line)


def test_exit_code_and_count_of_what_is_wrong(well, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("a", "1"), Finding("bcd", "2", "do this")])
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().out == "ok  a    1\n!!  bcd  2\n         -> do this\n1 thing to look at\n"
    doctor.show([Finding("a", "1", "x"), Finding("b", "2", "y")])
    assert capsys.readouterr().out.endswith("\n2 things to look at\n")


def test_an_old_python(well, monkeypatch):
    monkeypatch.setattr(doctor.sys, "version_info", (3, 9, 1))
    assert advice(doctor._versions()) == {"python": "minipeft needs Python 3.10 or later"}


def test_a_missing_library(well, monkeypatch):
    version = metadata.version

    def lacking(name):
        if name in ("rich", "joblib"):
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor.metadata, "version", lacking)
    assert advice(doctor.examine()) == {"rich": "pip install rich", "joblib": "pip install joblib"}


@pytest.mark.parametrize("variable", ["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", None])
def test_few_threads(variable, well, monkeypatch):
    monkeypatch.setattr(backend, "available_cores", lambda: 64)
    monkeypatch.setattr(backend, "_num_threads", 3)
    if variable:
        monkeypatch.setenv(variable, "2")
    found = advice(doctor._threads())
    assert found == {
        "BLAS": f"unset {variable} (it is 2) to use all cores" if variable else "set OPENBLAS_NUM_THREADS=64",
        "kernel threads": "unset MINIPEFT_NUM_THREADS to use all cores",
    }


def test_unknown_threads_are_no_fault(well, monkeypatch):
    monkeypatch.setattr(doctor, "blas", lambda: ("mkl", None))
    findings = list(doctor._threads())
    assert advice(findings) == {} and findings[0].value == f"mkl, an unknown number of threads on {well} cores"


def test_the_slow_backend(well, monkeypatch):
    monkeypatch.setattr(backend, "_backend", "numpy")
    assert advice(doctor._threads()) == {"backend": "unset MINIPEFT_BACKEND: the NumPy definitions are slow"}


def test_folders(well, monkeypatch, tmp_path):
    monkeypatch.setattr(backend, "CACHE_FOLDER", None)
    assert advice(doctor._folders()) == {
        "cache of compiled kernels": "set NUMBA_CACHE_DIR to a folder you can write, or every start compiles for some seconds"
    }
    (tmp_path / "deep").mkdir()
    for name in ("a.nbc", "deep/b.nbc", "c.nbi"):
        (tmp_path / name).touch()
    monkeypatch.setattr(backend, "CACHE_FOLDER", tmp_path)
    assert next(doctor._folders()) == Finding("cache of compiled kernels", f"{tmp_path} (2 compiled so far)")
    monkeypatch.setattr(backend, "CACHE_FOLDER", tmp_path / "later")
    assert next(doctor._folders()).value.endswith("later (0 compiled so far)")
    monkeypatch.setattr(memory, "KEPT", False)
    monkeypatch.setenv("MINIPEFT_KEEP_MEMORY", "0")
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    assert advice(doctor._folders()) == {"freed memory is kept": "unset MINIPEFT_KEEP_MEMORY: steps may take half again as long"}


@pytest.mark.parametrize(
    "times, name, words",
    [
        (
            [1.0, 1e-3, 7e-3],
            "matrix products",
            "this NumPy has a slow BLAS; reinstall it from PyPI: pip install --force-reinstall numpy",
        ),
        (
            [1e-3, 7e-3, 1e-3],
            "compiled layer norm",
            "compiled kernels should beat NumPy; is MINIPEFT_BACKEND or NUMBA_DISABLE_JIT set?",
        ),
    ],
)
def test_slow_machines(times, name, words, monkeypatch):
    left = iter(times)
    monkeypatch.setattr(doctor, "_best", lambda function, seconds: next(left))
    assert advice(doctor._speed()) == {name: words}


def test_the_clock_keeps_the_best(monkeypatch):
    now = [0.0]
    lasts = iter([9.0, 0.3, 0.1, 0.7, 0.2])
    monkeypatch.setattr(doctor, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def work():
        now[0] += next(lasts)

    assert doctor._best(work, 1.0) == pytest.approx(0.1)  # the first call, which may compile, is not counted


def test_a_check_that_fails_is_a_finding(well, monkeypatch):
    def broken():
        yield Finding("one", "is fine")
        raise AttributeError("no such thing")

    monkeypatch.setattr(doctor, "_threads", broken)
    findings = doctor.examine()
    assert {f.name for f in findings} >= {"numpy", "matrix products", "freed memory is kept"}
    assert advice(findings) == {"threads: check failed": "mend what is said above; if nothing is, reinstall minipeft"}
    assert next(f.value for f in findings if "failed" in f.name) == "AttributeError: no such thing"


def test_blas_of_this_numpy():
    name, threads = doctor.blas()
    assert isinstance(name, str) and name and (threads is None or threads >= 1)


def test_blas_whose_numpy_tells_nothing(monkeypatch):
    import numpy as np

    monkeypatch.setattr(np, "show_config", lambda mode: {})
    monkeypatch.setattr(doctor.glob, "glob", lambda pattern: ["/no/such/openblas.so"])
    assert doctor.blas() == ("unknown", None)


# ---- as it is started ------------------------------------------------------------------------------------------

START = "import sys; from minipeft.cli import main; sys.exit(main(['doctor']))"


def test_everything_wrong_at_once(run_python, tmp_path):
    (tmp_path / "file").write_text("")
    done = run_python(
        START,
        MINIPEFT_BACKEND="numpy",
        MINIPEFT_NUM_THREADS="1",
        NUMBA_CACHE_DIR=str(tmp_path / "file"),
        MINIPEFT_KEEP_MEMORY="0",
        NUMBA_DISABLE_JIT="1",
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    said = re.findall(r"-> (.*)", done.stdout)
    assert "unset MINIPEFT_BACKEND: the NumPy definitions are slow" in said
    assert "unset NUMBA_DISABLE_JIT: the kernels need their compiled form" in said
    assert any(line.startswith("set NUMBA_CACHE_DIR to a folder you can write") for line in said)
    assert done.stdout.splitlines()[-1] == f"{len(said)} things to look at"
    if sys.platform.startswith("linux"):
        assert any(line.startswith("unset MINIPEFT_KEEP_MEMORY") for line in said)


@pytest.mark.parametrize("variable, value", [("MINIPEFT_BACKEND", "fast"), ("MINIPEFT_NUM_THREADS", "0")])
def test_a_setting_that_is_none_is_named(variable, value, run_python):
    done = run_python(START, **{variable: value})
    assert (
        done.returncode == 1
        and done.stderr == ""
        and re.search(rf"!!  \w+: check failed +ValueError: {variable}: expected .*'{value}'", done.stdout)
    )


def test_without_the_libraries(run_python):
    """Where nothing but Python is there it still says what to install."""
    done = run_python(
        """
        import importlib.abc, importlib.metadata, sys

        class Refuse(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("numpy", "numba", "safetensors", "tokenizers", "rich"):
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        def version(name):
            raise importlib.metadata.PackageNotFoundError(name)

        sys.meta_path.insert(0, Refuse())
        importlib.metadata.version = version
    """
        + "\n        "
        + START
    )
    assert done.returncode == 1 and done.stderr == ""
    said = re.findall(r"-> (.*)", done.stdout)
    assert {"pip install numpy", "pip install numba", "pip install tokenizers"} <= set(said)
    assert re.search(r"!!  threads: check failed +ModuleNotFoundError: No module named 'numba'", done.stdout)
