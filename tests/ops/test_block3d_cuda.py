"""The operator of a whole block through our kernels, compiled for the processor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mednext_edge.errors import MednextEdgeError
from mednext_edge.ops import block3d as ops
from mednext_edge.ops import block3d_cuda, feed_forward
from mednext_edge.ops.block3d import block3d
from mednext_edge.ops.cuda_library import CudaLibrary

from .test_block3d import FORMS, VECTORS, Form, derivatives, draw, every_form, ours, torchs

HALVES = (torch.float16, torch.bfloat16)
SIZE = (2, 3, 5)
every_half = pytest.mark.parametrize("dtype", HALVES, ids=str)


@pytest.fixture(autouse=True)
def on_our_kernels(kernels: CudaLibrary) -> None:
    """Every test here runs on them."""


@pytest.fixture
def calls(kernels: CudaLibrary, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the second kernel is called with."""
    seen: list[Any] = []
    call = kernels.feed_forward

    def record(layer: Any, *arguments: Any) -> None:
        seen.append(layer)
        call(layer, *arguments)

    monkeypatch.setattr(kernels, "feed_forward", record)
    return seen


def error(found: Tensor, exact: Tensor) -> float:
    assert found.shape == exact.shape
    assert torch.isfinite(found).all()
    return float((found.double() - exact).square().mean().sqrt())


def compared(form: Form, given: dict[str, Tensor | None], dtype: torch.dtype) -> None:
    """Output and gradients, each at most twice as far from float64 as PyTorch's in the same type."""
    exact = derivatives(torchs, form, {n: t if t is None else t.double() for n, t in given.items()})
    theirs, found = (derivatives(compute, form, given) for compute in (torchs, ours))
    for name, e in exact.items():
        if name == "bias":  # the norm cancels it: its gradient is noise about zero
            continue
        floor = torch.finfo(dtype).eps / 2 * float(e.square().mean().sqrt())
        assert error(found[name], e) <= max(2 * error(theirs[name], e), floor), name


@every_half
@pytest.mark.parametrize(
    ("kind", "channels", "hidden", "out"),
    [("plain", 32, 64, 32), ("plain, zeros in front", 64, 96, 64), ("down", 32, 96, 64), ("up", 64, 128, 32)],
)
def test_forward_and_gradients(
    kind: str, channels: int, hidden: int, out: int, dtype: torch.dtype, calls: list[Any]
) -> None:
    form = FORMS[kind]
    given = draw(form, SIZE, channels=channels, hidden=hidden, out=out, dtype=dtype)
    compared(form, given, dtype)
    assert [(c.channels, c.hidden, c.out, c.n) for c in calls] == [(channels, hidden, out, 2)]


