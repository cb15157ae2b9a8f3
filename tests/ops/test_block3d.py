"""The operator of a whole block: values, derivatives, tracing and export, through PyTorch's own kernels."""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mednext_edge.errors import UsageError
from mednext_edge.fusion.cuda_block import use_cuda_block
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.ops import block3d as ops
from mednext_edge.ops import feed_forward
from mednext_edge.ops.block3d import block3d

VECTORS = ("bias", "gamma", "beta", "b1", "b2")


@dataclass(frozen=True)
class Form:
    """A kind of block: how its convolution goes, and how many zeros stand in front."""

    stride: int = 1
    transposed: bool = False
    front: int = 0

    def size(self, given: tuple[int, ...]) -> list[int]:
        return [2 * n - 1 if self.transposed else (n - 1) // self.stride + 1 for n in given]

    @property
    def options(self) -> dict[str, Any]:
        return {"stride": self.stride, "transposed": self.transposed, "front": self.front}


FORMS = {"plain": Form(), "down": Form(2), "up": Form(2, True, 1), "plain, zeros in front": Form(front=1)}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def draw(
    form: Form,
    size: tuple[int, ...] = (3, 4, 5),
    *,
    kernel: int = 3,
    batch: int = 2,
    channels: int = 3,
    hidden: int = 7,
    out: int = 4,
    without: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor | None]:
    """Random arguments of `block3d`, by name and in order; those in `without` are None."""
    generator = torch.Generator().manual_seed(kernel + channels)
    shapes: dict[str, tuple[int, ...]] = {
        "x": (batch, channels, *size),
        "weight": (channels, 1, kernel, kernel, kernel),
        "bias": (channels,),
        "gamma": (channels,),
        "beta": (channels,),
        "w1": (hidden, channels, 1, 1, 1),
        "b1": (hidden,),
        "w2": (out, hidden, 1, 1, 1),
        "b2": (out,),
        "residual": (batch, out, *(n + form.front for n in form.size(size))),
    }
    scale = {"w1": channels**-0.5, "w2": hidden**-0.5, "weight": kernel**-1.5}
    given = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) * scale.get(name, 1.0)
        for name, shape in shapes.items()
    }
    return {name: None if name in without else tensor.to(dtype) for name, tensor in given.items()}


