"""The switch between the two forms, the threads, and the folder in which machine code is kept."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import minipeft.kernels as kernels
from minipeft.kernels import backend, softmax, use_backend, use_threads

X = np.array([-1.0, 2.0])


@pytest.fixture(autouse=True)
def restored():
    """The backend of the rest of the suite, whatever a test leaves behind."""
    with use_backend(kernels.current_backend()):
        yield


def which_form_ran(kernel, monkeypatch):
    monkeypatch.setattr(kernel, "reference", lambda x: "reference")
    monkeypatch.setattr(kernel, "compiled", lambda x: "compiled")
    return kernel(X)


# ---- which form runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name,form", [("numpy", "reference"), ("numba", "compiled")])
def test_the_backend_decides_which_form_runs(name, form, monkeypatch):
    with use_backend(name):
        assert which_form_ran(kernels.REGISTRY["relu"], monkeypatch) == form
        assert kernels.current_backend() == name and name in repr(kernels.REGISTRY["relu"])


def test_use_backend_for_good_for_a_block_and_nested():
    use_backend("numba")
    assert kernels.current_backend() == "numba"
    use_backend("numpy")
    with use_backend("numba"):
        with use_backend("numpy"):
            assert kernels.current_backend() == "numpy"
        assert kernels.current_backend() == "numba"
    assert kernels.current_backend() == "numpy"
    with pytest.raises(KeyError):
        with use_backend("numba"):
            raise KeyError
    assert kernels.current_backend() == "numpy"


def test_a_wrong_backend_is_refused_and_changes_nothing():
    before = kernels.current_backend()
    with pytest.raises(ValueError, match=re.escape("use_backend: expected 'numpy' or 'numba', got 'cuda'")):
        use_backend("cuda")
    assert kernels.current_backend() == before


def test_environment_variables(run_python):
    code = ("import numpy as np, minipeft.kernels as k; print(k.current_backend(), k.num_threads()); "
            "k.REGISTRY['relu'](np.ones(3))")
    good = run_python(code, MINIPEFT_BACKEND="numpy", MINIPEFT_NUM_THREADS="3")
    assert good.stdout.split() == ["numpy", "3"], good.stderr
    wrong = run_python(code, MINIPEFT_BACKEND="torch")
    assert "ValueError: MINIPEFT_BACKEND: expected 'numpy' or 'numba', got 'torch'" in wrong.stderr


@pytest.mark.parametrize("text", ["0", "-2", "two", "1.5", ""])
def test_a_wrong_number_of_threads_is_refused(text, monkeypatch):
    monkeypatch.setenv("MINIPEFT_NUM_THREADS", text)
    monkeypatch.setattr(backend, "_num_threads", None)
    with pytest.raises(ValueError, match=f"MINIPEFT_NUM_THREADS: expected a whole number of at least 1, got {text!r}"):
        kernels.num_threads()


def test_number_of_threads_defaults_to_the_cores_of_this_process(monkeypatch):
    monkeypatch.delenv("MINIPEFT_NUM_THREADS", raising=False)
    monkeypatch.setattr(backend, "_num_threads", None)
    assert kernels.num_threads() == backend.available_cores() >= 1


# ---- threads ----------------------------------------------------------------------------------------------------


def test_use_threads_nests_and_is_undone_after_an_error():
    before = kernels.num_threads()
    with use_threads(5):
        with use_threads(2):
            assert kernels.num_threads() == 2
        assert kernels.num_threads() == 5
    with pytest.raises(KeyError), use_threads(7):
        raise KeyError
    assert kernels.num_threads() == before


class Loop:
    """Stands in for a compiled loop; notes which rows it was given."""

    signatures = ["compiled"]

    def __init__(self):
        self.blocks = []

    def __call__(self, start, stop):
        self.blocks.append((start, stop))


@pytest.mark.parametrize("threads,rows", [(1, 10), (2, 10), (3, 10), (4, 3), (3, 1), (8, 8)])
def test_run_rows_gives_each_row_to_exactly_one_thread(threads, rows, monkeypatch):
    monkeypatch.setattr(backend, "PARALLEL_THRESHOLD", 1)
    loop = Loop()
    with use_threads(threads):
        backend.run_rows(loop, rows, 100)
    covered = [i for start, stop in sorted(loop.blocks) for i in range(start, stop)]
    assert covered == list(range(rows)) and len(loop.blocks) == min(threads, rows)
    loop.blocks.clear()
    with use_threads(threads):
        backend.run_rows(loop, rows, 0)  # too small to be worth a thread
    assert loop.blocks == [(0, rows)]


def test_an_error_in_a_helper_thread_is_not_lost(monkeypatch):
    monkeypatch.setattr(backend, "PARALLEL_THRESHOLD", 1)

    class Broken(Loop):
        def __call__(self, start, stop):
            if start > 0:
                raise ZeroDivisionError(start)

    with use_threads(2), pytest.raises(ZeroDivisionError):
        backend.run_rows(Broken(), 10, 100)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or backend._current_core is None,
                    reason="only Linux lets a thread choose its cores")
def test_helpers_keep_off_the_core_of_the_caller(monkeypatch):
    monkeypatch.setattr(backend, "PARALLEL_THRESHOLD", 1)
    monkeypatch.setattr(backend.os, "sched_getaffinity", lambda thread: {0, 1, 2, 3})
    places = {}
    monkeypatch.setattr(backend.os, "sched_setaffinity", places.__setitem__)
    with use_threads(3):
        for core in (2, 2, 0):
            monkeypatch.setattr(backend, "_current_core", lambda core=core: core)
            for _ in range(50):  # until both helpers have been started
                backend.run_rows(Loop(), 3, 100)
                if len(backend._helpers) == 2:
                    break
            backend.run_rows(Loop(), 3, 100)
            assert places == dict.fromkeys(backend._helpers, {0, 1, 2, 3} - {core})


def test_without_a_way_to_choose_cores_kernels_run(monkeypatch):
    monkeypatch.setattr(backend, "PARALLEL_THRESHOLD", 1)
    monkeypatch.setattr(backend, "_current_core", None)
    monkeypatch.setattr(backend.os, "sched_setaffinity", None, raising=False)  # calling it would fail
    loop = Loop()
    with use_threads(2):
        backend.run_rows(loop, 4, 100)
    assert sorted(loop.blocks) == [(0, 2), (2, 4)]


def test_kernels_may_be_called_from_several_threads_at_once(monkeypatch, rng):
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr(backend, "PARALLEL_THRESHOLD", 1)
    inputs = [rng.standard_normal((20, 300)) for _ in range(12)]
    with use_backend("numba"), use_threads(3), ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(kernels.REGISTRY["gelu"], inputs))
    for x, y in zip(inputs, outputs):
        np.testing.assert_allclose(y, kernels.REGISTRY["gelu"].reference(x), rtol=1e-12, atol=1e-15)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_starts_threads_of_its_own(run_python):
    done = run_python("""
        import os, warnings
        import numpy as np
        from minipeft.kernels import REGISTRY, backend, use_threads
        warnings.simplefilter("ignore")  # newer Pythons warn of a fork while threads run
        backend.PARALLEL_THRESHOLD = 1
        x = np.ones((8, 8))
        with use_threads(2):
            REGISTRY["relu"].compiled(x)
            child = os.fork()
            if child == 0:
                os._exit(0 if (REGISTRY["relu"].compiled(x) == x).all() else 1)
            print("child", os.waitpid(child, 0)[1])
    """)
    assert done.stdout.split() == ["child", "0"], done.stderr


# ---- machine code on disk ---------------------------------------------------------------------------------------


COUNT = """
    import numpy as np
    from minipeft.kernels import REGISTRY, softmax
    weights = np.ones((2, 3), np.float32)
    REGISTRY["softmax_backward"].compiled(weights, weights, 1.0)
    stats = softmax._softmax_backward_rows.stats
    print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""
