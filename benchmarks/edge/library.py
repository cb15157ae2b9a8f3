"""libmednext_edge through ctypes: its C interface as Python sees it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # so that a process that measures memory imports NumPy alone
    from mednext_edge.data.volume import Volume

OK, ARGUMENT, CLOSED, BUNDLE, INTEGRITY, BACKEND, DATA, ENGINE, MEMORY, CANCELLED, INTERNAL = range(11)
DTYPES = {"uint8": 0, "int16": 1, "uint16": 2, "int32": 3, "float32": 4, "float64": 5}
PROGRESS = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)


class Sized(ctypes.Structure):
    """A structure of the interface, which begins with its size."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.size = ctypes.sizeof(type(self))


class Options(Sized):
    _fields_ = (("size", ctypes.c_size_t), ("device", ctypes.c_char_p), ("threads", ctypes.c_int32))


class SegmentOptions(Sized):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("step", ctypes.c_double),
        ("mirror", ctypes.c_int32),
        ("progress", PROGRESS),
        ("user", ctypes.c_void_p),
    )


class Image(Sized):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("voxels", ctypes.c_void_p),
        ("dtype", ctypes.c_int),
        ("channels", ctypes.c_int64),
        ("shape", ctypes.c_int64 * 3),
        ("affine", ctypes.c_double * 16),
    )


class Info(Sized):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("name", ctypes.c_char * 128),
        ("target", ctypes.c_char * 16),
        ("precision", ctypes.c_char * 16),
        ("provider", ctypes.c_char * 64),
        ("created", ctypes.c_char * 40),
        ("channels", ctypes.c_int32),
        ("classes", ctypes.c_int32),
        ("spatial_dims", ctypes.c_int32),
        ("needs_whole_volume", ctypes.c_int32),
        ("patch", ctypes.c_int64 * 3),
        ("step", ctypes.c_double),
        ("mirror_axes", ctypes.c_int32),
        ("kind", ctypes.c_int),
        ("colour", ctypes.c_char * 8),
    )


class StreamInfo(Sized):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("slices", ctypes.c_int64),
        ("patches", ctypes.c_int64),
        ("patches_done", ctypes.c_int64),
        ("patches_early", ctypes.c_int64),
        ("patches_undone", ctypes.c_int64),
        ("reason", ctypes.c_char * 160),
    )


class Failure(Exception):
    """A status other than OK, with the library's own words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def image_of(volume: Volume) -> Image:
    """A view of a volume [C, Z, Y, X]; the array must outlive it."""
    array = volume.array
    assert array.flags.c_contiguous
    return Image(
        voxels=array.ctypes.data,
        dtype=DTYPES[array.dtype.name],
        channels=len(array),
        shape=(ctypes.c_int64 * 3)(*volume.spatial),
        affine=(ctypes.c_double * 16)(*volume.affine.ravel()),
    )


def segment_options(step: float = 0.0, mirror: bool = False, progress: Callable[[int, int], bool] | None = None) -> Any:
    """Options whose callback cancels where `progress` answers False."""
    callback = PROGRESS(lambda done, total, _: 0 if progress is None or progress(done, total) else 1)
    return SegmentOptions(step=step, mirror=mirror, progress=callback)


class EdgeLibrary:
    """The shared library in `folder`; `call` raises what a function answers if it is not OK."""

    def __init__(self, path: Path) -> None:
        self.folder = path.parent
        self.native = ctypes.CDLL(str(path))
        self.native.mednext_last_error.restype = ctypes.c_char_p
        self.native.mednext_version.restype = ctypes.c_char_p

    def status(self, name: str, *arguments: Any) -> int:
        return int(getattr(self.native, f"mednext_{name}")(*arguments))

    def call(self, name: str, *arguments: Any) -> None:
        status = self.status(name, *arguments)
        if status != OK:
            raise Failure(status, self.native.mednext_last_error().decode())

    @contextmanager
    def open(self, folder: Path, threads: int = 0, device: str | None = None) -> Iterator[EdgeModel]:
        handle = ctypes.c_void_p()
        options = Options(threads=threads, device=device.encode() if device else None)
        self.call("open", str(folder).encode(), ctypes.byref(options), ctypes.byref(handle))
        try:
            yield EdgeModel(self, handle)
        finally:
            self.status("close", handle)


class EdgeModel:
    """An open bundle."""

    def __init__(self, library: EdgeLibrary, handle: ctypes.c_void_p) -> None:
        self.library, self.handle = library, handle

    def describe(self) -> Info:
        info = Info()
        self.library.call("describe", self.handle, ctypes.byref(info))
        return info

    def segment(self, volume: Volume, options: SegmentOptions | None = None) -> NDArray[np.uint16]:
        labels = np.full(volume.spatial, 65535, np.uint16)
        image = image_of(volume)
        given = ctypes.byref(options) if options is not None else None
        pointer, count = ctypes.c_void_p(labels.ctypes.data), ctypes.c_size_t(labels.size)
        self.library.call("segment", self.handle, ctypes.byref(image), given, pointer, count)
        return labels

    def classify(self, volume: Volume, options: SegmentOptions | None = None) -> NDArray[np.float32]:
        probabilities = np.full(self.describe().classes, np.nan, np.float32)
        image = image_of(volume)
        given = ctypes.byref(options) if options is not None else None
        pointer, count = ctypes.c_void_p(probabilities.ctypes.data), ctypes.c_size_t(probabilities.size)
        self.library.call("classify", self.handle, ctypes.byref(image), given, pointer, count)
        return probabilities

    @contextmanager
    def stream(self, volume: Volume, options: SegmentOptions | None = None) -> Iterator[EdgeStream]:
        handle = ctypes.c_void_p()
        header = image_of(volume)
        given = ctypes.byref(options) if options is not None else None
        self.library.call("stream_open", self.handle, ctypes.byref(header), given, ctypes.byref(handle))
        try:
            yield EdgeStream(self.library, handle, volume)
        finally:
            self.library.status("stream_close", handle)


class EdgeStream:
    """A stream of the slices of one volume."""

    def __init__(self, library: EdgeLibrary, handle: ctypes.c_void_p, volume: Volume) -> None:
        self.library, self.handle, self.volume = library, handle, volume

    def push(self, first: int, count: int) -> None:
        part = np.ascontiguousarray(self.volume.array[:, first : first + count])
        pointer = ctypes.c_void_p(part.ctypes.data)
        self.library.call("stream_push", self.handle, ctypes.c_int64(first), ctypes.c_int64(count), pointer)

    def describe(self) -> StreamInfo:
        info = StreamInfo()
        self.library.call("stream_describe", self.handle, ctypes.byref(info))
        return info

    def finish(self) -> NDArray[np.uint16]:
        labels = np.full(self.volume.spatial, 65535, np.uint16)
        pointer, count = ctypes.c_void_p(labels.ctypes.data), ctypes.c_size_t(labels.size)
        self.library.call("stream_finish", self.handle, pointer, count)
        return labels
