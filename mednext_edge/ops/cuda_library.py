"""Our CUDA kernels: the library `libmednext_cuda.so` of csrc/, found, loaded and called with checked arguments.

It is optional. It is built where nvcc is (see CMakeLists.txt), needs no CUDA toolkit to be loaded, and loads on
machines without a GPU too.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from enum import IntEnum
from pathlib import Path
from typing import Any

from mednext_edge.cpu import places
from mednext_edge.errors import MednextEdgeError, TargetUnavailableError

LIBRARY = "mednext_cuda.dll" if sys.platform == "win32" else "libmednext_cuda.so"
OVERRIDE = "MEDNEXT_CUDA_LIBRARY"
"""Environment variable with the path of a library to use in place of the installed one."""
ABI = 5
"""`MEDNEXT_CUDA_ABI` of the header that this file was written to."""
LARGEST_KERNEL = 31

NO_KERNEL_IMAGE = 209  # cudaErrorNoKernelImageForDevice


class DType(IntEnum):
    """Types of activations, as in the header."""

    F32 = 0
    F16 = 1
    BF16 = 2
    I8 = 3


class ComputePath(IntEnum):
    """How a convolution is computed, as in the header."""

    AUTO = 0
    FMA = 1
    TENSOR = 2


class Pass(IntEnum):
    """Passes that need a workspace, as in the header."""

    FORWARD_STATS = 0
    GRAD_WEIGHT = 1


class Layer(ctypes.Structure):
    """`mednext_dwconv3d` of the header; n, d, h, w, c are those of the layer's input, dims is 3 or 2."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n", "d", "h", "w", "c")),
        *((name, ctypes.c_int32) for name in ("dims", "kernel", "stride", "transposed", "dtype", "path")),
    )


