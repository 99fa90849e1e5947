"""Files are read strictly and written whole or not at all."""

import json
import os
import re
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from minipeft.data import files

# ---- writing ----------------------------------------------------------------------------------------------------


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_atomic_replaces_the_file_only_at_the_end(tmp_path):
    path = tmp_path / "note.txt"
    path.write_text("old")
    with files.atomic(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.parent == tmp_path
    assert path.read_text() == "new" and left(tmp_path) == ["note.txt"]
    assert path.stat().st_mode & 0o777 == 0o644  # a temporary file is readable by its owner alone


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_and_no_temporary(tmp_path, error):
    path = tmp_path / "note.txt"
    path.write_text("old")
    with pytest.raises(error), files.atomic(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and left(tmp_path) == ["note.txt"]


@pytest.mark.parametrize("step", ["replace", "fsync", "chmod"])
def test_a_failing_disk_leaves_the_old_file_and_no_temporary(tmp_path, step, monkeypatch):
    path = tmp_path / "config.json"
    files.write_json(path, {"a": 1})

    def fail(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(files.os, step, fail)
    with pytest.raises(OSError, match="no space left"):
        files.write_json(path, {"a": 2})
    monkeypatch.undo()
    assert files.read_json(path, "config") == {"a": 1} and left(tmp_path) == ["config.json"]


def test_a_pipe_is_written_into_and_stays(tmp_path):
    import threading

    path, read = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: read.append(path.read_text()), daemon=True)
    reader.start()
    files.write_json(path, {"a": 1})
    reader.join(timeout=30)
    assert read == ['{\n  "a": 1\n}\n'] and path.is_fifo() and left(tmp_path) == ["pipe"]


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    files.write_json(tmp_path / "there" / "a.json", {"a": 1})
    (tmp_path / "link.json").symlink_to(tmp_path / "there" / "a.json")
    files.write_json(tmp_path / "link.json", {"a": 2})
    assert (tmp_path / "link.json").is_symlink() and left(tmp_path / "there") == ["a.json"]
    assert files.read_json(tmp_path / "there" / "a.json", "config") == {"a": 2}


def test_what_cannot_be_serialised_leaves_the_old_file(tmp_path):
    files.write_json(tmp_path / "a.json", {"a": 1})
    files.write_tensors(tmp_path / "a.safetensors", {"a": np.ones(2)})
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "a.json", {"a": object()})
    with pytest.raises(Exception):
        files.write_tensors(tmp_path / "a.safetensors", {"a": np.array(["text"], object)})
    assert left(tmp_path) == ["a.json", "a.safetensors"]
    assert (files.read_json(tmp_path / "a.json", "x") == {"a": 1}
            and files.read_tensors(tmp_path / "a.safetensors")["a"].tolist() == [1, 1])


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        files.write_json(tmp_path / "file" / "config.json", {})
    with pytest.raises(OSError):
        files.write_json(tmp_path / "absent" / "config.json", {})
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(PermissionError):
            files.write_json(tmp_path / "locked" / "config.json", {})
    assert "config.json" not in left(tmp_path)


# ---- JSON -------------------------------------------------------------------------------------------------------


def test_json_keeps_order_and_letters(tmp_path):
    value = {"z": 1, "a": ["é", "猫"], "n": None}
    files.write_json(tmp_path / "x.json", value)
    assert list(files.read_json(tmp_path / "x.json", "config").items()) == list(value.items())
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert "猫" in text and text.endswith("}\n")


@pytest.mark.parametrize("content,message", [
    (b'{"a": 1,\n "b": }', "this config is not JSON (Expecting value, line 2 column 7)"),
    (b"", "this config is not JSON (Expecting value, line 1 column 1)"),
    (b"[1, 2]", "expected a JSON object in this config, got list"),
    (b"null", "expected a JSON object in this config, got NoneType"),
    (b'{"a": "\xff"}', "this config is not UTF-8 text (invalid start byte at byte 7)"),
    (b"\xef\xbb\xbf{}", "this config is not JSON (Unexpected UTF-8 BOM"),
])
def test_json_that_is_none(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")):
        files.read_json(path, "config")


# ---- tensors ----------------------------------------------------------------------------------------------------


@given(data=st.data(), kind=st.sampled_from([np.float32, np.float64, np.int64, np.int32, np.int8, np.uint8, np.bool_]))
def test_tensors_round_trip_bit_for_bit(data, kind, tmp_path_factory):
    path = tmp_path_factory.mktemp("tensors") / "x.safetensors"
    names = data.draw(st.lists(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1), unique=True, max_size=3))
    stored = {name: data.draw(arrays(kind, array_shapes(min_side=0, max_side=4))) for name in names}
    files.write_tensors(path, stored)
    loaded = files.read_tensors(path)
    assert set(loaded) == set(stored)
    for name, array in stored.items():
        assert loaded[name].dtype == kind and loaded[name].shape == array.shape and loaded[name].tobytes() == array.tobytes()


def test_a_single_number_keeps_its_shape(tmp_path):
    files.write_tensors(tmp_path / "x", {"a": np.array(2.5)})
    assert files.read_tensors(tmp_path / "x")["a"].shape == ()


def test_arrays_that_are_not_contiguous_are_written_as_they_read(tmp_path):
    array = np.arange(24.0).reshape(2, 3, 4)
    files.write_tensors(tmp_path / "x", {"t": array.T, "s": array[:, ::2], "r": array[::-1]})
    loaded = files.read_tensors(tmp_path / "x")
    assert (loaded["t"] == array.T).all() and (loaded["s"] == array[:, ::2]).all() and (loaded["r"] == array[::-1]).all()


def raw(path, header, data=b"", length=None):
    """A safetensors file from its parts, lies included."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(start, stop, shape=(2,), kind="F32"):
    return {"dtype": kind, "shape": list(shape), "data_offsets": [start, stop]}


def test_half_precision_becomes_single(tmp_path):
    values = np.array([0.0, -0.0, 1.0, -2.5, 65504, 6e-8, np.inf, -np.inf, np.nan], np.float16)
    path = raw(tmp_path / "x", {"a": entry(0, 18, (3, 3), "F16")}, values.tobytes())
    got = files.read_tensors(path)["a"]
    assert got.dtype == np.float32 and got.tobytes() == values.astype(np.float32).reshape(3, 3).tobytes()


@given(bits=st.lists(st.integers(0, 2**16 - 1), min_size=6, max_size=6), before=st.integers(0, 3))
def test_bfloat16_is_the_upper_half_of_a_float32(bits, before, tmp_path_factory):
    path = tmp_path_factory.mktemp("bfloat16") / "x"
    start = 4 * before
    header = {"a": entry(0, start, (before,)), "b": entry(start, start + 12, (2, 3), "BF16"), "__metadata__": {"format": "pt"}}
    raw(path, header, bytes(start) + struct.pack("<6H", *bits))
    got = files.read_tensors(path)["b"]
    expected = [struct.unpack("<f", struct.pack("<I", b << 16))[0] for b in bits]
    assert got.dtype == np.float32 and got.shape == (2, 3)
    np.testing.assert_array_equal(got.reshape(-1), np.array(expected, np.float32))


def test_bfloat16_as_torch_writes_it(tmp_path, peer):
    torch, save = peer("torch"), peer("safetensors.torch").save_file
    generator = torch.Generator().manual_seed(0)
    tensors = {"w": torch.randn(5, 7, generator=generator).bfloat16(), "empty": torch.zeros(0, 3).bfloat16(),
               "scalar": torch.tensor(3.0).bfloat16(), "other": torch.randn(3, generator=generator).half(),
               "ids": torch.arange(3)}
    save(tensors, tmp_path / "x.safetensors")
    loaded = files.read_tensors(tmp_path / "x.safetensors")
    for name, tensor in tensors.items():
        expected = tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
        assert loaded[name].dtype == expected.dtype and loaded[name].shape == expected.shape and (loaded[name] == expected).all()


def test_what_is_read_may_be_written_into(tmp_path):
    path = raw(tmp_path / "x", {"a": entry(0, 8), "b": entry(8, 12, (2,), "F16"), "c": entry(12, 16, (2,), "BF16")}, bytes(16))
    for array in files.read_tensors(path).values():
        array += 1
        assert (array == 1).all()


GOOD = {"a": entry(0, 8)}


@pytest.mark.parametrize("header,data,length", [
    ({"a": entry(0, 800, (200,))}, bytes(8), None),
    ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), None),
    ({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8), None),
    ({"a": entry(0, 8), "b": entry(16, 24)}, bytes(24), None),
    (GOOD, bytes(24), None),
    (GOOD, bytes(7), None),
    (GOOD, b"", None),
    ({"a": entry(0, 8, (3,))}, bytes(8), None),
    ({"a": entry(0, 8, (-2,))}, bytes(8), None),
    ({"a": entry(8, 0)}, bytes(8), None),
    ({"a": entry(0, 8, (1 << 40, 1 << 40))}, bytes(8), None),
    ({"a": entry(0, 8, (4,), "BF16")}, bytes(4), None),
    ({"a": entry(0, 8, (8,), "X9")}, bytes(8), None),
    (GOOD, bytes(8), 1 << 60),
    (GOOD, bytes(8), 5000),
    (GOOD, bytes(8), 3),
    (b"{nope", bytes(8), None),
    (b"\xff\xfe{}", b"", None),
    (b"[]", b"", None),
], ids=["beyond_the_end", "overlapping", "twice_the_same", "a_hole", "bytes_left_over", "cut_short", "no_data", "shape_too_large",
        "negative_shape", "end_before_start", "shape_overflows", "bfloat16_cut_short", "unknown_type", "huge_header",
        "header_beyond_the_end", "header_cut_short", "header_not_JSON", "header_not_text", "header_a_list"])
def test_a_header_that_lies_is_refused(tmp_path, header, data, length):
    path = raw(tmp_path / "model.safetensors", header, data, length)
    with pytest.raises(ValueError, match=re.escape(f"{path}: not a whole safetensors file (") + ".*"
                                         + re.escape("); fetch or write it again")):
        files.read_tensors(path)


@pytest.mark.parametrize("content", [b"", b"abc", b"version https://git-lfs.github.com/spec/v1\n"])
def test_what_is_no_safetensors_file_at_all(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        files.read_tensors(tmp_path / "x")


@given(cut=st.integers(1, 200))
def test_a_file_cut_anywhere_is_refused(cut, tmp_path_factory):
    path = tmp_path_factory.mktemp("cut") / "x"
    files.write_tensors(path, {"a": np.ones((4, 5)), "b": np.zeros(3, np.float32)})
    whole = path.read_bytes()
    path.write_bytes(whole[:-min(cut, len(whole))])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        files.read_tensors(path)


@pytest.mark.parametrize("kind,size", [("F8_E4M3", 8), ("U16", 4), ("U64", 1)])
def test_a_type_without_a_counterpart_is_named(tmp_path, kind, size):
    path = raw(tmp_path / "x", {"layer.w": entry(0, 8, (size,), kind)}, bytes(8))
    message = f"{path}: tensor 'layer.w' has type {kind}, which cannot be read; expected float32, float16 or bfloat16"
    with pytest.raises(ValueError, match=re.escape(message)):
        files.read_tensors(path)


@pytest.mark.parametrize("name", ["absent", ""])
def test_no_such_file(tmp_path, name):
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / name}: no such file")):
        files.read_tensors(tmp_path / name)


# ---- comparing names and shapes ---------------------------------------------------------------------------------


def test_check_tensors_names_everything_that_is_wrong():
    expected = {"a": (2,), "b": (3, 1), "c": ()}
    files.check_tensors("here", expected, {"a": np.ones(2), "b": np.ones((3, 1)), "c": np.array(1)})
    with pytest.raises(ValueError) as error:
        files.check_tensors("here", expected, {"b": np.ones(3), "d": np.ones(1), "c": np.array(1)})
    assert str(error.value) == ("here: missing tensors: a; unexpected tensors: d; tensors of another shape: "
                                "b (expected (3, 1), got (3,))")


@given(st.lists(st.text(min_size=1), unique=True, max_size=20), st.integers(1, 9))
def test_long_lists_are_cut_with_a_count(names, most):
    text = files.listed(names, most)
    shown = sorted(names)[:most]
    assert text == ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


def test_unfinished_files_are_removed_and_nothing_else(tmp_path):
    for name in ("a", ".a.x1.unfinished", ".b.unfinished", ".hidden", "c.unfinished"):
        (tmp_path / name).write_text("")
    files.remove_unfinished(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", "a", "c.unfinished"]


@pytest.mark.parametrize("write", [lambda path: files.write_json(path, {}),
                                   lambda path: files.write_tensors(path, {"a": np.ones(2)})])
def test_what_cannot_be_written_names_the_file_itself(write, tmp_path, monkeypatch):
    with pytest.raises(OSError, match=re.escape(f"{tmp_path / 'none' / 'x'}: cannot be written (No such file or directory)")):
        write(tmp_path / "none" / "x")
    (tmp_path / "x").write_text("old")

    def full(*args):
        raise OSError(28, "No space left on device", args[0])

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=re.escape(f"{tmp_path / 'x'}: cannot be written (No space left on device)")):
        write(tmp_path / "x")
    assert [p.name for p in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_text() == "old"
