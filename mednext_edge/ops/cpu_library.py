"""Our operators for CPUs, of `libmednext_cpu`, called with addresses.

Channels-last float32, but for whole networks. The header `mednext_cpu_ops.h` says what each computes.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from mednext_edge.cpu import library_path, load
from mednext_edge.errors import MednextEdgeError


def _pointers(*names: str) -> tuple[tuple[str, Any], ...]:
    return tuple((name, ctypes.c_void_p) for name in names)


class Layer(ctypes.Structure):
    """`mednext_cpu_dwconv3d` of the header."""

    _fields_ = (*((name, ctypes.c_int64) for name in "ndhwc"), ("kernel", ctypes.c_int32), ("stride", ctypes.c_int32))


class DenseLayer(ctypes.Structure):
    """`mednext_cpu_dense` of the header."""

    _fields_ = (*((name, ctypes.c_int64) for name in ("c_in", "c_out")), *_pointers("weight", "bias"))


class NetBlock(ctypes.Structure):
    """`mednext_cpu_block` of the header."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("form", "kernel", "depth", "residual")),
        *((name, ctypes.c_int64) for name in ("c_in", "hidden", "c_out")),
        ("in_step", ctypes.c_float),
        *_pointers("depthwise", "depthwise_scale"),
        *((name, ctypes.c_float) for name in ("eps", "norm_step")),
        *_pointers("expand", "expand_scale", "expand_bias", "table", "compress", "compress_scale", "compress_bias"),
        *_pointers("shortcut", "shortcut_scale", "shortcut_bias"),
    )


class FloatNetBlock(ctypes.Structure):
    """`mednext_cpu_float_block` of the header."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("form", "kernel", "depth", "residual")),
        *((name, ctypes.c_int64) for name in ("c_in", "hidden", "c_out")),
        *_pointers("depthwise"),
        ("eps", ctypes.c_float),
        *_pointers("expand", "expand_bias", "compress", "compress_bias", "shortcut", "shortcut_bias"),
    )


_LAYER, _POINTER, _SIZE, _THREADS = ctypes.POINTER(Layer), ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "dwconv3d_forward": (_LAYER, *(_POINTER,) * 4, _THREADS),
    "dwconv3d_adjoint": (_LAYER, *(_POINTER,) * 4, _THREADS),
    "dwconv3d_weight": (_LAYER, *(_POINTER,) * 3, _THREADS),
    "channel_norm": (*(_SIZE,) * 3, *(_POINTER,) * 3, ctypes.c_double, *(_POINTER,) * 3, _THREADS),
    "channel_norm_backward": (*(_SIZE,) * 3, *(_POINTER,) * 8, _THREADS),
    "net_new": (ctypes.POINTER(DenseLayer), ctypes.POINTER(DenseLayer), ctypes.c_int32, _POINTER),
    "net_add": (_POINTER, ctypes.POINTER(NetBlock)),
    "net_add_float": (_POINTER, ctypes.POINTER(FloatNetBlock)),
    "net_run": (_POINTER, *(_SIZE,) * 3, _POINTER, _POINTER, _THREADS),
    "net_free": (_POINTER,),
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


def new_net(stem: DenseLayer, head: DenseLayer, precision: int) -> int:
    """The address of a network without blocks; give it to `free_net` when it is not used any more.

    Args:
        stem, head: its ends.
        precision: a `MEDNEXT_CPU_INT8`, `FP32` or `BF16` of the header `mednext_cpu_net.h`.

    Raises:
        MednextEdgeError: the library is missing, or there is not enough memory.
    """
    net = ctypes.c_void_p()
    _run("net_new", ctypes.byref(stem), ctypes.byref(head), precision, ctypes.byref(net))
    assert net.value is not None
    return net.value


def free_net(net: int) -> None:
    """Forget what `new_net` made."""
    _functions()["net_free"](net)


def isa() -> str:
    """The instruction set that the operators use.

    One of `plain`, `avx2`, `avx_vnni`, `avx512`, `avx512_vnni`, `avx512_bf16` and `amx`, which multiplies INT8
    and bfloat16 in tiles and is the one before it in all else. `avx512_bf16` is taken on Intel's processors only where
    MEDNEXT_CPU_ISA asks for it: products in float32 are faster there.
    """
    function = load().mednext_cpu_isa
    function.restype = ctypes.c_char_p
    return str(function().decode())


def call(name: str, *arguments: Tensor | ctypes.Structure | float | None, threads: int | None = None) -> None:
    """Run a function.

    Args:
        name: one of SIGNATURES.
        arguments: as in the header, without the threads; tensors are passed by address, None as a null pointer.
        threads: of those functions that take a number of them; None takes as many as PyTorch has.

    Raises:
        MednextEdgeError: the library is missing, or an argument is none that it takes.
    """
    given: list[Any] = [
        a.data_ptr() if isinstance(a, Tensor) else ctypes.byref(a) if isinstance(a, ctypes.Structure) else a
        for a in arguments
    ]
    if SIGNATURES[name][-1] is _THREADS:
        given.append(threads or torch.get_num_threads())
    _run(name, *given)


def _run(name: str, *arguments: Any) -> None:
    code = _functions()[name](*arguments)
    if code:
        raise MednextEdgeError(f"mednext_cpu_{name} failed: {PROBLEMS.get(code, f'code {code}')}")
