"""Reading and writing safetensors and JSON files: strictly, and never leaving half a file."""

import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I16": np.int16,
          "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_}
UNFINISHED = ".unfinished"  # the ending of a file that is being written
TOY, SHIPPED = "toy:", Path(__file__).parent.parent / "pretrained"  # the package's own models, as in toy:encoder


def model_folder(model):
    """The folder of a model: a path, or the name of one of the package's own: ``toy:encoder``, ``toy:decoder``, ``toy:seq2seq``.

    Raises ValueError for a name that is none.
    """
    if not str(model).startswith(TOY):
        return Path(model)
    names = sorted(path.name for path in SHIPPED.iterdir() if path.is_dir()) if SHIPPED.is_dir() else []
    if str(model).removeprefix(TOY) not in names:
        raise ValueError(f"model: expected {', '.join(TOY + name for name in names)} or a folder, got {str(model)!r}")
    return SHIPPED / str(model).removeprefix(TOY)


@contextmanager
def atomic(path):
    """Give a temporary path beside ``path``; on success it takes the place of ``path``, on failure it is removed.

    A link stays and its target is replaced; a device or a pipe, such as /dev/stdout, stays and is written into.

    Raises OSError, naming ``path``, when it cannot be written; a file that was there before is as it was.
    """
    path, temporary = Path(path), None
    place = Path(os.path.realpath(path)) if path.is_symlink() else path
    special = is_special(path)
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{place.name}.", suffix=UNFINISHED, dir=None if special else place.parent)
        os.close(handle)
        yield Path(temporary)
        with open(temporary, "rb") as written:
            if special:
                with open(path, "wb") as target:
                    shutil.copyfileobj(written, target)
                return
            os.fsync(written.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, place)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).replace(str(temporary), str(path))
        raise OSError(f"{path}: cannot be written ({reason})") from None
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def is_special(path):
    """Whether there is something at ``path`` that is neither a file nor a folder: a device or a pipe."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def remove_unfinished(folder):
    """Remove the temporary files that processes left in a folder when they were killed while they wrote."""
    for leftover in Path(folder).glob(f".*{UNFINISHED}"):
        leftover.unlink(missing_ok=True)


def write_json(path, value):
    """Write a JSON file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path, what, kind=dict):
    """Read a JSON object (or, with ``kind=list``, an array), or raise ValueError with the place of the fault."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: this {what} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: this {what} is not JSON ({error.msg}, line {error.lineno} column {error.colno})") from None
    if not isinstance(value, kind):
        raise ValueError(f"{path}: expected a JSON {'object' if kind is dict else 'array'} in this {what}, "
                         f"got {type(value).__name__}")
    return value


def write_tensors(path, arrays, metadata=None):
    """Write {name: array} as safetensors, atomically."""
    with atomic(path) as temporary:
        save_file({name: np.asarray(a, order="C") for name, a in arrays.items()}, temporary, metadata or {"format": "pt"})


def write_folder(folder, contents):
    """Write {file name: JSON value or tensors} into a folder, all of them or none.

    Each is first written beside its place, so that a full disk leaves the files that were there before.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    beside = {name: folder / f".{name}{UNFINISHED}" for name in contents}
    try:
        for name, content in contents.items():
            write = write_json if name.endswith(".json") else write_tensors
            write(beside[name], content)
        for name, path in beside.items():
            os.replace(path, folder / name)
    except OSError as error:
        raise OSError(str(error).replace(str(beside[name]), str(folder / name))) from None
    finally:
        for path in beside.values():
            path.unlink(missing_ok=True)


def _bfloat16(path, name):
    """A bfloat16 tensor as float32: its 16 bits are the upper half of a float32's.

    safetensors' NumPy reader knows no bfloat16, so the bytes are found through the file's header: eight bytes give
    the header's length, the header gives each tensor's place behind it.
    """
    with open(path, "rb") as file:
        start = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(start))[name]
        begin, end = entry["data_offsets"]
        file.seek(8 + start + begin)
        bits = np.frombuffer(file.read(end - begin), "<u2")
    return (bits.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])


def read_tensors(path):
    """Read a safetensors file into {name: array}; float16 and bfloat16 become float32.

    Raises ValueError, naming the file, when it is truncated, not safetensors, its header lies about sizes, or a
    tensor has a type without a NumPy counterpart.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with safe_open(path, framework="np") as file:
            out = {}
            for name in file.keys():
                kind = file.get_slice(name).get_dtype()
                if kind == "BF16":
                    out[name] = _bfloat16(path, name)
                elif kind in DTYPES:
                    array = file.get_tensor(name)
                    out[name] = array.astype(np.float32) if array.dtype == np.float16 else array
                else:
                    raise ValueError(f"{path}: tensor {name!r} has type {kind}, which cannot be read; expected float32, "
                                     "float16 or bfloat16")
            return out
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}); fetch or write it again") from None


def listed(names, most=8):
    """Names in one line, with a count where some are left out."""
    names = sorted(names)
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def check_tensors(where, expected, found):
    """Raise ValueError unless ``found`` ({name: array}) has exactly the names and shapes of ``expected`` ({name: shape})."""
    faults = []
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    shapes = [f"{name} (expected {tuple(shape)}, got {found[name].shape})"
              for name, shape in expected.items() if name in found and tuple(shape) != found[name].shape]
    if missing:
        faults.append(f"missing tensors: {listed(missing)}")
    if extra:
        faults.append(f"unexpected tensors: {listed(extra)}")
    if shapes:
        faults.append(f"tensors of another shape: {listed(shapes)}")
    if faults:
        raise ValueError(f"{where}: " + "; ".join(faults))
