"""Our operators for CPUs, of `libmednext_cpu`, called with addresses.

Channels-last; float32 but for the feed-forward in INT8. The header `mednext_cpu_ops.h` says what each computes.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from mednext_edge.cpu import library_path, load
from mednext_edge.errors import MednextEdgeError


class Layer(ctypes.Structure):
    """`mednext_cpu_dwconv3d` of the header."""

    _fields_ = (*((name, ctypes.c_int64) for name in "ndhwc"), ("kernel", ctypes.c_int32), ("stride", ctypes.c_int32))


class FeedForward(ctypes.Structure):
    """`mednext_cpu_ffn` of the header."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("c_in", "hidden", "c_out")),
        *((name, ctypes.c_void_p) for name in ("expand", "compress", "table")),
        *((f"{part}_{name}", ctypes.c_void_p) for part in ("expand", "compress") for name in ("scale", "bias")),
    )


_LAYER, _POINTER, _SIZE, _THREADS = ctypes.POINTER(Layer), ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "dwconv3d_forward": (_LAYER, *(_POINTER,) * 4, _THREADS),
    "dwconv3d_adjoint": (_LAYER, *(_POINTER,) * 4, _THREADS),
    "dwconv3d_weight": (_LAYER, *(_POINTER,) * 3, _THREADS),
    "channel_norm": (*(_SIZE,) * 3, *(_POINTER,) * 3, ctypes.c_double, *(_POINTER,) * 3, _THREADS),
    "channel_norm_backward": (*(_SIZE,) * 3, *(_POINTER,) * 8, _THREADS),
    "ffn_pack": (ctypes.POINTER(FeedForward), _POINTER),
    "ffn_free": (_POINTER,),
    "ffn_int8": (_POINTER, _SIZE, *(_POINTER,) * 3, _THREADS),
    "fake_quantize_backward": (_SIZE, _POINTER, _POINTER, ctypes.c_float, _POINTER, _POINTER, _THREADS),
}
PROBLEMS = {1: "it was given sizes or tensors that it does not take", 2: "there is not enough memory"}


@functools.cache
def _functions() -> dict[str, Any]:
    library, found = load(), {}
    for name, types in SIGNATURES.items():
        try:
            function = getattr(library, f"mednext_cpu_{name}")
        except AttributeError as error:
            raise MednextEdgeError(f"{library_path()} is of an older version; reinstall mednext-edge") from error
        function.argtypes, function.restype = types, ctypes.c_int32
        found[name] = function
    return found


def pack(layer: FeedForward) -> int:
    """The address of a feed-forward as the kernels read it; give it to `free` when it is not used any more.

    Raises:
        MednextEdgeError: the library is missing, or there is not enough memory.
    """
    packed = ctypes.c_void_p()
    code = _functions()["ffn_pack"](ctypes.byref(layer), ctypes.byref(packed))
    if code or packed.value is None:
        raise MednextEdgeError(f"mednext_cpu_ffn_pack failed: {PROBLEMS.get(code, f'code {code}')}")
    return packed.value


def free(packed: int) -> None:
    """Forget what `pack` made."""
    _functions()["ffn_free"](packed)


def isa() -> str:
    """The instruction set that the operators use: `plain`, `avx2`, `avx512` or `avx512_vnni`."""
    function = load().mednext_cpu_isa
    function.restype = ctypes.c_char_p
    return str(function().decode())


def call(name: str, *arguments: Tensor | Layer | float | None) -> None:
    """Run a function with as many threads as PyTorch has.

    Args:
        name: one of SIGNATURES.
        arguments: as in the header, without the threads; tensors are passed by address, None as a null pointer.

    Raises:
        MednextEdgeError: the library is missing, or an argument is none that it takes.
    """
    given = [
        a.data_ptr() if isinstance(a, Tensor) else ctypes.byref(a) if isinstance(a, Layer) else a for a in arguments
    ]
    code = _functions()[name](*given, torch.get_num_threads())
    if code:
        raise MednextEdgeError(f"mednext_cpu_{name} failed: {PROBLEMS.get(code, f'code {code}')}")