NOTICE = "minipeft: compiling the kernels"


def test_a_second_process_compiles_nothing(run_python, tmp_path):
    first = run_python(COUNT, NUMBA_CACHE_DIR=str(tmp_path))
    assert first.stdout.split() == ["0", "1"], first.stderr
    assert NOTICE in first.stderr and any(tmp_path.rglob("*.nbc"))
    second = run_python(COUNT, NUMBA_CACHE_DIR=str(tmp_path))
    assert second.stdout.split() == ["1", "0"], second.stderr
    assert NOTICE not in second.stderr


def test_without_a_writable_folder_kernels_run_and_keep_nothing(run_python, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for _ in range(2):
        done = run_python(COUNT, NUMBA_CACHE_DIR=str(tmp_path / "file" / "cache"))
        assert done.stdout.split() == ["0", "1"], done.stderr
        assert NOTICE in done.stderr


def test_the_package_folder_is_preferred_and_the_users_cache_is_the_fallback(monkeypatch, tmp_path):
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(backend, "_user_cache", lambda: tmp_path / "cache")
    monkeypatch.setattr(backend, "_writable", lambda folder: True)
    assert backend._find_cache_folder().parent == Path(backend.__file__).parent / "__pycache__"
    monkeypatch.setattr(backend, "_writable", lambda folder: "__pycache__" not in folder.parts)
    assert backend._find_cache_folder().parent == tmp_path / "cache"
    monkeypatch.setattr(backend, "_writable", lambda folder: False)
    assert backend._find_cache_folder() is None
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "chosen"))
    monkeypatch.setattr(backend, "_writable", lambda folder: True)
    assert backend._find_cache_folder().parent == tmp_path / "chosen"


