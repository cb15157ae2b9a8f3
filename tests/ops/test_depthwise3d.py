"""The depthwise operators: values, derivatives, layouts, tracing and export, through PyTorch's own kernels."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mednext_edge.errors import UsageError
from mednext_edge.fusion.depthwise import DepthwiseConv, use_depthwise
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.ops import depthwise3d as ops
from mednext_edge.ops.depthwise3d import depthwise3d

KERNELS = (1, 3, 5, 7)
SMALL = ((3, 4, 5), (4, 5))
"""A volume and an image."""
SIZES = {
    "one voxel": (1, 1, 1),
    "one slice": (1, 6, 5),
    "one column": (4, 1, 1),
    "odd": (3, 5, 7),
    "smaller than the kernel": (2, 3, 2),
    "even": (4, 6, 8),
    "one pixel": (1, 1),
    "odd image": (5, 7),
    "image of one row": (1, 6),
    "even image": (6, 8),
}
FORMS = {"stride 1": (1, False), "stride 2": (2, False), "transposed": (2, True), "transposed, stride 1": (1, True)}
LAYOUTS = {"contiguous": False, "channels-last": True}

every_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
every_form = pytest.mark.parametrize(("stride", "transposed"), FORMS.values(), ids=FORMS)
every_layout = pytest.mark.parametrize("last", LAYOUTS.values(), ids=LAYOUTS)
every_rank = pytest.mark.parametrize("small", SMALL, ids=["3-D", "2-D"])
every_kernel = pytest.mark.parametrize("kernel", KERNELS)


def draw(
    size: tuple[int, ...],
    kernel: int,
    batch: int = 2,
    channels: int = 3,
    last: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and bias in float64; the input channels-last or contiguous."""
    generator = torch.Generator().manual_seed(kernel)
    x = torch.randn((batch, channels, *size), generator=generator, dtype=torch.float64)
    weight = torch.randn((channels, 1, *(kernel,) * len(size)), generator=generator, dtype=torch.float64)
    bias = torch.randn(channels, generator=generator, dtype=torch.float64)
    return x.contiguous(memory_format=form_of(x, last)), weight, bias


def form_of(x: Tensor, last: bool) -> torch.memory_format:
    """Channels-last or contiguous."""
    return (torch.channels_last if x.dim() == 4 else torch.channels_last_3d) if last else torch.contiguous_format


def torchs(x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int, transposed: bool) -> Tensor:
    """What PyTorch computes."""
    forms = {4: (F.conv2d, F.conv_transpose2d), 5: (F.conv3d, F.conv_transpose3d)}
    convolve = forms[x.dim()][transposed]
    return convolve(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2, groups=x.shape[1])


