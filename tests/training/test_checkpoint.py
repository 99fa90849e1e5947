"""Checkpoints: a run stopped anywhere ends as one that was not; damaged files are refused, and a failed write changes nothing."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from minipeft.data import files
from minipeft.methods import LoRA, attach
from minipeft.nn import Parameter
from minipeft.training import SGD, AdamW, checkpoint, fit, loop
from minipeft.training.checkpoint import load_checkpoint, save_checkpoint

HERE = Path(__file__).resolve().parent


def state(path):
    """Everything in a checkpoint that a stopped run must share with one that never stopped: all but times and memory."""
    arrays = files.read_tensors(path)
    progress, steps = checkpoint._read_progress(path)
    kept = {k: v for k, v in progress.items() if k not in ("durations", "seconds", "peak_mb")}
    return {name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()}, json.dumps(kept), steps


def train(small, path, task, resume=False, method=None, dropout=0.2, work=None, **changes):
    model = small.make(task, dropout)
    parameters = dict(model.named_parameters())
    if method is not None:
        parameters = attach(model, method, rng=np.random.default_rng(5)).named_parameters()
    return fit(model, parameters, work or small.make_work(task), small.settings(**changes), path, resume), parameters


CASES = [("classify", {"optimizer": "adamw"}), ("classify", {"optimizer": "sgd", "schedule": "cosine", "epochs": 3}),
         ("classify", {"optimizer": "adam", "max_steps": 3, "accumulate": 1}), ("lm", {"optimizer": "adamw", "max_steps": 5}),
         ("lm", {"optimizer": "sgd", "accumulate": 1, "epochs": 1}), ("lm", {"optimizer": "adam", "clip": 0.0, "accumulate": 3}),
         ("classify", {"method": LoRA(2, 4, "attn.q,mlp.up", 0.3)}), ("seq2seq", {"max_steps": 5, "accumulate": 3})]


@pytest.mark.parametrize("task, changes", CASES)
def test_going_on_from_every_checkpoint_ends_with_the_same_bits(small, tmp_path, monkeypatch, task, changes):
    kept, original = [], checkpoint.save_checkpoint

    def keep(path, *rest):
        original(path, *rest)
        kept.append(shutil.copy(path, tmp_path / f"copy{len(kept)}"))

    monkeypatch.setattr(loop, "save_checkpoint", keep)
    history, parameters = train(small, tmp_path / "whole", task, **changes)
    monkeypatch.setattr(loop, "save_checkpoint", original)
    expected, copies = state(tmp_path / "whole"), list(kept)
    assert len(copies) == 1 + history["step"] + len(history["evaluations"])  # at the start, after each step and evaluation
    for copy in copies:
        again, resumed = train(small, copy, task, resume=True, **changes)
        assert state(copy) == expected
        for name, parameter in parameters.items():
            assert parameter.data.tobytes() == resumed[name].data.tobytes()
        assert all(again[key] == history[key] for key in ("losses", "evaluations", "step"))


def test_the_checkpoints_themselves_change_nothing(small, tmp_path):
    often, a = train(small, tmp_path / "c", "classify")
    never, b = train(small, None, "classify", checkpoint_seconds=1e9)
    assert often["losses"] == never["losses"] and often["evaluations"] == never["evaluations"]
    assert all(a[name].data.tobytes() == b[name].data.tobytes() for name in a)


def test_the_layout_of_a_weight_in_memory_survives(tmp_path):
    columns = Parameter(np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    save_checkpoint(tmp_path / "c", {"w": columns}, SGD([columns]), {})
    columns.data[:] = 0
    load_checkpoint(tmp_path / "c", {"w": columns}, SGD([columns]))
    assert columns.data.flags.f_contiguous and (columns.data == np.arange(6.0).reshape(2, 3)).all()


# ---- kill -9 ---------------------------------------------------------------------------------------------------

CHILD = textwrap.dedent("""
    import os, signal, sys
    sys.path.insert(0, os.environ["HERE"])
    import small
    from minipeft.data import files
    from minipeft.training import fit

    task, path, dies_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
    count = 0

    def event():
        global count
        count += 1
        if count == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    save, replace = files.save_file, os.replace

    def half(arrays, file, metadata):
        save(arrays, file, metadata)
        whole = open(file, "rb").read()
        with open(file, "wb") as out:
            out.write(whole[:len(whole) // 2])
        event()
        save(arrays, file, metadata)
        event()

    def switch(a, b):
        replace(a, b)
        event()

    files.save_file, os.replace = half, switch
    work = small.make_work(task)
    for name in ("collate", "loss", "evaluate"):
        def noted(*args, original=getattr(work, name), **kwargs):
            out = original(*args, **kwargs)
            event()
            return out
        setattr(work, name, noted)
    model = small.make(task, 0.2)
    fit(model, dict(model.named_parameters()), work, small.settings(), path, resume=True)
    print(count)
""")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no kill -9")
@pytest.mark.parametrize("task", ["classify", "lm"])
def test_a_process_killed_again_and_again_ends_with_the_same_bits(small, tmp_path, task, rng):
    train(small, tmp_path / "whole", task)
    folder = tmp_path / "killed"
    folder.mkdir()
    path, kills, environment = folder / "checkpoint", 0, {**os.environ, "HERE": str(HERE)}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    while True:
        dies_at = int(rng.integers(1, 14)) if kills < 5 else 10**9
        child = subprocess.run([sys.executable, "-c", CHILD, task, path, str(dies_at)], env=environment, capture_output=True,
                               text=True, timeout=300, check=False)
        if child.returncode == 0:
            break
        assert child.returncode == -9, child.stderr
        kills += 1
    assert kills >= 3
    assert state(path) == state(tmp_path / "whole")
    assert os.listdir(folder) == ["checkpoint"]  # nothing half-written is left lying


# ---- faults ----------------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path):
    """A checkpoint, what was in it, and a parameter and optimizer to fill; afterwards these must be untouched."""
    p = Parameter(np.arange(6, dtype=np.float32).reshape(2, 3))
    p.grad = np.ones((2, 3), np.float32)
    optimizer = AdamW([p])
    optimizer.step()
    save_checkpoint(tmp_path / "c", {"w": p}, optimizer, {"step": 1})
    target = Parameter(np.full((2, 3), 7, np.float32))
    fresh = AdamW([target])
    yield tmp_path / "c", target, fresh
    assert (target.data == 7).all() and fresh.steps == 0 and not fresh.state


def refuses(written, message, parameters=None, optimizer=None):
    path, target, fresh = written
    with pytest.raises(ValueError, match="^" + re.escape(f"{path}: {message}")) as caught:
        load_checkpoint(path, parameters or {"w": target}, optimizer or fresh)
    assert "\n" not in str(caught.value)


def test_a_truncated_checkpoint_is_refused_at_every_length(written):
    path = written[0]
    whole = path.read_bytes()
    for length in (0, 1, 8, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refuses(written, "not a whole safetensors file (")


def test_a_pickle_is_refused_and_not_run(written, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    written[0].write_bytes(pickle.dumps(Bomb()))
    refuses(written, "not a whole safetensors file (")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"steps": "1"}, {"progress": "{}", "steps": "one"},
                                      {"progress": "{'step': 1}", "steps": "1"}])
def test_a_file_without_progress_is_refused(written, metadata):
    arrays = files.read_tensors(written[0])
    save_file(arrays, written[0], metadata)
    refuses(written, "this safetensors file is not a checkpoint (it holds no progress of a run); remove it to start again")


def test_other_parameters_are_refused(written):
    target = written[1]
    refuses(written, "missing tensors: v; unexpected tensors: w", {"v": target})
    refuses(written, "missing tensors: v", {"w": target, "v": target})
    refuses(written, "tensors of another shape: w (expected (3,), got (2, 3))", {"w": Parameter(np.zeros(3, np.float32))})
    refuses(written, "w is float32 in this checkpoint, expected float64", {"w": Parameter(np.zeros((2, 3)))})


def test_the_state_of_another_optimizer_is_refused(written):
    target, first = written[1], Parameter(np.zeros((3, 2), np.float32))
    refuses(written, "state of another optimizer or run: missing tensors: momentum.0; unexpected tensors: m.0, v.0",
            optimizer=SGD([target]))
    refuses(written, "state of another optimizer or run: tensors of another shape: m.0 (expected (3, 2), got (2, 3)), v.0 "
            "(expected (3, 2), got (2, 3))", optimizer=AdamW([first, target]))


def test_a_parameter_without_gradient_has_no_state_and_needs_none(tmp_path):
    used, idle = Parameter(np.ones(2)), Parameter(np.ones(3))
    first = AdamW([idle, used])
    used.grad = np.ones(2)
    first.step()
    save_checkpoint(tmp_path / "c", {"idle": idle, "used": used}, first, {"step": 1})
    second = AdamW([idle, used])
    assert load_checkpoint(tmp_path / "c", {"idle": idle, "used": used}, second) == {"step": 1}
    assert second.steps == 1 and list(second.arrays()) == ["m.1", "v.1"]


def test_no_such_file(tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'c'}: no such file")):
        load_checkpoint(tmp_path / "c", {}, SGD([]))


def full_disk(arrays, path, metadata):
    Path(path).write_bytes(b"half a file")
    raise SafetensorError(f"Error while serializing: I/O error: No space left on device (os error 28) {path}")


def refused_by_the_system(*args, **kwargs):
    raise PermissionError(13, "Permission denied", "/somewhere/else")


@pytest.mark.parametrize("where, fault, message", [
    ("minipeft.data.files.save_file", full_disk, "cannot be written (Error while serializing: I/O error: No space left on "),
    ("tempfile.mkstemp", refused_by_the_system, "cannot be written (Permission denied)"),
    ("os.replace", refused_by_the_system, "cannot be written (Permission denied)"),
    ("os.fsync", refused_by_the_system, "cannot be written (Permission denied)")])
def test_a_failed_write_is_one_line_and_leaves_the_old_checkpoint(written, monkeypatch, where, fault, message):
    path, target, fresh = written
    before = path.read_bytes()
    monkeypatch.setattr(where, fault)
    with pytest.raises(OSError, match="^" + re.escape(f"{path}: {message}")) as caught:
        save_checkpoint(path, {"w": target}, fresh, {"step": 2})
    assert "\n" not in str(caught.value) and f".{path.name}." not in str(caught.value)  # not the temporary file's name
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_a_folder_that_is_gone(small, tmp_path):
    path = tmp_path / "gone" / "c"
    with pytest.raises(OSError, match="^" + re.escape(f"{path}: cannot be written (No such file or directory)") + "$"):
        train(small, path, "classify")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of a file")
def test_a_file_that_the_system_cuts_short(run_python, tmp_path):
    """A real write that fails in the middle: a limit on the size of files stands in for a full disk."""
    done = run_python("""
        import os, resource
        import numpy as np
        from minipeft.data import files

        path = os.environ["TARGET"]
        files.write_tensors(path, {"a": np.ones(1000)})
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        try:
            files.write_tensors(path, {"a": np.zeros(50000)})
        except OSError as error:
            print(error)
        assert (files.read_tensors(path)["a"] == np.ones(1000)).all()
    """, TARGET=str(tmp_path / "c"))
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(re.escape(f"{tmp_path / 'c'}: cannot be written (") + r"[^\n]*File too large[^\n]*\)\n", done.stdout)
    assert os.listdir(tmp_path) == ["c"]


def test_a_fault_while_it_trains_keeps_the_checkpoint_and_the_run_can_go_on(small, tmp_path, monkeypatch):
    train(small, tmp_path / "whole", "classify")
    calls, save = [], files.save_file

    def full_at_the_fourth(arrays, path, metadata):
        calls.append(path)
        (full_disk if len(calls) == 4 else save)(arrays, path, metadata)

    monkeypatch.setattr(files, "save_file", full_at_the_fourth)
    with pytest.raises(OSError, match="No space left on device"):
        train(small, tmp_path / "c", "classify")
    train(small, tmp_path / "c", "classify", resume=True)
    assert state(tmp_path / "c") == state(tmp_path / "whole")