def torchs(form: Form, *given: Tensor | None, eps: float = 1e-5) -> Tensor:
    """What PyTorch computes, as the network is written."""
    x, weight, bias, gamma, beta, w1, b1, w2, b2, residual = given
    assert x is not None and weight is not None and w1 is not None and w2 is not None
    convolve = F.conv_transpose3d if form.transposed else F.conv3d
    a = convolve(x, weight, bias, stride=form.stride, padding=weight.shape[-1] // 2, groups=x.shape[1])
    if gamma is None and beta is not None:  # torch's group norm cannot differentiate a shift without a scale
        gamma = torch.ones_like(beta)
    y = F.conv3d(F.gelu(F.conv3d(F.group_norm(a, x.shape[1], gamma, beta, eps), w1, b1)), w2, b2)
    y = F.pad(y, (form.front, 0) * 3)
    return y if residual is None else y + residual


def ours(form: Form, *given: Any, eps: float = 1e-5) -> Tensor:
    return block3d(*given, eps=eps, **form.options)


def derivatives(compute: Any, form: Form, given: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """The output, and the gradients of all that is given."""
    leaves = {name: None if t is None else t.detach().clone().requires_grad_() for name, t in given.items()}
    y = compute(form, *leaves.values())
    slope = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    y.backward(slope)
    return {"y": y.detach()} | {name: t.grad for name, t in leaves.items() if t is not None and t.grad is not None}


@pytest.mark.parametrize("without", [(), ("residual",), VECTORS, ("gamma",), ("beta", "b1")], ids=str)
@every_form
def test_forward_and_gradients(form: Form, without: tuple[str, ...]) -> None:
    given = draw(form, without=without)
    found, expected = (derivatives(compute, form, given) for compute in (ours, torchs))
    assert list(found) == list(expected)
    assert len(found) == 11 - len(without)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kernel", [1, 5, 7])
@pytest.mark.parametrize("size", [(1, 6, 5), (4, 1, 1), (2, 3, 2)])
def test_any_kernel_and_size(kernel: int, size: tuple[int, ...]) -> None:
    for form in FORMS.values():
        given = draw(form, size, kernel=kernel)
        found, expected = (derivatives(compute, form, given) for compute in (ours, torchs))
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 100, 7 * 2 * 11])
@every_form
def test_some_voxels_at_a_time(form: Form, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few voxels have a hidden tensor at once, the gradients are the same."""
    given = draw(form)
    expected = derivatives(ours, form, given)
    monkeypatch.setattr(feed_forward, "CHUNK", chunk)
    for name, tensor in derivatives(ours, form, given).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-11, atol=1e-12)


@every_form
def test_derivatives_are_those_of_finite_differences(form: Form) -> None:
    given = draw(form, (2, 3, 1), batch=1, channels=2, hidden=3, out=2)
    leaves = tuple(t.requires_grad_() for t in given.values() if t is not None)
    assert torch.autograd.gradcheck(lambda *t: ours(form, *t), leaves, fast_mode=True)


@every_form
def test_the_second_half_alone(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the statistics that the operator gives, matrix products give what it gives: what float32 takes on CUDA."""
    monkeypatch.setattr(feed_forward, "CHUNK", 100)
    for without in ((), VECTORS, ("residual", "beta")):
        given = draw(form, without=without)
        x, weight, bias, *rest, residual = given.values()
        gamma, beta, *layers = rest
        y, a, mean, moment = ops.block(x, weight, bias, gamma, beta, 1e-5, *layers, residual, *form.options.values())
        found = feed_forward.feed_forward(a, mean, moment, gamma, beta, 1e-5, *layers, residual, form.front)  # type: ignore[arg-type]
        assert found.is_contiguous(memory_format=torch.channels_last_3d)
        torch.testing.assert_close(found, y, rtol=1e-12, atol=1e-12)
        exact = a.flatten(2)
        torch.testing.assert_close(mean, exact.mean(2))
        torch.testing.assert_close(moment, exact.var(2, correction=0) * exact.shape[2])


@pytest.mark.parametrize(
    "wanted", [("x",), ("weight",), ("bias",), ("beta", "b2"), ("residual",), ("w1", "w2")], ids=str
)
@pytest.mark.parametrize("form", [FORMS["down"], FORMS["up"]], ids=["down", "up"])
def test_only_the_gradients_that_are_wanted(form: Form, wanted: tuple[str, ...]) -> None:
    given = draw(form)
    for name in wanted:
        tensor = given[name]
        assert tensor is not None
        tensor.requires_grad_()
    ours(form, *given.values()).sum().backward()  # type: ignore[no-untyped-call]
    assert tuple(name for name, t in given.items() if t is not None and t.grad is not None) == wanted


def test_statistics_have_no_gradient() -> None:
    given = [t.requires_grad_() for t in draw(Form()).values() if t is not None]
    y, *others = ops.block(*given[:5], 1e-5, *given[5:], 1, False, 0)
    assert y.requires_grad
    assert not any(t.requires_grad for t in others)


@every_form
def test_results_are_channels_last(form: Form) -> None:
    given = draw(form)
    x = given.pop("x")
    assert x is not None
    expected = torchs(form, x, *given.values())
    for view in (x, x.contiguous(memory_format=torch.channels_last_3d), torch.cat([x, x], -1)[..., :5]):
        y = ours(form, view, *given.values())
        assert y.is_contiguous(memory_format=torch.channels_last_3d)
        torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-12)


DRAWS = range(8, 14)


