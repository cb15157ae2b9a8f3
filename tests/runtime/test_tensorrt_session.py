"""TensorRT as an engine, on a fake GPU that computes true numbers: the same answers as the same graph elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mednext_edge.bundle import BundleWriter, Engine, InputSpec, Manifest, OutputSpec, Plan
from mednext_edge.errors import DataError, ExportError, IntegrityError, TargetUnavailableError, UsageError
from mednext_edge.export import graph as exporter
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.nvidia.providers import PROVIDERS
from mednext_edge.nvidia.recipe import RECIPE, BuildRecipe, HardwareCompatibility
from mednext_edge.runtime.engines import open as open_session
from mednext_edge.runtime.onnx_session import OnnxSession
from mednext_edge.runtime.plan_choice import read_recipe
from mednext_edge.runtime.session import Array
from mednext_edge.runtime.tensorrt_session import TensorRtSession
from tests.nvidia import fake_runtime as fake
from tests.nvidia.fake_runtime import Faults, Gpu

LOW, USUAL, HIGH = (8, 8, 8), (16, 16, 16), (24, 24, 24)
Opened = Callable[..., TensorRtSession]


@pytest.fixture(scope="module")
def graphs(tiny_model: LoadedModel) -> dict[str, bytes]:
    """The network as ONNX, of one patch and of open size."""
    return {
        "static": exporter.to_onnx(tiny_model, USUAL).SerializeToString(),
        "dynamic": exporter.to_onnx(tiny_model, USUAL, dynamic=True).SerializeToString(),
    }


def plan(graphs: dict[str, bytes], kind: str = "static", **stated: Any) -> bytes:
    if kind == "static":
        return fake.make_plan(graphs[kind], min=(1, 1, *USUAL), **stated)
    return fake.make_plan(graphs[kind], min=(1, 1, *LOW), opt=(1, 1, *USUAL), max=(1, 1, *HIGH), **stated)


@pytest.fixture(params=["cuda-python", "torch"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gpu:
    """A GPU whose memory comes from one package or the other; every handle is given back at the end."""
    monkeypatch.setenv("MEDNEXT_CACHE", str(tmp_path / "cache"))
    return machine(monkeypatch, kind=request.param)


def machine(monkeypatch: pytest.MonkeyPatch, kind: str = "cuda-python", **properties: Any) -> Gpu:
    found = Gpu(**properties).install(monkeypatch)
    if kind == "torch":
        fake.install_torch_cuda(monkeypatch, found)
    else:
        fake.install_cuda_python(monkeypatch, found)
    return found


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def opened(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    gpu: Gpu,
    graphs: dict[str, bytes],
    tiny_model: LoadedModel,
    tmp_path: Path,
) -> Opened:
    """Opens a plan of the tiny model with either provider."""
    provider = PROVIDERS[request.param]
    fake.install_tensorrt(monkeypatch, gpu, rtx=provider.cross)

    def open_plan(kind: str = "static", **options: Any) -> TensorRtSession:
        (tmp_path / "model.plan").write_bytes(plan(graphs, kind))
        return TensorRtSession(
            tmp_path / "model.plan", tiny_model.task, "fp16", provider=provider, provider_version="10.3.0", **options
        )

    return open_plan


def images(*size: int, batch: int = 1, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(batch, 1, *size)).astype(np.float32)


def expected(graphs: dict[str, bytes], model: LoadedModel, x: Array) -> Array:
    with OnnxSession(graphs["dynamic"], model.task, "fp32", threads=1) as session:
        return session.run(x)


def test_same_answers_as_the_graph(opened: Opened, graphs: dict[str, bytes], tiny_model: LoadedModel) -> None:
    x = images(*USUAL, batch=4)
    with opened() as session:
        assert session.patch == USUAL
        found = session.run(x)
        again = session.run(x[::-1])
        assert session.provider in ("tensorrt 10.3.0", "tensorrt-rtx 10.3.0")
    answer = expected(graphs, tiny_model, x)
    np.testing.assert_array_equal(found.argmax(1), answer.argmax(1))
    np.testing.assert_allclose(found, answer, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(again, found[::-1])


def test_nothing_is_left_on_the_device(opened: Opened, gpu: Gpu) -> None:
    before = dict(gpu.streams)
    session = opened()
    for seed in range(3):
        session.run(images(*USUAL, seed=seed))
    session.close()
    session.close()
    assert not gpu.allocated
    assert not gpu.pinned
    assert not gpu.graphs
    if not gpu.shared_with_torch:
        assert gpu.streams == before


def test_answers_are_the_callers_own(opened: Opened) -> None:
    with opened() as session:
        first = session.run(images(*USUAL))
        before = first.copy()
        session.run(images(*USUAL, seed=1))
    np.testing.assert_array_equal(first, before)


def test_repeated_calls_replay_a_graph(
    opened: Opened, gpu: Gpu, graphs: dict[str, bytes], tiny_model: LoadedModel
) -> None:
    """TensorRT's is recorded here at the second call; TensorRT for RTX records its own."""
    with opened() as session:
        for seed in range(4):
            x = images(*USUAL, seed=seed)
            np.testing.assert_allclose(session.run(x), expected(graphs, tiny_model, x), rtol=1e-4, atol=1e-5)
        rtx = session.provider.startswith("tensorrt-rtx")
        assert gpu.launches == (0 if rtx else 3)


