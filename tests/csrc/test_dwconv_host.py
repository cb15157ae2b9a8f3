"""The depthwise kernels, run on the processor, against PyTorch in float64."""

from __future__ import annotations

import ctypes

import pytest
import torch

from mednext_edge.ops.cuda_library import SIGNATURES, ComputePath, CudaLibrary, DType, Layer, Pass
from tests.csrc.kernels import DTYPES, Case, Guarded

# (n, c, d, h, w): below, at and above a tile of 16 x 8 voxels and of 16 or 32 channels; one voxel deep, one voxel
# in all; channels that fill no 16-byte copy and no pair; two images.
SHAPES = (
    (1, 3, 4, 9, 10),
    (2, 40, 3, 5, 8),
    (1, 8, 1, 17, 3),
    (1, 33, 6, 2, 9),
    (1, 1, 1, 1, 1),
    (1, 16, 9, 1, 18),
)
FORMS = ((1, False), (2, False), (2, True))
every_form = pytest.mark.parametrize(("stride", "transposed"), FORMS, ids=("conv", "stride 2", "transposed"))
LAYERS = [(kernel, shape) for kernel in (3, 5, 7) for shape in SHAPES]
# Sizes without a kernel of their own, the second larger than its image.
LAYERS += [(1, (2, 40, 3, 5, 8)), (9, (2, 3, 3, 6, 7))]


# In 2-D, where images are planes: also more of them than one in a volume, and more than blocks run at once.
FLAT_SHAPES = (
    (1, 3, 1, 9, 10),
    (2, 40, 1, 5, 8),
    (1, 8, 1, 17, 3),
    (1, 33, 2, 2, 9),
    (1, 1, 1, 1, 1),
    (3, 16, 3, 1, 18),
    (37, 2, 1, 18, 3),
)
FLAT_LAYERS = [(kernel, shape) for kernel in (3, 5, 7, 9) for shape in FLAT_SHAPES]
FLAT_LAYERS += [(1, (2, 40, 3, 5, 8)), (11, (2, 3, 2, 6, 7))]

HALVES = (torch.float16, torch.bfloat16)
# Of the tiles of tensor cores, 32 x 8 or 16 x 8 voxels and 16 channels: below, above, and one full beside a rest.
BANDED_SHAPES = (*SHAPES, (1, 20, 4, 9, 34), (1, 2, 19, 3, 5))


@every_form
@pytest.mark.parametrize(("kernel", "shape"), LAYERS, ids=str)
def test_all_passes(
    host: CudaLibrary, kernel: int, shape: tuple[int, int, int, int, int], stride: int, transposed: bool
) -> None:
    for dtype in DTYPES:
        check_passes(host, Case(shape, kernel, stride, transposed, dtype, path=ComputePath.FMA), kernel**3)


@pytest.mark.parametrize("shape", BANDED_SHAPES, ids=str)
@pytest.mark.parametrize("kernel", (3, 5, 7))
def test_all_passes_on_tensor_cores(host: CudaLibrary, kernel: int, shape: tuple[int, int, int, int, int]) -> None:
    for dtype in HALVES:
        check_passes(host, Case(shape, kernel, dtype=dtype, path=ComputePath.TENSOR), kernel**3, weights=False)


@every_form
@pytest.mark.parametrize(("kernel", "shape"), FLAT_LAYERS, ids=str)
def test_all_passes_in_2d(
    host: CudaLibrary, kernel: int, shape: tuple[int, int, int, int, int], stride: int, transposed: bool
) -> None:
    for dtype in DTYPES:
        check_passes(host, Case(shape, kernel, stride, transposed, dtype, path=ComputePath.FMA, dims=2), kernel**2)


@pytest.mark.parametrize("shape", (*FLAT_SHAPES, (1, 20, 1, 9, 34), (9, 17, 1, 3, 5)), ids=str)
@pytest.mark.parametrize("kernel", (5, 7))
def test_all_passes_on_tensor_cores_in_2d(
    host: CudaLibrary, kernel: int, shape: tuple[int, int, int, int, int]
) -> None:
    for dtype in HALVES:
        check_passes(host, Case(shape, kernel, dtype=dtype, path=ComputePath.TENSOR, dims=2), kernel**2, weights=False)


