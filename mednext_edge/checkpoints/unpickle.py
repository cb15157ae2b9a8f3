"""Reading pickles from strangers: a closed allow-list for torch files and for plain pickles.

A pickle is a program. Both readers here resolve only the names in `ALLOWED` (and torch's own list of tensor
builders), and those names are mapped to small stand-ins of ours, so that not even numpy's unpickling
code runs. Whatever else a file asks for is refused by name; there is no second, less strict try.

What comes back is plain data: dict, list, tuple, set, str, bytes, numbers, None, and tensors. Numpy's scalars
and arrays come back as numbers and nested lists.
"""

from __future__ import annotations

import math
import pickle
import re
import threading
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

from mednext_edge.errors import CheckpointError, UnsafePickleError

PLAIN_DTYPE = re.compile(r"[<>=|]?[?biufcSU]\d{0,6}")
LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""How torch files older than the zip format begin: the pickled magic number of `torch.save`."""

ZIP_MAGIC = b"PK\x03\x04"

_LOCK = threading.Lock()


class _Dtype:
    """Stand-in for `numpy.dtype`: numbers, bytes and strings (and object arrays, as lists), no records."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        text = code.decode("ascii") if isinstance(code, bytes) else code
        if text in ("O", "O8", "|O"):
            self.dtype: np.dtype[Any] | None = None
        elif isinstance(text, str) and PLAIN_DTYPE.fullmatch(text):
            self.dtype = np.dtype(text)
        else:
            raise UnsafePickleError(f"the pickle asks for numpy.dtype({code!r}); only plain number types are read")

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "=", "|"):
            raise CheckpointError(f"found {order!r} as the byte order of a numpy type; expected `<` or `>`")
        if self.dtype is not None:
            self.dtype = self.dtype.newbyteorder(cast(Literal["<", ">", "=", "|"], order))

    def decode(self, raw: Any, shape: tuple[int, ...], order: Any) -> NDArray[Any]:
        """Elements from bytes (or from a list, for objects); the count must be that of the shape."""
        count = math.prod(shape)
        if self.dtype is None:
            if not isinstance(raw, list) or len(raw) != count:
                raise CheckpointError(f"a pickled object array of shape {shape} does not hold {count} elements")
            flat: NDArray[Any] = np.empty(count, dtype=object)
            flat[:] = raw
        else:
            if not isinstance(raw, bytes) or len(raw) != count * self.dtype.itemsize or self.dtype.itemsize == 0:
                raise CheckpointError(f"a pickled {self.dtype} array of shape {shape} has the wrong number of bytes")
            flat = np.frombuffer(raw, dtype=self.dtype).copy()
        return flat.reshape(shape, order=order)


class _Array:
    """Stand-in for `numpy.ndarray` while its state is still to come."""

    value: NDArray[Any] = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        shape, dtype, fortran, raw = state[-4:]
        if not isinstance(dtype, _Dtype) or min(shape, default=0) < 0:
            raise CheckpointError(f"a pickled numpy array has the impossible shape {shape} or type {dtype}")
        self.value = dtype.decode(raw, tuple(shape), "F" if fortran else "C")


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    if kind is not _Array:
        raise UnsafePickleError(f"the pickle asks for a numpy array of the class {kind}; only numpy.ndarray is read")
    return _Array()