def test_users_cache_follows_the_desktop_convention(monkeypatch, tmp_path):
    monkeypatch.setattr(backend.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert backend._user_cache() == tmp_path / "minipeft"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert backend._user_cache() == Path.home() / ".cache" / "minipeft"


def test_writable(tmp_path):
    assert backend._writable(tmp_path / "new" / "folder") and (tmp_path / "new" / "folder").is_dir()
    (tmp_path / "file").write_text("")
    assert not backend._writable(tmp_path / "file" / "folder")


def test_jit_without_a_cache_folder_still_compiles(monkeypatch):
    monkeypatch.setattr(backend, "CACHE_FOLDER", None)

    def double(x):
        return x + x

    compiled = backend.jit(double)
    assert compiled(2) == 4 and len(compiled.signatures) == 1
    assert compiled.stats.cache_path is None


def test_an_edit_in_any_file_of_the_package_makes_a_new_cache(monkeypatch, tmp_path):
    shutil.copytree(Path(backend.__file__).parent, tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(backend, "__file__", str(tmp_path / "kernels" / "backend.py"))
    before = backend._source_hash()
    assert before == backend._source_hash()
    helper = tmp_path / "kernels" / "compiled_math.py"
    helper.write_text(helper.read_text() + "\n")
    assert backend._source_hash() != before


def test_importing_the_package_compiles_nothing(run_python):
    done = run_python("""
        import importlib, pkgutil
        import minipeft, minipeft.kernels, minipeft.models, minipeft.interop
        count = 0
        for module in pkgutil.iter_modules(minipeft.kernels.__path__):
            for value in vars(importlib.import_module(f"minipeft.kernels.{module.name}")).values():
                if hasattr(value, "signatures"):
                    count += 1
                    assert not value.signatures, value
        print(count)
    """)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= len(kernels.REGISTRY)


def test_softmax_is_compiled_for_each_precision_once(rng):
    scores = rng.standard_normal((1, 1, 2, 3))
    for _ in range(3):
        softmax.attention_softmax_compiled(scores, None, None, 1.0, False)
        softmax.attention_softmax_compiled(scores.astype(np.float32), np.ones((1, 3), bool), scores, 1, True)
    assert len(softmax._softmax_rows.signatures) <= 2


def test_with_the_jit_off_the_loops_run_as_plain_python(run_python):
    """So that a kernel can be stepped through; the numbers are those of the definition."""
    done = run_python("""
        import numpy as np
        from minipeft.kernels import REGISTRY, use_threads
        from minipeft.kernels import backend
        backend.PARALLEL_THRESHOLD = 1
        x, gain = np.random.default_rng(0).standard_normal((5, 6), np.float32), np.ones(6, np.float32)
        with use_threads(2):
            for name, arguments in {"gelu": (x,), "norm": (x, gain, gain, 1e-5, True), "softmax_backward": (x, x, 2.0),
                                    "attention_softmax": (x[None, None], np.ones((1, 6), bool), None, 0.5, True)}.items():
                kernel = REGISTRY[name]
                print(bool(np.allclose(kernel.compiled(*arguments), kernel.reference(*arguments), atol=1e-6)))
    """, NUMBA_DISABLE_JIT="1")
    assert done.stdout.split() == ["True"] * 4, done.stderr