def check_passes(host: CudaLibrary, case: Case, taps: int, weights: bool = True) -> None:
    """Against float64. `weights`: their gradient too, which has one path."""
    x, w, bias = case.x.double(), case.weight.double(), case.bias.double().view(-1, 1, 1, 1)
    exact, magnitude = case.reference(x, w) + bias, case.reference(x.abs(), w.abs()) + bias.abs()
    y = case.forward(host)
    assert ((y - exact).abs() <= case.bound(exact, magnitude, taps)).all()

    dx, dw = case.reference_gradients()
    dx_magnitude, dw_magnitude = case.reference_gradients(absolute=True)
    assert ((case.grad_input(host) - dx).abs() <= case.bound(dx, dx_magnitude, taps)).all()
    if weights:
        terms = min(case.x[:, 0].numel(), case.dy[:, 0].numel())
        assert ((case.grad_weight(host) - dw).abs() <= (terms + 2) * 2.0**-24 * dw_magnitude).all()

    again, mean, moment = case.forward_stats(host)
    assert torch.equal(again, y)
    wide = exact.flatten(2)
    voxels = wide.shape[2]
    slack = ((taps + voxels + 2) * 2.0**-24 * magnitude.flatten(2)).amax(2)
    assert ((mean - wide.mean(2)).abs() <= slack).all()
    spread = (wide - wide.mean(2, keepdim=True)).square().sum(2)
    # d(sum of squares) = 2 * sum(|value| * d(value)), and as much again in the merging.
    assert ((moment - spread).abs() <= 4 * slack * (spread.sqrt() + slack) * voxels**0.5).all()


@pytest.mark.parametrize(("kernel", "dims"), [(3, 3), (5, 3), (7, 3), (5, 2), (7, 2)])
def test_tensor_cores_on_tensors_off_their_boundaries(host: CudaLibrary, kernel: int, dims: int) -> None:
    """Two bytes off 16, where nothing is copied or stored at once, and 8 bytes off, where outputs still are."""
    shifted = [
        Case((1, 24, 3, 9, 18), kernel, dtype=torch.float16, shift=shift, path=ComputePath.TENSOR, dims=dims)
        for shift in (0, 1, 4)
    ]
    y, dx = shifted[0].forward(host), shifted[0].grad_input(host)
    for case in shifted[1:]:
        assert torch.equal(case.forward(host), y)
        assert torch.equal(case.grad_input(host), dx)


@pytest.mark.parametrize(
    ("kernel", "size", "tensor"),
    [
        (5, (2, 8, 32), True),
        (5, (2, 8, 16), True),
        (5, (2, 8, 15), False),
        (5, (2, 4, 32), True),
        (5, (2, 3, 32), False),
        (3, (2, 8, 33), True),
        (7, (2, 8, 8), True),
        (7, (2, 8, 7), False),
        (9, (2, 8, 32), False),
    ],
)
def test_the_path_that_is_chosen(host: CudaLibrary, kernel: int, size: tuple[int, int, int], tensor: bool) -> None:
    """By how much of its tiles the output fills; the two differ by the rounding of the weights."""
    assert chosen(host, Case((1, 2, *size), kernel, dtype=torch.float16, path=ComputePath.FMA)) == tensor


@pytest.mark.parametrize(
    ("kernel", "size", "tensor"),
    [(5, (8, 16), True), (5, (8, 15), False), (7, (8, 8), True), (7, (8, 7), False), (3, (8, 32), False)],
)
def test_the_path_that_is_chosen_in_2d(host: CudaLibrary, kernel: int, size: tuple[int, int], tensor: bool) -> None:
    case = Case((3, 2, 1, *size), kernel, dtype=torch.float16, path=ComputePath.FMA, dims=2)
    assert chosen(host, case) == tensor


def chosen(host: CudaLibrary, case: Case) -> bool:
    """Whether the path is that of tensor cores."""
    assert not torch.equal(case.weight, case.weight.half().float())
    found = {}
    for path in ComputePath:
        case.layer.path = path
        if path != ComputePath.TENSOR or case.layer.kernel in ((3, 5, 7) if case.layer.dims == 3 else (5, 7)):
            found[path] = case.forward(host)
    same = [path for path in found if path != ComputePath.AUTO and torch.equal(found[path], found[ComputePath.AUTO])]
    assert len(same) == 1
    return same[0] == ComputePath.TENSOR


@pytest.mark.parametrize(
    "change",
    [
        *({"dtype": 0}, {"kernel": 9}, {"stride": 2}, {"stride": 2, "transposed": 1}, {"path": 3}, {"path": -1}),
        *({"dims": 2, "kernel": 3}, {"dims": 2, "kernel": 9}, {"dims": 2, "stride": 2}),
    ],
    ids=str,
)
def test_layers_that_tensor_cores_do_not_compute(host: CudaLibrary, change: dict[str, int]) -> None:
    layer = Layer(**(GOOD | {"dtype": 1, "kernel": 5, "path": ComputePath.TENSOR} | change))
    memory = torch.full((64,), torch.nan)
    assert code(host, "forward", layer, [memory.data_ptr()] * 4) == -9
    assert memory.isnan().all()