def errors(compute: Any, form: Form, dtype: torch.dtype, vectors: torch.dtype) -> dict[str, float]:
    """Root mean square of what a form in `dtype` is off float64, over some draws; results have the types given."""
    squares: dict[str, list[Tensor]] = {}
    for channels in DRAWS:
        drawn = draw(form, channels=channels, hidden=16, out=8, dtype=dtype)
        given = {n: t.to(vectors) if n in VECTORS and t is not None else t for n, t in drawn.items()}
        exact = derivatives(torchs, form, {n: t if t is None else t.double() for n, t in given.items()})
        for name, tensor in derivatives(compute, form, given).items():
            like = given["x" if name == "y" else name]
            assert like is not None
            assert tensor.dtype == like.dtype
            squares.setdefault(name, []).append((tensor.double() - exact[name]).square().flatten())
    return {name: float(torch.cat(parts).mean().sqrt()) for name, parts in squares.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@every_form
def test_errors_are_at_most_twice_those_of_torch(form: Form, dtype: torch.dtype) -> None:
    """Also where vectors are wider than the images, which torch does not take."""
    theirs = errors(torchs, form, dtype, dtype)
    for vectors in {dtype, torch.float32}:
        for name, error in errors(ours, form, dtype, vectors).items():
            assert error <= 2 * theirs[name], name


@every_form
def test_one_voxel_and_no_sample(form: Form) -> None:
    """The norm of a single voxel is its shift; of no sample there is nothing, and gradients of zero."""
    single = draw(form, (1, 1, 1))
    torch.testing.assert_close(ours(form, *single.values()), torchs(form, *single.values()))
    found = derivatives(ours, form, draw(form, batch=0))
    assert found["y"].shape == (0, 4, *(n + form.front for n in form.size((3, 4, 5))))
    assert all(found[name].abs().max() == 0 for name in ("weight", "w1", "w2", "b2", "gamma"))


@pytest.mark.parametrize("form", [FORMS["plain"], FORMS["up"]], ids=["plain", "up"])
def test_operators_keep_their_promises(form: Form) -> None:
    """PyTorch's own checks: schema, fake tensors with strides, autograd registration, tracing with open sizes."""
    given = [t.requires_grad_() for t in draw(form, dtype=torch.float32).values() if t is not None]
    torch.library.opcheck(ops.block, (*given[:5], 1e-5, *given[5:], *form.options.values()))
    with torch.no_grad():
        y, a, mean, moment = ops.block(*given[:5], 1e-5, *given[5:], *form.options.values())
        arguments = (torch.randn_like(y), a, mean, moment, *given[3:5], 1e-5, *given[5:8], form.front)
        checks = ("test_schema", "test_faketensor")
        torch.library.opcheck(ops.block_gradients, arguments, test_utils=checks)


def test_without_what_may_be_absent_they_keep_them_too() -> None:
    form = FORMS["down"]
    given = draw(form, dtype=torch.float16, without=(*VECTORS, "residual")).values()
    leaves = [None if t is None else t.requires_grad_() for t in given]
    torch.library.opcheck(ops.block, (*leaves[:5], 1e-5, *leaves[5:], *form.options.values()))


@every_form
def test_compiled_in_one_graph(form: Form) -> None:
    given = draw(form)
    compiled = torch.compile(lambda *t: ours(form, *t).square(), backend="aot_eager", fullgraph=True)
    found = derivatives(lambda form, *t: compiled(*t), form, given)
    expected = derivatives(lambda form, *t: ours(form, *t).square(), form, given)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-12)


def test_autocast_casts_and_gradients_return_in_the_type_of_the_parameters() -> None:
    given = draw(Form(), dtype=torch.float32, channels=4)
    leaves = [t.requires_grad_() for t in given.values() if t is not None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ours(Form(), *leaves)
        y.float().sum().backward()
        assert ours(Form(), *(t.double() for t in leaves)).dtype == torch.float64
    assert y.dtype == torch.bfloat16
    assert {t.grad.dtype for t in leaves if t.grad is not None} == {torch.float32}
    assert len([t for t in leaves if t.grad is not None]) == 10


def test_eps_is_of_the_norm() -> None:
    given = draw(Form())
    for eps in (1e-3, 1.0):
        found, expected = (compute(Form(), *given.values(), eps=eps) for compute in (ours, torchs))
        torch.testing.assert_close(found, expected)


ZEROS = {"weight": torch.zeros(3, 1, 2, 2, 2), "w1": torch.zeros(7, 3), "w2": torch.zeros(4, 3, 1, 1, 1)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stride": 3}, "found stride 3 and 0 zeros"),
        ({"transposed": True}, "stride 1, transposed"),
        ({"front": 2}, "2 zeros in front"),
        ({"x": torch.zeros(3, 4, 4, 4)}, r"\(3, 4, 4, 4\).*\[N, C, D, H, W\]"),
        ({"weight": ZEROS["weight"]}, "odd k"),
        ({"weight": torch.zeros(())}, r"weight \(\)"),
        ({"w1": ZEROS["w1"]}, r"found \(7, 3\) and .*\[hidden, 3, 1, 1, 1\]"),
        ({"w2": ZEROS["w2"]}, r"and \(4, 3, 1, 1, 1\) to expand"),
        ({"w2": torch.zeros(())}, r"and \(\) to expand"),
        ({"gamma": torch.zeros(4)}, r"\(4,\); expected \(3,\)"),
        ({"b1": torch.zeros(3)}, r"\(3,\); expected \(7,\)"),
        ({"b2": torch.zeros(4, 1)}, r"\(4, 1\); expected \(4,\)"),
        ({"residual": torch.zeros(2, 4, 4, 5, 6)}, r"residual \(2, 4, 4, 5, 6\); expected \(2, 4, 3, 4, 5\)"),
        ({"w1": torch.zeros(7, 3, 1, 1, 1).half()}, r"float16, torch.float32.*one floating-point type"),
    ],
)
def test_bad_input(change: dict[str, Any], words: str) -> None:
    given = {**draw(Form(), dtype=torch.float32), **change}
    with pytest.raises(UsageError, match=words):
        block3d(**given)  # type: ignore[arg-type]