@every_half
@pytest.mark.parametrize("without", [("residual",), VECTORS, (*VECTORS, "residual"), ("beta", "b1")], ids=str)
def test_what_may_be_absent(without: tuple[str, ...], dtype: torch.dtype, calls: list[Any]) -> None:
    for form in (FORMS["plain"], FORMS["up"]):
        given = draw(form, SIZE, channels=32 * form.stride, hidden=32, out=32, without=without, dtype=dtype)
        compared(form, given, dtype)
    assert len(calls) == 2


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@every_form
def test_what_the_second_kernel_does_not_take(
    form: Form, dtype: torch.dtype, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matrix products follow our convolution, a few voxels at a time."""
    monkeypatch.setattr(feed_forward, "CHUNK", 1000)
    compared(form, draw(form, SIZE, channels=24, hidden=48, out=24, dtype=dtype), dtype)
    assert not calls


def test_which_layers_the_second_kernel_takes() -> None:
    def takes(channels: int, hidden: int, out: int, dtype: torch.dtype = torch.float16) -> bool:
        w1, w2 = torch.empty(hidden, channels, 1, 1, 1), torch.empty(out, hidden, 1, 1, 1)
        return block3d_cuda.takes(torch.empty(1, channels, 1, 1, 1, dtype=dtype), w1, w2)

    taken = [(c, o) for c in (16, 32, 64, 96, 128, 256) for o in (16, 32, 64, 96, 128, 256) if takes(c, 64, o)]
    assert taken == [(32, 32), (32, 64), (64, 32), (64, 64), (64, 128), (128, 64), (128, 128)]
    assert takes(32, 96, 32, torch.bfloat16)
    assert not takes(32, 48, 32)
    assert not takes(32, 64, 32, torch.float32)


@every_half
@every_form
def test_any_layout_goes_in(form: Form, dtype: torch.dtype) -> None:
    """Contiguous, cut out of something larger, off a boundary of 16 bytes: the same bits come out, channels-last."""
    given = draw(form, SIZE, channels=64, hidden=64, out=64, dtype=dtype)
    expected = ours(form, *given.values())
    assert expected.is_contiguous(memory_format=torch.channels_last_3d)

    def shifted(t: Tensor) -> Tensor:
        moved = torch.empty(t.numel() + 1, dtype=t.dtype)[1:].view(t.shape)
        return moved.copy_(t)

    def last(t: Tensor) -> Tensor:
        return t.contiguous(memory_format=torch.channels_last_3d) if t.dim() == 5 else t

    def shifted_last(t: Tensor) -> Tensor:
        if t.dim() != 5:
            return shifted(t)
        return shifted(t.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)

    for change in (shifted, last, shifted_last, lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]]):
        y = ours(form, *(None if t is None else change(t) for t in given.values()))
        assert y.is_contiguous(memory_format=torch.channels_last_3d)
        assert torch.equal(y, expected)


@pytest.mark.parametrize("form", [FORMS["plain"], FORMS["up"]], ids=["plain", "up"])
@pytest.mark.parametrize("channels", [64, 24], ids=["both kernels", "one kernel"])
def test_the_operator_keeps_its_promises(form: Form, channels: int) -> None:
    given = draw(form, SIZE, channels=channels, hidden=64, out=channels, dtype=torch.float16).values()
    leaves = [t.requires_grad_() for t in given if t is not None]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = (*leaves[:5], 1e-5, *leaves[5:], *form.options.values())
    torch.library.opcheck(ops.block, arguments, test_utils=checks)


@every_half
def test_the_same_bits_every_time(dtype: torch.dtype) -> None:
    given = draw(FORMS["up"], SIZE, channels=64, hidden=64, out=32, dtype=dtype)
    assert torch.equal(ours(FORMS["up"], *given.values()), ours(FORMS["up"], *given.values()))


@every_half
def test_statistics_are_those_before_rounding(dtype: torch.dtype) -> None:
    """Also where the mean is large against the spread: the norm takes it out to within the rounding of the image."""
    given = draw(Form(), SIZE, channels=32, hidden=32, out=32, dtype=dtype)
    bias = given["bias"]
    assert bias is not None
    given["bias"] = bias + 8
    compared(Form(), given, dtype)


def test_double_and_no_sample_go_to_torch(calls: list[Any]) -> None:
    given = draw(Form(), SIZE, channels=32, hidden=32, out=32)
    assert ours(Form(), *given.values()).dtype == torch.float64
    assert ours(Form(), *draw(Form(), SIZE, batch=0, dtype=torch.float16).values()).shape[0] == 0
    assert not calls


def test_what_the_library_refuses_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block3d_cuda, "CHANNELS", (8,))
    given = draw(Form(), SIZE, channels=8, hidden=32, out=8, dtype=torch.float16)
    words = (
        r"`ffn_forward` did not run \(code -7: .*\) for input \[2, 8, 2, 3, 5\], 32 hidden and 8 output channels, F16"
    )
    with pytest.raises(MednextEdgeError, match=words):
        block3d(**given)  # type: ignore[arg-type]