@every_size
@every_form
@every_kernel
def test_forward_and_gradients(kernel: int, stride: int, transposed: bool, size: tuple[int, ...]) -> None:
    results = []
    for form in (depthwise3d, torchs):
        inputs = [t.requires_grad_() for t in draw(size, kernel)]
        y = form(*inputs, stride=stride, transposed=transposed)
        slope = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
        (y.square() * slope).sum().backward()  # type: ignore[no-untyped-call]
        results.append((y.detach(), *(t.grad for t in inputs)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
@every_form
@every_rank
def test_only_the_gradients_that_are_wanted(
    small: tuple[int, ...], stride: int, transposed: bool, wanted: tuple[int, ...]
) -> None:
    inputs = draw(small, 3)
    for i in wanted:
        inputs[i].requires_grad_()
    depthwise3d(*inputs, stride=stride, transposed=transposed).sum().backward()  # type: ignore[no-untyped-call]
    assert [i for i, t in enumerate(inputs) if t.grad is not None] == list(wanted)


@every_form
@pytest.mark.parametrize("size", [(2, 3, 1), (2, 3)])
def test_derivatives_are_those_of_finite_differences(size: tuple[int, ...], stride: int, transposed: bool) -> None:
    x, weight, bias = (t.requires_grad_() for t in draw(size, 3, batch=1, channels=2))

    def form(*inputs: Tensor) -> Tensor:
        return depthwise3d(*inputs, stride=stride, transposed=transposed)

    assert torch.autograd.gradcheck(form, (x, weight, bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(form, (x, weight, bias), fast_mode=True)


@every_layout
@every_form
@every_rank
def test_the_result_lies_as_the_input_does(small: tuple[int, ...], stride: int, transposed: bool, last: bool) -> None:
    x, weight, bias = draw(small, 3, last=last)
    for given in (x, x[..., 1:]):
        y = depthwise3d(given, weight, bias, stride=stride, transposed=transposed)
        assert y.is_contiguous(memory_format=form_of(y, last))
        expected = torchs(given.contiguous(), weight, bias, stride=stride, transposed=transposed)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@every_form
@every_rank
def test_types_are_kept(small: tuple[int, ...], stride: int, transposed: bool, dtype: torch.dtype) -> None:
    inputs = [t.to(dtype).requires_grad_() for t in draw(small, 3)]
    y = depthwise3d(*inputs, stride=stride, transposed=transposed)
    y.sum().backward()  # type: ignore[no-untyped-call]
    assert y.dtype == dtype
    assert [t.grad.dtype for t in inputs if t.grad is not None] == [dtype] * 3
    exact = torchs(*(t.double() for t in inputs), stride=stride, transposed=transposed)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), exact, rtol=4 * eps, atol=40 * eps)


@every_form
@every_rank
def test_empty_batch(small: tuple[int, ...], stride: int, transposed: bool) -> None:
    x, weight, bias = draw(small, 3, batch=0)
    found = depthwise3d(x, weight, bias, stride=stride, transposed=transposed)
    assert found.shape == torchs(x, weight, bias, stride=stride, transposed=transposed).shape


@every_layout
@pytest.mark.parametrize("stride", ops.STRIDES)
@every_rank
def test_operators_keep_their_promises(small: tuple[int, ...], stride: int, last: bool) -> None:
    """PyTorch's own checks: schema, fake tensors with strides, autograd registration, tracing with open sizes."""
    x, weight, bias = (t.requires_grad_() for t in draw(small, 3, last=last))
    y = torch.randn_like(ops.convolution(x, weight, None, stride)).requires_grad_()
    torch.library.opcheck(ops.convolution, (x, weight, bias, stride))
    torch.library.opcheck(ops.convolution, (x, weight, None, stride))
    torch.library.opcheck(ops.adjoint, (y, weight, None, [*small], stride))
    torch.library.opcheck(ops.adjoint, (y, weight, bias, [*small], stride))
    torch.library.opcheck(ops.weight_gradient, (x, y, 3, stride))


@every_form
@every_rank
def test_compiled_in_one_graph(small: tuple[int, ...], stride: int, transposed: bool) -> None:
    results = []
    for compiled in (False, True):
        inputs = [t.requires_grad_() for t in draw(small, 3, last=True)]

        def form(*inputs: Tensor) -> Tensor:
            return depthwise3d(*inputs, stride=stride, transposed=transposed).square()

        run = torch.compile(form, backend="aot_eager", fullgraph=True) if compiled else form
        y = run(*inputs)
        y.sum().backward()  # type: ignore[no-untyped-call]
        results.append((y.detach(), *(t.grad for t in inputs)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@every_rank
def test_autocast_casts_and_gradients_return_in_the_type_of_the_parameters(small: tuple[int, ...]) -> None:
    x, weight, bias = (t.float().requires_grad_() for t in draw(small, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = depthwise3d(x, weight, bias)
        assert depthwise3d(x.double(), weight.double()).dtype == torch.float64
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()  # type: ignore[no-untyped-call]
    assert {t.grad.dtype for t in (x, weight, bias) if t.grad is not None} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stride": 3}, r"stride 3.*1 or 2"),
        ({"x": torch.zeros(3, 4, 4, 4)}, r"\(3, 4, 4, 4\).*\[N, C, D, H, W\]"),
        ({"x": torch.zeros(1, 3, 4, 4)}, r"\(1, 3, 4, 4\).*or \[N, C, H, W\] and \[C, 1, k, k\]"),
        ({"x": torch.zeros(1, 3, 4)}, r"\(1, 3, 4\).*odd k"),
        ({"weight": torch.zeros(3, 1, 3, 3)}, r"\(3, 1, 3, 3\).*odd k"),
        ({"weight": torch.zeros(3, 1, 3, 3, 5)}, r"\(3, 1, 3, 3, 5\).*odd k"),
        ({"weight": torch.zeros(3, 1, 2, 2, 2)}, "odd k"),
        ({"weight": torch.zeros(4, 1, 3, 3, 3)}, r"\(4, 1, 3, 3, 3\)"),
        ({"weight": torch.zeros(())}, r"weight \(\)"),
        ({"bias": torch.zeros(4)}, r"bias \(4,\).*\(3,\)"),
        ({"weight": torch.zeros(3, 1, 3, 3, 3).half()}, "float16, torch.float32.*one floating-point type"),
        ({"x": torch.zeros(1, 3, 4, 4, 4).int()}, "int32"),
    ],
)
def test_bad_input(change: dict[str, Any], words: str) -> None:
    given = {"x": torch.zeros(1, 3, 4, 4, 4), "weight": torch.zeros(3, 1, 3, 3, 3), "bias": torch.zeros(3), **change}
    with pytest.raises(UsageError, match=words):
        depthwise3d(given.pop("x"), given.pop("weight"), given.pop("bias"), **given)


def replaced(model: LoadedModel) -> LoadedModel:
    """The model with our operators in every block."""
    net = copy.deepcopy(model.net)
    assert use_depthwise(net) == 9
    return LoadedModel(net, model.task, model.source)


def test_a_network_keeps_its_keys_and_trains_as_before(tiny_model: LoadedModel) -> None:
    ours, theirs = replaced(tiny_model).net.train(), copy.deepcopy(tiny_model.net).train()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    kinds = [module.extra_repr() for module in ours.modules() if isinstance(module, DepthwiseConv)]
    assert kinds[1] == "4, kernel=3, stride=2"
    assert kinds[-2] == "8, kernel=3, stride=2, transposed"
    x = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    for net in (ours, theirs):
        net(x).square().sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        if b.grad is not None and b.grad.abs().max() > 1e-3:  # a bias in front of a norm has no gradient but noise
            assert a.grad is not None
            assert float((a.grad - b.grad).abs().max() / b.grad.abs().max()) < 1e-4


def test_exported_program_holds_the_operators_until_it_is_decomposed(tiny_model: LoadedModel) -> None:
    x = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    net = replaced(tiny_model).net
    program = torch.export.export(net, (x,))
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("mednext.depthwise3d.default") == 7
    assert targets.count("mednext.depthwise3d_adjoint.default") == 2
    torch.testing.assert_close(program.module()(x), net(x))
    operators = [torch.ops.mednext.depthwise3d.default, torch.ops.mednext.depthwise3d_adjoint.default]
    plain = program.run_decompositions(torch._decomp.get_decompositions(operators))
    assert not [node for node in plain.graph.nodes if "mednext" in str(node.target)]
    torch.testing.assert_close(plain.module()(x), net(x))


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed size", "open size"])
def test_onnx_holds_standard_convolutions(tiny_model: LoadedModel, dynamic: bool) -> None:
    import onnxruntime

    from mednext_edge.export.graph import to_onnx

    graphs = [to_onnx(model, (8, 8, 8), dynamic=dynamic) for model in (replaced(tiny_model), tiny_model)]
    ours, theirs = (
        [(n.name, n.op_type, list(n.attribute)) for n in graph.graph.node if n.op_type in ("Conv", "ConvTranspose")]
        for graph in graphs
    )
    assert [(name, kind) for name, kind, _ in ours] == [(name, kind) for name, kind, _ in theirs]
    assert {n.domain for n in graphs[0].graph.node} == {""}
    assert not graphs[0].functions
    x = np.random.default_rng(0).standard_normal((1, 1, 16, 8, 8) if dynamic else (1, 1, 8, 8, 8), np.float32)
    found = onnxruntime.InferenceSession(graphs[0].SerializeToString()).run(None, {"image": x})[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, tiny_model.net(torch.from_numpy(x)), rtol=1e-3, atol=1e-4)