@every_form
def test_without_bias(host: CudaLibrary, stride: int, transposed: bool) -> None:
    case = Case((1, 8, 3, 4, 5), 3, stride, transposed)
    exact = case.reference(case.x.double(), case.weight.double())
    torch.testing.assert_close(case.forward(host, bias=False).double(), exact, rtol=1e-5, atol=1e-5)


@every_form
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", (2, 3))
def test_tensors_off_a_16_byte_boundary(
    host: CudaLibrary, dims: int, stride: int, transposed: bool, dtype: torch.dtype
) -> None:
    shifted, plain = (Case((1, 16, 3, 9, 9), 3, stride, transposed, dtype, shift=shift, dims=dims) for shift in (1, 0))
    assert torch.equal(shifted.forward(host), plain.forward(host))
    assert torch.equal(shifted.grad_input(host), plain.grad_input(host))
    assert torch.equal(shifted.grad_weight(host), plain.grad_weight(host))


@every_form
@pytest.mark.parametrize("kernel", (3, 1))
def test_moments_do_not_cancel(host: CudaLibrary, stride: int, transposed: bool, kernel: int) -> None:
    """A mean of ten thousand times the spread, where float sums of squares keep no digit of the variance."""
    case = Case((1, 2, 6, 16, 16), kernel, stride, transposed, mean=1e4)
    case.weight.zero_()
    case.weight[:, :, kernel // 2, kernel // 2, kernel // 2] = 1
    case.bias.zero_()
    y, mean, moment = case.forward_stats(host)
    if transposed:  # the values between are zeros: keep those alone that are inputs
        assert torch.equal(y[..., ::2, ::2, ::2], case.x)
    wide = y.double().flatten(2)
    torch.testing.assert_close(mean.double(), wide.mean(2), rtol=1e-6, atol=0)
    torch.testing.assert_close(moment.double(), wide.var(2, correction=0) * wide.shape[2], rtol=1e-3, atol=0)


@pytest.mark.parametrize("kernel", (3, 5, 7))
def test_moments_on_tensor_cores_do_not_cancel(host: CudaLibrary, kernel: int) -> None:
    """A mean of ten thousand times the spread; the first plane, from which sums are counted, is far off."""
    case = Case((1, 2, 6, 16, 16), kernel, dtype=torch.bfloat16, path=ComputePath.TENSOR)
    case.x[:, :, 0] += 100
    case.weight.zero_()
    case.weight[:, :, kernel // 2, kernel // 2, kernel // 2] = 1e-2
    case.bias.fill_(1e2)
    weight = case.weight.bfloat16().double()
    wide = (case.reference(case.x.double(), weight) + case.bias.double().view(-1, 1, 1, 1)).flatten(2)
    case.weight = weight.float()
    _, mean, moment = case.forward_stats(host)
    torch.testing.assert_close(mean.double(), wide.mean(2), rtol=1e-6, atol=0)
    torch.testing.assert_close(moment.double(), wide.var(2, correction=0) * wide.shape[2], rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("kernel", "dtype", "path"),
    [
        (1, torch.float32, ComputePath.FMA),
        (3, torch.float16, ComputePath.TENSOR),
        (7, torch.float16, ComputePath.TENSOR),
    ],
)
def test_moments_of_a_constant(host: CudaLibrary, kernel: int, dtype: torch.dtype, path: ComputePath) -> None:
    case = Case((2, 4, 3, 9, 20), kernel, dtype=dtype, path=path)
    case.weight.zero_()
    _, mean, moment = case.forward_stats(host)
    assert torch.equal(mean, case.bias.expand(2, 4))
    assert torch.equal(moment, torch.zeros(2, 4))


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_storage_types_are_exact(host: CudaLibrary, dtype: torch.dtype) -> None:
    """Every number of the type survives, and floats round to the nearest as PyTorch rounds them."""
    layer = Layer(1, 1, 1, 1, 65536, 3, 1, 1, 0, {torch.float16: DType.F16, torch.bfloat16: DType.BF16}[dtype])
    numbers = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype)
    ones = torch.ones(65536)
    floats = torch.randint(-(2**31), 2**31 - 1, (65536,), generator=torch.Generator().manual_seed(0))
    edges = torch.tensor([65504, 65519, 65520, 2.0**-24, 2.0**-25, 3 * 2.0**-25, 2.0**-26, 0.0, -0.0, 3.4e38, 1e-45])
    floats = torch.cat([floats.to(torch.int32).view(torch.float32)[:-11], edges])
    for x, weight in ((numbers, ones), (ones.to(dtype), floats)):
        y = Guarded((65536,), dtype)
        x, weight = x.contiguous(), weight.contiguous()
        host.call("forward", layer, x.data_ptr(), weight.data_ptr(), None, y.address, None)
        expected = (x.float() * weight).to(dtype)
        torch.testing.assert_close(y.tensor, expected, rtol=0, atol=0, equal_nan=True)


GOOD = {"n": 1, "d": 2, "h": 2, "w": 2, "c": 4, "dims": 3, "kernel": 3, "stride": 1, "transposed": 0, "dtype": 0}
POINTERS = {
    "forward": (0, 1, 3),
    "forward_stats": (0, 1, 3, 4, 5, 6),
    "grad_input": (0, 1, 2),
    "grad_weight": (0, 1, 2, 3),
}
"""Of every function, which of its pointers before the stream must be given."""


def code(host: CudaLibrary, function: str, layer: Layer | None, pointers: list[int], size: int = 1 << 20) -> int:
    """What a function returns; a workspace of `size` bytes where it takes one."""
    call = getattr(ctypes.CDLL(str(host.path)), f"mednext_dwconv3d_{function}")
    call.argtypes = SIGNATURES[function]
    works = (size,) if ctypes.c_size_t in SIGNATURES[function] else ()
    return int(call(None if layer is None else ctypes.byref(layer), *pointers, *works, None))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"n": 0}, -2),
        ({"d": 0}, -2),
        ({"h": -1}, -2),
        ({"c": 0}, -2),
        ({"n": 65536}, -2),
        ({"w": 2**40}, -2),
        ({"h": 2**20, "w": 2**20}, -2),
        ({"h": 2**14, "w": 2**14, "stride": 2, "transposed": 1}, -2),
        ({"kernel": 4}, -3),
        ({"kernel": 0}, -3),
        ({"kernel": -3}, -3),
        ({"kernel": 33}, -3),
        ({"stride": 3}, -4),
        ({"stride": 0}, -4),
        ({"transposed": 1}, -4),
        ({"dtype": 3}, -5),
        ({"dims": 1}, -10),
        ({"dims": 0}, -10),
    ],
    ids=str,
)
def test_layers_that_cannot_be(host: CudaLibrary, change: dict[str, int], expected: int) -> None:
    layer = Layer(**(GOOD | change))
    memory = torch.full((64,), torch.nan)
    for function, required in POINTERS.items():
        assert code(host, function, layer, [memory.data_ptr()] * (max(required) + 1)) == expected
    size = ctypes.c_size_t(7)
    query = ctypes.CDLL(str(host.path)).mednext_dwconv3d_workspace_bytes
    assert query(ctypes.byref(layer), Pass.GRAD_WEIGHT, ctypes.byref(size)) == expected
    assert memory.isnan().all() and size.value == 7