def test_any_patch_of_the_profile(opened: Opened, gpu: Gpu, graphs: dict[str, bytes], tiny_model: LoadedModel) -> None:
    with opened("dynamic") as session:
        assert session.patch is None
        assert (session.smallest, session.largest) == (LOW, HIGH)
        for size in ((8, 16, 24), (8, 16, 24), (8, 16, 24), (24, 24, 24), (24, 24, 24), (8, 8, 8)):
            x = images(*size)
            np.testing.assert_allclose(session.run(x), expected(graphs, tiny_model, x), rtol=1e-4, atol=1e-5)
    assert not gpu.graphs


def test_patch_outside_the_profile(opened: Opened) -> None:
    words = r"found a patch of \(8, 8, 28\); this plan was built for \(8, 8, 8\) to \(24, 24, 24\)"
    with opened("dynamic") as session:
        with pytest.raises(DataError, match=words):
            session.run(images(8, 8, 28))
        assert session.run(images(8, 8, 8)).shape == (1, 3, 8, 8, 8)
    with pytest.raises(UsageError, match=words):
        opened("dynamic", patch=(8, 8, 28))
    with pytest.raises(UsageError, match=r"built for \(16, 16, 16\) alone. Export with --min-patch"):
        opened(patch=(8, 8, 8))
    with pytest.raises(UsageError, match=r"found a patch of \(16, 16\)"):
        opened("dynamic", patch=(16, 16))


def test_a_session_of_one_patch(opened: Opened) -> None:
    with opened("dynamic", patch=(8, 8, 16)) as session:
        assert session.patch == (8, 8, 16)
        with pytest.raises(DataError, match="this engine was compiled for"):
            session.run(images(8, 8, 8))


def test_no_images(opened: Opened) -> None:
    with opened() as session:
        assert session.run(images(*USUAL, batch=0)).shape == (0, 3, *USUAL)


def test_layers(opened: Opened) -> None:
    with opened() as session:
        layers = session.layers()
    assert len(layers) > 10
    assert all(layer.name for layer in layers)


# The way there: one provider and one memory are enough -------------------------------------------------------------


def opening(file: Path, model: LoadedModel, **options: Any) -> TensorRtSession:
    return TensorRtSession(
        file, model.task, "fp16", **{"provider": PROVIDERS["tensorrt"], "provider_version": "10.3.0", **options}
    )