def replaced(model: LoadedModel) -> LoadedModel:
    """The model with our operator in every block."""
    net = copy.deepcopy(model.net)
    assert use_cuda_block(net) == 9
    return LoadedModel(net, model.task, model.source)


def test_exported_program_holds_the_operator_until_it_is_decomposed(tiny_model: LoadedModel) -> None:
    x = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    net: nn.Module = replaced(tiny_model).net
    program = torch.export.export(net, (x,))
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("mednext.block3d.default") == 9
    torch.testing.assert_close(program.module()(x), net(x))
    plain = program.run_decompositions(torch._decomp.get_decompositions([torch.ops.mednext.block3d.default]))
    assert not [node for node in plain.graph.nodes if "mednext" in str(node.target)]
    torch.testing.assert_close(plain.module()(x), net(x))


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed size", "open size"])
def test_onnx_holds_standard_operators(tiny_model: LoadedModel, dynamic: bool) -> None:
    import onnxruntime

    from mednext_edge.export.graph import to_onnx

    graph = to_onnx(replaced(tiny_model), (8, 8, 8), dynamic=dynamic)
    assert {n.domain for n in graph.graph.node} == {""}
    assert not graph.functions
    kinds = Counter(n.op_type for n in graph.graph.node)
    assert (kinds["InstanceNormalization"], kinds["Gelu"]) == (9, 9)
    # Of nothing but the network: the statistics that training needs are not in it.
    assert set(kinds) - {"Conv", "ConvTranspose", "InstanceNormalization", "Gelu", "Add", "Pad"} <= (
        {"Shape", "Gather", "Concat", "Reshape", "Constant"} if dynamic else set()
    )
    x = np.random.default_rng(0).standard_normal((1, 1, 16, 8, 8) if dynamic else (1, 1, 8, 8, 8), np.float32)
    found = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"image": x})[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, tiny_model.net(torch.from_numpy(x)), rtol=1e-3, atol=1e-4)


def test_what_is_kept_for_the_way_back_has_no_hidden_tensor() -> None:
    """x, the convolution, and what does not grow with the image."""
    given = draw(Form(), channels=2, hidden=64, out=2, batch=1, size=(4, 4, 4))
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    leaves = [t.requires_grad_() for t in given.values() if t is not None]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        ours(Form(), *leaves)
    images = [t for t in kept if t.dim() == 5 and t.shape[2:] == (4, 4, 4)]
    assert [math.prod(t.shape) for t in images] == [128, 128]


@every_form
def test_the_hidden_tensor_is_never_whole(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    gelu = F.gelu

    def record(x: Tensor) -> Tensor:
        seen.append(x.numel())
        return gelu(x)

    given = draw(form, (4, 6, 5), hidden=10)
    x, weight, bias, gamma, beta, w1, b1, w2, b2, residual = given.values()
    y, a, mean, moment = ops.block(x, weight, bias, gamma, beta, 1e-5, w1, b1, w2, b2, residual, *form.options.values())
    monkeypatch.setattr(F, "gelu", record)
    monkeypatch.setattr(feed_forward, "CHUNK", 200)
    feed_forward.feed_forward(a, mean, moment, gamma, beta, 1e-5, w1, b1, w2, b2, residual, form.front)  # type: ignore[arg-type]
    feed_forward.gradients(torch.ones_like(y), a, mean, moment, gamma, beta, 1e-5, w1, b1, w2, form.front)  # type: ignore[arg-type]
    assert sum(seen) == 2 * 2 * 10 * math.prod(a.shape[2:])
    assert max(seen) == 200