def _scalar(dtype: Any, raw: Any = None) -> Any:
    if not isinstance(dtype, _Dtype) or dtype.dtype is None:
        raise UnsafePickleError(f"the pickle asks for a numpy scalar of type {dtype}; only plain number types are read")
    return dtype.decode(raw, (1,), "C").tolist()[0]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise UnsafePickleError(f"the pickle asks for _codecs.encode(..., {encoding!r}); only latin1 is read")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How protocol 2 writes empty bytes: a call without arguments; with one it would reserve memory."""
    return b""


ALLOWED: dict[str, Callable[..., Any]] = {
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    # numpy 1 and numpy 2 name the same functions differently.
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "collections.OrderedDict": OrderedDict,
    "builtins.bytes": _no_bytes,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "_codecs.encode": _encode,
}
"""Every global that a pickle may name, and what it gets for it."""


class _Unpickler(pickle._Unpickler):
    """The interpreter's own pickle machine in Python, whose memo cannot be made to reserve memory."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module)
        try:
            return ALLOWED[f"{module}.{name}"]
        except KeyError:
            raise _refused(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickleError(f"the pickle asks for the external object {pid!r}; nothing outside the file is read")

    def load_build(self) -> None:
        # Only our stand-ins take a state; setting attributes of anything else is refused.
        state = self.stack.pop()  # type: ignore[attr-defined]
        target = self.stack[-1]  # type: ignore[attr-defined]
        if not isinstance(target, (_Dtype, _Array)):
            raise UnsafePickleError(f"the pickle sets the state of a {type(target).__name__}; only numpy's is read")
        target.__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build


def _refused(name: str) -> UnsafePickleError:
    return UnsafePickleError(
        f"the file asks to run `{name}` while it is read, which is not on the allow-list; it was not run. "
        "A checkpoint needs tensors, numbers and names only: save the plain state_dict and load that"
    )


def plain(value: Any) -> Any:
    """Arrays become nested lists, OrderedDicts dicts; shared parts stay shared, cycles are refused."""
    return _plain(value, {})


def _plain(value: Any, seen: dict[int, Any]) -> Any:
    if isinstance(value, _Array):
        listed = value.value.tolist()
        return _plain(listed, seen) if value.value.dtype == object else listed
    if isinstance(value, _Dtype):
        return str(value.dtype)
    if not isinstance(value, (dict, list, tuple)):
        return value
    if id(value) in seen:
        if seen[id(value)] is seen:
            raise CheckpointError("the pickle holds a container that contains itself; expected plain data")
        return seen[id(value)]
    seen[id(value)] = seen
    done: Any
    if isinstance(value, dict):
        done = {k: _plain(v, seen) for k, v in value.items()}
    elif type(value) in (list, tuple):
        done = type(value)(_plain(v, seen) for v in value)
    else:
        done = value  # torch.Size and the like
    seen[id(value)] = done
    return done


def load_pickle(path: Path) -> Any:
    """A plain pickle, such as nnU-Net v1's `.model.pkl` and `plans.pkl`.

    Raises:
        UnsafePickleError: it names a global outside `ALLOWED`; the message says which.
        CheckpointError: empty, truncated or no pickle.
    """
    try:
        with path.open("rb") as file:
            return plain(_Unpickler(file).load())
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise CheckpointError(
            f"{path} cannot be read as a pickle ({type(error).__name__}: {error}); it is truncated or no pickle"
        ) from error


@contextmanager
def _closed_allow_list() -> Iterator[None]:
    """Replace what other libraries added to torch's list by ours, for the length of one load."""
    ours = [(entry, name) for name, entry in ALLOWED.items() if name.startswith(("numpy", "builtins.bytes"))]
    with _LOCK:
        others = get_safe_globals()
        clear_safe_globals()
        add_safe_globals(cast(list[Any], ours))
        try:
            yield
        finally:
            clear_safe_globals()
            add_safe_globals(others)


def load_torch(path: Path) -> Any:
    """A file of `torch.save`, zip or legacy, through `weights_only` and the closed allow-list.

    Tensors stay on the CPU and, for zip files, are mapped from the file: copy what is to outlive it.

    Raises:
        UnsafePickleError: it names a global outside the allow-lists; the message says which.
        CheckpointError: truncated, damaged, or not a torch file.
    """
    with path.open("rb") as file:
        zipped = file.read(4) == ZIP_MAGIC
    if zipped:
        _check_archive(path)
    try:
        with _closed_allow_list(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return plain(torch.load(path, map_location="cpu", weights_only=True, mmap=zipped))
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from error
    except Exception as error:  # a damaged file can raise nearly anything
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and asked:
            name = asked[1] if "." in asked[1] else f"builtins.{asked[1]}"
            raise UnsafePickleError(f"{path}: {_refused(name)}") from error
        refusal = re.search(r"(Trying to call reduce|Can only (?:create|build)).*", str(error))
        if isinstance(error, pickle.UnpicklingError) and refusal:
            raise UnsafePickleError(f"{path}: the pickle was refused: {refusal[0]}") from error
        text = re.sub(r"(?s).*WeightsUnpickler error: ", "", str(error)).strip().split("\n")[0]
        raise CheckpointError(
            f"{path} cannot be read as a torch file ({type(error).__name__}: {text}); it is truncated or damaged"
        ) from error


def _check_archive(path: Path) -> None:
    """Refuse archives without a pickle, and those that unpack to more than they are."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            stored = all(e.compress_type == zipfile.ZIP_STORED for e in entries)
            small = sum(e.file_size for e in entries) <= path.stat().st_size
            # torch.load does not look at the checksums; a flipped bit in a weight would pass.
            damaged = archive.testzip() if stored and small else None
    except Exception as error:  # a damaged directory can raise nearly anything
        raise CheckpointError(f"{path} is a damaged zip archive: {error}") from error
    if damaged is not None:
        raise CheckpointError(
            f"{path} is damaged: the checksum of its part {damaged} is wrong; copy the file again "
            "(or save it again, if it was written with torch's checksums switched off)"
        )
    names = [entry.filename for entry in entries]
    if not any(name.endswith("data.pkl") for name in names):
        raise CheckpointError(
            f"{path} is a zip archive but no torch file: found {names[:3]}, expected a `data.pkl`. "
            "If it is an archive of an nnU-Net model, unpack it and name the folder"
        )
    if any(name.endswith("constants.pkl") for name in names):
        raise CheckpointError(f"{path} is a TorchScript program, not a checkpoint; save the state_dict and load that")
    if not (stored and small):
        raise CheckpointError(f"{path} is a compressed zip archive; torch.save writes uncompressed ones: save it again")