@pytest.fixture
def file(graphs: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plan of one patch."""
    monkeypatch.setenv("MEDNEXT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.plan").write_bytes(plan(graphs))
    return tmp_path / "model.plan"


@pytest.mark.parametrize("kind", ["cuda-python", "torch"])
def test_a_plan_that_cannot_be_recorded_says_so_and_runs(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    file: Path,
    graphs: dict[str, bytes],
    tiny_model: LoadedModel,
    kind: str,
) -> None:
    gpu = machine(monkeypatch, kind, recordable=False)
    fake.install_tensorrt(monkeypatch, gpu)
    x = images(*USUAL)
    with caplog.at_level(logging.WARNING), opening(file, tiny_model) as session:
        for _ in range(3):
            np.testing.assert_allclose(session.run(x), expected(graphs, tiny_model, x), rtol=1e-4, atol=1e-5)
    assert [r.getMessage().split(":")[0] for r in caplog.records] == [
        "this plan cannot be recorded as a CUDA graph and runs without one"
    ]


@pytest.mark.parametrize(
    ("built", "here", "compatible", "taken"),
    [
        ("10.3.0", "10.3.0", False, True),
        ("10.3.0", "10.3.0.post1", False, True),
        ("10.3.0", "10.4.0", False, False),
        ("10.3.0", "10.4.0", True, True),
        ("10.4.0", "10.3.0", True, False),
        ("10.3.0", "11.4.0", True, False),
    ],
)
def test_versions(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    graphs: dict[str, bytes],
    tiny_model: LoadedModel,
    built: str,
    here: str,
    compatible: bool,
    taken: bool,
) -> None:
    gpu = machine(monkeypatch)
    module = fake.install_tensorrt(monkeypatch, gpu, version=here)
    stated = here if not compatible and taken else built
    (tmp_path / "model.plan").write_bytes(plan(graphs, version=stated, version_compatible=compatible))
    options = {"provider_version": built, "version_compatible": compatible}
    if taken:
        opening(tmp_path / "model.plan", tiny_model, **options).close()
        return
    with pytest.raises(TargetUnavailableError, match=rf"built by TensorRT {built}, .* has {here}.*mednext-edge build"):
        opening(tmp_path / "model.plan", tiny_model, **options)
    assert module.deserialized == 0


def test_rtx_plans_are_of_one_version(monkeypatch: pytest.MonkeyPatch, file: Path, tiny_model: LoadedModel) -> None:
    """NVIDIA promises nothing between releases of TensorRT for RTX, so no flag makes a plan compatible."""
    fake.install_tensorrt(monkeypatch, machine(monkeypatch), version="1.8.0", rtx=True)
    with pytest.raises(TargetUnavailableError, match=r"TensorRT for RTX 1\.7\.1"):
        opening(
            file,
            tiny_model,
            provider=PROVIDERS["tensorrt-rtx"],
            provider_version="1.7.1",
            version_compatible=True,
        )


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (Faults("runtime"), "cannot start: CUDA initialization failure.*Update the NVIDIA driver"),
        (Faults("context"), "cannot start .*out of memory. Take a smaller --patch"),
        (Faults("execute"), "could not run this plan: CUDA runtime: out of memory. Take a smaller --patch"),
        (Faults("execute", "illegal address"), "could not run this plan: illegal address$"),
        (Faults("shape"), "refuses an input of"),
    ],
    ids=str,
)
def test_what_tensorrt_refuses(
    monkeypatch: pytest.MonkeyPatch, file: Path, tiny_model: LoadedModel, faults: Faults, words: str
) -> None:
    gpu = machine(monkeypatch)
    fake.install_tensorrt(monkeypatch, gpu, faults=faults)
    with pytest.raises(ExportError, match=words), opening(file, tiny_model) as session:
        session.run(images(*USUAL))
    assert not gpu.allocated
    assert not gpu.streams


@pytest.mark.parametrize("content", [b"", b"not a plan"])
def test_what_is_no_plan(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: LoadedModel, content: bytes
) -> None:
    fake.install_tensorrt(monkeypatch, machine(monkeypatch))
    (tmp_path / "model.plan").write_bytes(content)
    with pytest.raises(ExportError, match=r"cannot load .*magicTag failed. Run `mednext-edge build"):
        opening(tmp_path / "model.plan", tiny_model)


@pytest.mark.parametrize("kind", ["cuda-python", "torch"])
def test_buffers_that_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, file: Path, tiny_model: LoadedModel, kind: str
) -> None:
    """Room for the input, none for the three times larger output."""
    gpu = machine(monkeypatch, kind, memory=2 * 4 * 16**3)
    fake.install_tensorrt(monkeypatch, gpu)
    with (
        pytest.raises(ExportError, match=r"out of memory.*Take a smaller --patch"),
        opening(file, tiny_model) as session,
    ):
        session.run(images(*USUAL))
    assert not gpu.allocated
    assert not gpu.pinned


def test_a_plan_of_another_network(monkeypatch: pytest.MonkeyPatch, file: Path, tiny_model: LoadedModel) -> None:
    fake.install_tensorrt(monkeypatch, machine(monkeypatch))
    task = tiny_model.task
    other = task.model_copy(update={"model": task.model.model_copy(update={"in_channels": 2})})
    model = LoadedModel(tiny_model.net, other, tiny_model.source)
    with pytest.raises(
        ExportError, match=r"found the input tensors \['image'\].*expected one of FLOAT with 2 channels"
    ):
        opening(file, model)


def test_no_gpu(monkeypatch: pytest.MonkeyPatch, file: Path, tiny_model: LoadedModel) -> None:
    gpu = machine(monkeypatch, count=0)
    fake.install_tensorrt(monkeypatch, gpu)
    with pytest.raises(TargetUnavailableError, match="found no NVIDIA GPU"):
        opening(file, tiny_model)


def test_which_gpu(monkeypatch: pytest.MonkeyPatch, file: Path, tiny_model: LoadedModel) -> None:
    gpu = machine(monkeypatch, count=2)
    fake.install_tensorrt(monkeypatch, gpu)
    with opening(file, tiny_model, device="cuda:1") as session:
        session.run(images(*USUAL))
        assert gpu.contexts >= {1}
        assert gpu.current == 0, "the caller's current device is put back"
    with pytest.raises(TargetUnavailableError, match=r"`cuda:2`; this machine has cuda:0 Fake GPU 0 .*, cuda:1"):
        opening(file, tiny_model, device="cuda:2")
    with pytest.raises(UsageError, match="found the device `CPU`; a TensorRT engine runs on `cuda`"):
        opening(file, tiny_model, device="CPU")


# Tensors -----------------------------------------------------------------------------------------------------------


def test_tensors_without_a_copy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, graphs: dict[str, bytes], tiny_model: LoadedModel
) -> None:
    gpu = machine(monkeypatch, "torch")
    fake.install_tensorrt(monkeypatch, gpu)
    (tmp_path / "model.plan").write_bytes(plan(graphs, "dynamic"))
    x = images(8, 16, 8, batch=3)
    answer = expected(graphs, tiny_model, x)
    with opening(tmp_path / "model.plan", tiny_model) as session:
        for _ in range(3):
            np.testing.assert_allclose(session.run(x), answer, rtol=1e-4, atol=1e-5)
        gpu.calls.clear()
        found = session.run_tensor(torch.from_numpy(x).double())
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), answer, rtol=1e-4, atol=1e-5)
        own, callers = gpu.calls[0].split(" waits for ")
        assert gpu.calls == [f"{own} waits for {callers}", f"{callers} waits for {own}"]
        strided = torch.from_numpy(x).transpose(2, 3)
        found = session.run_tensor(strided.contiguous().transpose(2, 3))
        np.testing.assert_allclose(found.numpy(), answer, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(session.run(x), answer, rtol=1e-4, atol=1e-5)
        with pytest.raises(DataError, match=r"built for \(8, 8, 8\) to"):
            session.run_tensor(torch.zeros(1, 1, 4, 8, 8))
        with pytest.raises(DataError, match="found an input of shape"):
            session.run_tensor(torch.zeros(1, 2, 8, 8, 8))
        with pytest.raises(DataError, match="found a tensor on meta; this engine is on cpu"):
            session.run_tensor(torch.zeros(1, 1, 8, 8, 8, device="meta"))


def test_tensors_that_lie_aligned_are_not_copied(
    monkeypatch: pytest.MonkeyPatch, file: Path, graphs: dict[str, bytes], tiny_model: LoadedModel
) -> None:
    module: Any = fake.install_tensorrt(monkeypatch, machine(monkeypatch, "torch"))
    seen: list[int] = []
    whole = module.IExecutionContext.set_tensor_address

    def set_tensor_address(self: Any, name: str, memory: int) -> bool:
        seen.append(memory)
        return bool(whole(self, name, memory))

    monkeypatch.setattr(module.IExecutionContext, "set_tensor_address", set_tensor_address)
    x = images(*USUAL, batch=2)
    room = torch.zeros(x.size + 128)
    start = -(room.data_ptr() // 4) % 64
    with opening(file, tiny_model) as session:
        for offset, copied in ((0, False), (1, True)):
            seen.clear()
            tensor = room[start + offset : start + offset + x.size].reshape(x.shape).copy_(torch.from_numpy(x))
            found = session.run_tensor(tensor)
            np.testing.assert_allclose(found.numpy(), expected(graphs, tiny_model, x), rtol=1e-4, atol=1e-5)
            sources = [tensor[i].data_ptr() for i in range(2)]
            assert (seen[::2] == sources) is not copied


def test_small_tensors_are_run_one_by_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, graphs: dict[str, bytes], tiny_model: LoadedModel
) -> None:
    """Of a batch whose patches are no multiple of 256 bytes only the first lies aligned."""
    gpu = machine(monkeypatch, "torch")
    fake.install_tensorrt(monkeypatch, gpu)
    content = fake.make_plan(graphs["dynamic"], min=(1, 1, 4, 4, 4), max=(1, 1, *HIGH))
    (tmp_path / "model.plan").write_bytes(content)
    x = images(4, 4, 4, batch=3)
    monkeypatch.setattr("mednext_edge.runtime.tensorrt_session._ALIGNMENT", 512)
    with opening(tmp_path / "model.plan", tiny_model) as session:
        gpu.calls.clear()
        found = session.run_tensor(torch.from_numpy(x))
        assert len(gpu.calls) == 2 * len(x)
    np.testing.assert_allclose(found.numpy(), expected(graphs, tiny_model, x), rtol=1e-4, atol=1e-5)


def test_tensors_need_a_pytorch_with_cuda(monkeypatch: pytest.MonkeyPatch, file: Path, tiny_model: LoadedModel) -> None:
    fake.install_tensorrt(monkeypatch, machine(monkeypatch))
    with (
        opening(file, tiny_model) as session,
        pytest.raises(TargetUnavailableError, match="needs PyTorch with CUDA"),
    ):
        session.run_tensor(torch.zeros(1, 1, *USUAL))


# Compiled kernels of TensorRT for RTX --------------------------------------------------------------------------------


def test_compiled_kernels_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, graphs: dict[str, bytes], tiny_model: LoadedModel
) -> None:
    monkeypatch.setenv("MEDNEXT_CACHE", str(tmp_path / "cache"))
    module = fake.install_tensorrt(monkeypatch, machine(monkeypatch), rtx=True)
    (tmp_path / "model.plan").write_bytes(plan(graphs, "dynamic"))
    seen: list[bytes] = []
    whole = module.IRuntimeCache.deserialize

    def deserialize(self: Any, blob: bytes) -> bool:
        seen.append(blob)
        return bool(whole(self, blob))

    monkeypatch.setattr(module.IRuntimeCache, "deserialize", deserialize)

    def run(*sizes: tuple[int, int, int]) -> None:
        with opening(tmp_path / "model.plan", tiny_model, provider=PROVIDERS["tensorrt-rtx"]) as session:
            assert session._kernels is not None
            config = session._kernels.config
            assert config.cuda_graph_strategy is module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
            for size in sizes:
                session.run(images(*size, batch=2))

    run((8, 8, 8))
    assert seen == []
    (kept,) = (tmp_path / "cache" / "kernels").glob("*.bin")
    first = kept.read_bytes()
    run((8, 8, 8), (8, 8, 16))
    assert seen == [first]
    assert kept.read_bytes() != first
    kept.write_bytes(b"someone else's code")
    seen.clear()
    run((8, 8, 8))
    assert seen == [], "kernels without their digest are not handed over"
    assert kept.read_bytes() == first


# Bundles -----------------------------------------------------------------------------------------------------------


def bundle(
    folder: Path,
    model: LoadedModel,
    files: dict[str, bytes],
    *,
    provider: str = "tensorrt",
    patch: tuple[int, ...] = USUAL,
    compatibility: HardwareCompatibility = "none",
) -> Path:
    """A bundle with a plan for each compute capability."""
    task = model.task
    plans = tuple(Plan(arch=arch, file=f"model.sm_{arch.replace('.', '')}.plan") for arch in files)
    recipe = BuildRecipe(
        provider=provider,
        archs=tuple(files),
        input="image",
        channels=1,
        min=patch,
        opt=patch,
        max=patch,
        hardware_compatibility=compatibility,
    )
    manifest = Manifest(
        name=task.name,
        model=task.model,
        source=model.source,
        input=InputSpec(shape=(1, 1, *patch), patch=patch),
        output=OutputSpec(shape=(1, 3, *patch)),
        preprocessing=task.preprocessing,
        inference=task.inference,
        labels=task.labels,
        target="trt" if provider == "tensorrt" else "trt-rtx",
        precision="fp16",
        engine=Engine(
            file=plans[0].file,
            provider=provider,
            provider_version="10.3.0",
            arch=plans[0].arch,
            plans=plans if len(plans) > 1 else (),
        ),
    )
    writer = BundleWriter(folder)
    with writer as inside:
        for one in plans:
            (inside / one.file).write_bytes(files[one.arch])
        (inside / RECIPE).write_text(recipe.model_dump_json())
        writer.commit(manifest)
    return folder


def test_the_plan_of_this_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, graphs: dict[str, bytes], tiny_model: LoadedModel
) -> None:
    monkeypatch.setenv("MEDNEXT_CACHE", str(tmp_path / "cache"))
    files = {arch: plan(graphs, arch=arch) for arch in ("8.6", "8.9", "12.0")}
    folder = bundle(tmp_path / "rtx", tiny_model, files, provider="tensorrt-rtx")
    fake.install_tensorrt(monkeypatch, machine(monkeypatch, capability="8.9"), rtx=True)
    x = images(*USUAL)
    with open_session(folder) as session:
        np.testing.assert_allclose(session.run(x), expected(graphs, tiny_model, x), rtol=1e-4, atol=1e-5)
    fake.install_tensorrt(monkeypatch, machine(monkeypatch, capability="8.0"), rtx=True)
    with pytest.raises(
        TargetUnavailableError,
        match=r"sm_80 \(compute capability 8.0\); .* has plans for 8.6, 8.9, 12.0. "
        r"Run `mednext-edge build .* --gpu-arch 8.0`",
    ):
        open_session(folder)


@pytest.mark.parametrize(
    ("built", "here", "level", "taken"),
    [
        ("8.6", "8.6", "none", True),
        ("8.6", "8.9", "none", False),
        ("8.6", "8.9", "ampere+", True),
        ("8.6", "8.0", "ampere+", True),
        ("8.6", "7.5", "ampere+", False),
        ("8.6", "8.6", "same-cc", True),
        ("8.6", "8.9", "same-cc", False),
        ("8.9", "12.0", "ampere+", True),
    ],
)
def test_compatible_devices(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    graphs: dict[str, bytes],
    tiny_model: LoadedModel,
    built: str,
    here: str,
    level: HardwareCompatibility,
    taken: bool,
) -> None:
    files = {built: plan(graphs, arch=built, hardware_compatibility=level)}
    folder = bundle(tmp_path / "trt", tiny_model, files, compatibility=level)
    module = fake.install_tensorrt(monkeypatch, machine(monkeypatch, capability=here))
    if taken:
        open_session(folder, device="GPU").close()
        assert module.deserialized == 1
    else:
        with pytest.raises(TargetUnavailableError, match=f"has plans for {built}"):
            open_session(folder)
        assert module.deserialized == 0


def test_a_tampered_plan_never_reaches_tensorrt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, graphs: dict[str, bytes], tiny_model: LoadedModel
) -> None:
    folder = bundle(tmp_path / "trt", tiny_model, {"8.6": plan(graphs)})
    module = fake.install_tensorrt(monkeypatch, machine(monkeypatch))
    with (folder / "model.sm_86.plan").open("r+b") as plan_file:
        plan_file.seek(200)
        plan_file.write(b"\xff")
    with pytest.raises(IntegrityError, match=r"model\.sm_86\.plan"):
        open_session(folder)
    assert module.deserialized == 0


def test_a_bundle_without_its_recipe(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"build\.json is no build recipe"):
        read_recipe(tmp_path)
    (tmp_path / RECIPE).write_text("{}")
    with pytest.raises(IntegrityError, match=r"build\.json is no build recipe"):
        read_recipe(tmp_path)


def test_a_missing_package_comes_before_a_missing_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, graphs: dict[str, bytes], tiny_model: LoadedModel
) -> None:
    folder = bundle(tmp_path / "trt", tiny_model, {"8.6": plan(graphs)})
    machine(monkeypatch, count=0)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(TargetUnavailableError, match="pip install tensorrt"):
        open_session(folder)