class FeedForward(ctypes.Structure):
    """`mednext_ffn` of the header; n, d, h, w are those of its input, the strides those of residual and output."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n", "d", "h", "w")),
        *((name, ctypes.c_int32) for name in ("channels", "hidden", "out", "dtype")),
        ("eps", ctypes.c_float),
        *((name, ctypes.c_int64) for name in ("stride_n", "stride_d", "stride_h", "stride_w")),
    )


_LAYER, _POINTER, _SIZE = ctypes.POINTER(Layer), ctypes.c_void_p, ctypes.c_size_t
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "workspace_bytes": (_LAYER, ctypes.c_int, ctypes.POINTER(_SIZE)),
    "forward": (_LAYER, *(_POINTER,) * 4, _POINTER),
    "forward_stats": (_LAYER, *(_POINTER,) * 6, _POINTER, _SIZE, _POINTER),
    "forward_int8": (_LAYER, *(_POINTER,) * 5, _POINTER),
    "grad_input": (_LAYER, *(_POINTER,) * 3, _POINTER),
    "grad_weight": (_LAYER, *(_POINTER,) * 3, _POINTER, _SIZE, _POINTER),
}
"""Arguments of every `mednext_dwconv3d_*`; the last pointer is the stream. All return a code, 0 for done."""
FEED_FORWARD = (ctypes.POINTER(FeedForward), *(_POINTER,) * 11, _POINTER)
"""Arguments of `mednext_ffn_forward`, likewise."""


class CudaLibrary:
    """The functions of a kernel library.

    Args:
        path: the shared library.

    Raises:
        MednextEdgeError: it cannot be loaded, lacks a function, or was built from another version of the header.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._library = ctypes.CDLL(str(path))
            self._library.mednext_cuda_abi.restype = ctypes.c_int
            self._library.mednext_cuda_abi.argtypes = []
            abi = int(self._library.mednext_cuda_abi())
            if abi == ABI:
                self._library.mednext_cuda_error.restype = ctypes.c_char_p
                self._library.mednext_cuda_error.argtypes = [ctypes.c_int]
                self._functions = {name: self._library[f"mednext_dwconv3d_{name}"] for name in SIGNATURES}
                for name, arguments in SIGNATURES.items():
                    self._functions[name].restype = ctypes.c_int
                    self._functions[name].argtypes = arguments
                self._feed_forward = self._library.mednext_ffn_forward
                self._feed_forward.restype, self._feed_forward.argtypes = ctypes.c_int, FEED_FORWARD
        except (OSError, AttributeError) as error:
            raise MednextEdgeError(
                f"{path} cannot be used ({error}); reinstall mednext-edge on this machine"
            ) from error
        if abi != ABI:
            raise MednextEdgeError(
                f"{path} has interface {abi}, expected {ABI}; reinstall mednext-edge on this machine"
            )

    def call(self, function: str, layer: Layer, *arguments: object) -> None:
        """Enqueue `mednext_dwconv3d_<function>`.

        Args:
            function: a name of `SIGNATURES`.
            layer: sizes and type.
            arguments: the rest of its arguments; addresses as integers, None for a null pointer.

        Raises:
            MednextEdgeError: the library refuses the arguments, or CUDA could not launch the kernel.
        """
        shape = f"[{layer.n}, {layer.c}, {layer.d}, {layer.h}, {layer.w}]"
        self._check(
            self._functions[function](ctypes.byref(layer), *arguments),
            f"`{function}`",
            f"input {shape}, {layer.dims}-D, kernel {layer.kernel}, stride {layer.stride}, {DType(layer.dtype).name}"
            + (f", path {ComputePath(layer.path).name}" if layer.path else ""),
        )

    def feed_forward(self, layer: FeedForward, *arguments: object) -> None:
        """Enqueue `mednext_ffn_forward`.

        Args:
            layer: sizes, type, and strides of the output.
            arguments: the rest of its arguments, as for `call`.

        Raises:
            MednextEdgeError: as for `call`.
        """
        shape = f"[{layer.n}, {layer.channels}, {layer.d}, {layer.h}, {layer.w}]"
        self._check(
            self._feed_forward(ctypes.byref(layer), *arguments),
            "`ffn_forward`",
            f"input {shape}, {layer.hidden} hidden and {layer.out} output channels, {DType(layer.dtype).name}",
        )

    def _check(self, code: int, function: str, given: str) -> None:
        if code == 0:
            return
        reason = self._library.mednext_cuda_error(code).decode(errors="replace")
        advice = (
            "; the library was built for other GPUs: rebuild the package with MEDNEXT_CUDA=ON and this GPU's "
            "architecture in MEDNEXT_CUDA_ARCHS"
            if code == NO_KERNEL_IMAGE
            else ""
        )
        raise MednextEdgeError(f"the CUDA kernel {function} did not run (code {code}: {reason}) for {given}{advice}")

    def workspace_bytes(self, layer: Layer, which: Pass) -> int:
        """Bytes of workspace that a pass needs on the current device."""
        size = _SIZE()
        self.call("workspace_bytes", layer, which, ctypes.byref(size))
        return size.value


def find() -> Path | None:
    """Where the library is; None where the package was built without it.

    Raises:
        MednextEdgeError: the environment variable names a file that is not there.
    """
    named = os.environ.get(OVERRIDE)
    if named:
        if not Path(named).is_file():
            raise MednextEdgeError(f"{OVERRIDE} names {named}, which is not a file; give the path of {LIBRARY}")
        return Path(named)
    return next((path for path in places(LIBRARY) if path.is_file()), None)


@functools.cache
def library() -> CudaLibrary:
    """The kernel library, loaded once.

    Raises:
        TargetUnavailableError: the package was built without it.
        MednextEdgeError: it cannot be used, see `CudaLibrary`.
    """
    path = find()
    if path is None:
        raise TargetUnavailableError(
            f"this package was built without CUDA kernels ({LIBRARY}); install it where nvcc is found, with "
            "MEDNEXT_CUDA=ON in the environment if no GPU is there"
        )
    return CudaLibrary(path)


@functools.cache
def available() -> bool:
    """Whether the package has its CUDA kernels; says nothing of a GPU."""
    return find() is not None