@pytest.mark.parametrize("function", POINTERS)
def test_pointers_that_cannot_be(host: CudaLibrary, function: str) -> None:
    """Null, and two bytes off an element."""
    memory = torch.full((1024,), torch.nan)
    good = [memory.data_ptr()] * (max(POINTERS[function]) + 1)
    assert code(host, function, None, good) == -1
    for index in POINTERS[function]:
        for wrong in (0, memory.data_ptr() + 2):
            pointers = [*good[:index], wrong, *good[index + 1 :]]
            assert code(host, function, Layer(**GOOD), pointers) == -1
    assert memory.isnan().all()


@pytest.mark.parametrize("planes", (2**14, 2**20))
def test_batches_of_very_many_planes_are_planned(host: CudaLibrary, planes: int) -> None:
    """Fewer and more planes in all than an int counts."""
    layer = Layer(**(GOOD | {"dims": 2, "n": 65535, "d": planes, "h": 1, "w": 1, "c": 1}))
    assert 0 < host.workspace_bytes(layer, Pass.GRAD_WEIGHT) <= 4 * 9 * 2 * 4
    assert host.workspace_bytes(layer, Pass.FORWARD_STATS) > 4 * 3 * 65535


@pytest.mark.parametrize("kernel", (3, 1))
def test_workspace_that_is_too_small(host: CudaLibrary, kernel: int) -> None:
    layer = Layer(**(GOOD | {"kernel": kernel}))
    memory = torch.full((4096,), torch.nan)
    for function, which in (("forward_stats", Pass.FORWARD_STATS), ("grad_weight", Pass.GRAD_WEIGHT)):
        need = host.workspace_bytes(layer, which)
        assert code(host, function, layer, [memory.data_ptr()] * (max(POINTERS[function]) + 1), need - 1) == -6
    assert memory.isnan().all()


def test_codes_in_words(host: CudaLibrary) -> None:
    words = ctypes.CDLL(str(host.path)).mednext_cuda_error
    words.restype = ctypes.c_char_p
    texts = [words(code) for code in range(-10, 1)]
    assert all(texts) and len(set(texts)) == 11
    assert words(12345)
