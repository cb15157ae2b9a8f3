"""Plans: built for real by TensorRT for RTX, and by fakes of TensorRT 10 and 11 where a GPU would be needed."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest

from mednext_edge.errors import ExportError, TargetUnavailableError, UsageError
from mednext_edge.export.graph import INPUT, to_onnx
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.nvidia.build import build_plan
from mednext_edge.nvidia.providers import PROVIDERS
from mednext_edge.nvidia.recipe import BuildRecipe
from tests.nvidia import graphs
from tests.nvidia.fake_tensorrt import CACHE, BuilderFlag, MemoryPoolType, fake_module, read_plan

PATCH = (graphs.SIZE,) * 3


def recipe(provider: str = "tensorrt", **changes: Any) -> BuildRecipe:
    usual = {"provider": provider, "input": graphs.INPUT, "channels": 2, "min": PATCH, "opt": PATCH, "max": PATCH}
    return BuildRecipe.model_validate(usual | changes)


def ranged(provider: str = "tensorrt") -> BuildRecipe:
    return recipe(provider, min=(4,) * 3, max=(16,) * 3)


@pytest.fixture
def rtx() -> ModuleType:
    try:
        return PROVIDERS["tensorrt-rtx"].load()
    except TargetUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return graphs.write(tmp_path / "model.onnx")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "plans" / "model.plan"


def install(monkeypatch: pytest.MonkeyPatch, version: str = "10.3.0", **faults: Any) -> Any:
    module = fake_module(version, **faults)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


# TensorRT for RTX, as it is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["sm_86", "12.0"])
def test_rtx_builds_a_network_without_a_gpu(rtx: ModuleType, tiny_model: LoadedModel, out: Path, arch: str) -> None:
    file = out.parent.parent / "network.onnx"
    onnx.save(to_onnx(tiny_model, (16, 16, 16), half=True), file)
    size = (16,) * 3
    build_plan(file, recipe("tensorrt-rtx", input=INPUT, channels=1, min=size, opt=size, max=size), out, arch=arch)
    assert out.stat().st_size > 10_000
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_rtx_plans_of_two_architectures_differ(rtx: ModuleType, graph: Path, out: Path) -> None:
    build_plan(graph, recipe("tensorrt-rtx"), out, arch="8.6")
    first = out.read_bytes()
    build_plan(graph, recipe("tensorrt-rtx"), out, arch="12.0")
    assert out.read_bytes() != first


def test_rtx_builds_a_range_of_patches(rtx: ModuleType, tmp_path: Path, out: Path) -> None:
    build_plan(graphs.write(tmp_path / "open.onnx", size_open=True), ranged("tensorrt-rtx"), out, arch="8.6")
    assert out.stat().st_size > 10_000


def test_rtx_finds_weights_beside_the_graph(rtx: ModuleType, graph: Path, out: Path) -> None:
    onnx.save(onnx.load(graph), graph, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (graph.parent / "weights.bin").stat().st_size > 0
    build_plan(graph, recipe("tensorrt-rtx"), out, arch="8.6")
    assert out.is_file()


def test_rtx_refuses_float32_volumes_on_turing(rtx: ModuleType, graph: Path, tmp_path: Path, out: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot build model.onnx for 7.5: .*not supported.*--precision fp16"):
        build_plan(graph, recipe("tensorrt-rtx"), out, arch="7.5")
    assert not out.exists()
    build_plan(graphs.write(tmp_path / "half.onnx", half=True), recipe("tensorrt-rtx"), out, arch="7.5")
    assert out.is_file()


def test_rtx_names_node_and_operator_that_it_does_not_know(rtx: ModuleType, tmp_path: Path, out: Path) -> None:
    file = graphs.write(tmp_path / "odd.onnx", activation="Wobble")
    with pytest.raises(ExportError, match=r"cannot parse .*odd.onnx: act \(Wobble\): .*no operator of this name"):
        build_plan(file, recipe("tensorrt-rtx"), out, arch="8.6")


def test_rtx_says_what_is_wrong_with_a_file(rtx: ModuleType, tmp_path: Path, out: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot parse .*none.onnx: .*cannot be found"):
        build_plan(tmp_path / "none.onnx", recipe("tensorrt-rtx"), out, arch="8.6")
    (tmp_path / "text.onnx").write_text("no graph at all\n" * 20)
    with pytest.raises(ExportError, match=r"cannot parse .*text.onnx"):
        build_plan(tmp_path / "text.onnx", recipe("tensorrt-rtx"), out, arch="8.6")


def test_rtx_advises_when_scratch_memory_does_not_suffice(rtx: ModuleType, tmp_path: Path, out: Path) -> None:
    size = (1024, 1024, 1024)
    file = graphs.write(tmp_path / "open.onnx", size_open=True)
    small = recipe("tensorrt-rtx", min=size, opt=size, max=(1025,) * 3, workspace_mib=1)
    with pytest.raises(ExportError, match="--workspace"):
        build_plan(file, small, out, arch="8.6")


def test_rtx_tells_of_its_progress(rtx: ModuleType, graph: Path, out: Path) -> None:
    told: list[tuple[str, int, int]] = []
    build_plan(graph, recipe("tensorrt-rtx"), out, arch="8.6", progress=lambda *step: told.append(step))
    first, last = told[0], told[-1]
    assert first[1] == 0
    assert first[0] == last[0]  # the outermost phase
    assert last[1] == last[2] > 0
    assert all(0 <= done <= total for _, done, total in told)


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from tests.nvidia.test_build import build_plan, recipe

told = []
def interrupt(phase, done, total):
    told.append(done)
    os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    build_plan(Path(sys.argv[1]), recipe("tensorrt-rtx"), Path(sys.argv[2]), arch="8.6", progress=interrupt)
except KeyboardInterrupt:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert len(told) == 1, told
    print("interrupted")
"""


def test_rtx_stops_when_interrupted(rtx: ModuleType, graph: Path, out: Path) -> None:
    """In a process of its own: a signal goes to all of it."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, graph, out], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "interrupted"), done.stderr
    assert not out.parent.exists()


def test_rtx_needs_an_architecture(rtx: ModuleType, graph: Path, out: Path) -> None:
    with pytest.raises(UsageError, match="name the architecture"):
        build_plan(graph, recipe("tensorrt-rtx"), out)
    with pytest.raises(UsageError, match=r"it supports 7\.5"):
        build_plan(graph, recipe("tensorrt-rtx"), out, arch="9.0")


@pytest.mark.parametrize("more", [{"hardware_compatibility": "ampere+"}, {"version_compatible": True}])
def test_rtx_has_no_compatibility(rtx: ModuleType, graph: Path, out: Path, more: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="neither hardware-compatible nor version-compatible"):
        build_plan(graph, recipe("tensorrt-rtx", **more), out, arch="8.6")


def test_rtx_keeps_no_timings(rtx: ModuleType, graph: Path, out: Path, tmp_path: Path) -> None:
    build_plan(graph, recipe("tensorrt-rtx"), out, arch="8.6", timing_cache=tmp_path / "timing.cache")
    assert not (tmp_path / "timing.cache").exists()


def test_rtx_keeps_stdout_clean(rtx: ModuleType, graph: Path, out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExportError):
        build_plan(graph, recipe("tensorrt-rtx"), out, arch="7.5")
    build_plan(graph, recipe("tensorrt-rtx"), out, arch="8.6")
    assert capfd.readouterr().out == ""


# TensorRT 10 and 11, by their fakes --------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["10.0.1", "10.3.0", "10.16.1", "11.0.0", "11.4.1"])
def test_every_version_builds_strongly_typed(
    monkeypatch: pytest.MonkeyPatch, graph: Path, out: Path, version: str
) -> None:
    module = install(monkeypatch, version)  # which refuses a network that is not
    build_plan(graph, recipe(), out)
    plan = read_plan(out)
    assert (plan.version, plan.arch, plan.max) == (version, "8.6", [1, 2, *PATCH])
    assert (plan.hardware_compatibility, plan.version_compatible) == ("none", False)
    assert [node.op_type for node in plan.onnx.graph.node] == ["Conv", "Relu"]
    (config,) = module._builds
    assert BuilderFlag.TF32 not in config._flags
    assert config._profiles == []


def test_a_range_of_patches_is_a_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: Path) -> None:
    install(monkeypatch)
    build_plan(graphs.write(tmp_path / "open.onnx", size_open=True), ranged(), out)
    plan = read_plan(out)
    assert [plan.min, plan.opt, plan.max] == [[1, 2, n, n, n] for n in (4, 8, 16)]


def test_options_reach_the_builder(monkeypatch: pytest.MonkeyPatch, graph: Path, out: Path) -> None:
    module = install(monkeypatch, "10.16.1")
    asked = recipe(workspace_mib=512, optimization_level=5, hardware_compatibility="same-cc", version_compatible=True)
    build_plan(graph, asked, out)
    (config,) = module._builds
    assert config._pools == {MemoryPoolType.WORKSPACE: 512 * 2**20}
    assert config.builder_optimization_level == 5
    assert (read_plan(out).hardware_compatibility, read_plan(out).version_compatible) == ("same-cc", True)


def test_a_level_of_compatibility_that_came_later(monkeypatch: pytest.MonkeyPatch, graph: Path, out: Path) -> None:
    install(monkeypatch, "10.3.0")
    build_plan(graph, recipe(hardware_compatibility="ampere+"), out)
    assert read_plan(out).hardware_compatibility == "ampere+"
    with pytest.raises(UsageError, match=r"10\.3\.0 does not know hardware compatibility `same-cc`"):
        build_plan(graph, recipe(hardware_compatibility="same-cc"), out)


def test_tensorrt_takes_no_architecture(monkeypatch: pytest.MonkeyPatch, graph: Path, out: Path) -> None:
    install(monkeypatch)
    with pytest.raises(UsageError, match="builds for the GPU it runs on"):
        build_plan(graph, recipe(), out, arch="8.6")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, graph: Path, out: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(TargetUnavailableError, match="pip install tensorrt"):
        build_plan(graph, recipe(), out)


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch, graph: Path, out: Path) -> None:
    install(monkeypatch, start="CUDA initialization failure with error: 35")
    with pytest.raises(TargetUnavailableError, match="does not start: CUDA initialization failure with error: 35"):
        build_plan(graph, recipe(), out)


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("Error Code 2: OutOfMemory (Requested size was 123 bytes.)", "close other programs"),
        ("Error Code 1: Cuda Runtime (out of memory)", "close other programs"),
        ("Requested amount of GPU memory (5 bytes) could not be allocated.", "close other programs"),
        ("Error Code 10: Internal Error (Could not find any implementation for node stem.)", "--workspace"),
        ("no tactics to implement the operation within workspace limit", "--workspace"),
    ],
)
def test_out_of_memory(monkeypatch: pytest.MonkeyPatch, graph: Path, out: Path, words: str, advice: str) -> None:
    install(monkeypatch, build=words)
    with pytest.raises(ExportError) as caught:
        build_plan(graph, recipe(), out)
    assert words in str(caught.value)
    assert advice in str(caught.value)
    assert not out.exists()


def test_other_errors_get_no_advice(monkeypatch: pytest.MonkeyPatch, graph: Path, out: Path) -> None:
    install(monkeypatch, build="an illegal memory access was encountered")
    with pytest.raises(ExportError, match=r"an illegal memory access was encountered$"):
        build_plan(graph, recipe(), out)


def test_a_failed_build_leaves_the_old_plan(monkeypatch: pytest.MonkeyPatch, graph: Path, out: Path) -> None:
    install(monkeypatch)
    build_plan(graph, recipe(), out)
    before = out.read_bytes()
    install(monkeypatch, build="broken")
    with pytest.raises(ExportError, match="broken"):
        build_plan(graph, recipe(), out)
    assert out.read_bytes() == before
    assert list(out.parent.iterdir()) == [out]


def test_the_first_five_errors_of_the_parser(monkeypatch: pytest.MonkeyPatch, graph: Path, out: Path) -> None:
    install(monkeypatch, parse=[(f"node{i}" if i else "", "Conv", f"words {i}") for i in range(7)])
    with pytest.raises(ExportError, match=r"a node without name \(Conv\): words 0; node1 .* 4; and 2 more$") as caught:
        build_plan(graph, recipe(), out)
    assert "words 5" not in str(caught.value)


def test_what_was_tried_in_vain_is_logged(
    monkeypatch: pytest.MonkeyPatch, graph: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, tried="Error Code 1: tactic skipped")
    with caplog.at_level(logging.WARNING, logger="mednext_edge.nvidia"):
        build_plan(graph, recipe(), out)
    assert caplog.messages == ["Error Code 1: tactic skipped"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"channels": 3}, r"takes image of \[1, 2, 8, 8, 8\].*needs \[1, 3, 8, 8, 8\]"),
        ({"min": (4,) * 3}, r"needs \[1, 2, 4, 4, 4\] to \[1, 2, 8, 8, 8\]"),
        ({"min": (8, 8), "opt": (8, 8), "max": (8, 8)}, r"needs \[1, 2, 8, 8\]"),
        ({"input": "scan"}, "has the inputs image; the recipe is for `scan` alone"),
    ],
)
def test_a_graph_of_another_recipe(
    monkeypatch: pytest.MonkeyPatch, graph: Path, out: Path, changes: dict[str, Any], words: str
) -> None:
    install(monkeypatch)
    with pytest.raises(ExportError, match=words):
        build_plan(graph, recipe(**changes), out)


def test_a_fixed_patch_needs_a_fixed_graph(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: Path) -> None:
    install(monkeypatch)
    with pytest.raises(ExportError, match=r"takes image of \[1, 2, -1, -1, -1\]"):
        build_plan(graphs.write(tmp_path / "open.onnx", size_open=True), recipe(), out)


def test_timings_are_kept_and_used_again(
    monkeypatch: pytest.MonkeyPatch, graph: Path, out: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch)
    cache = tmp_path / "cache" / "timing.cache"
    for builds in (1, 2):
        build_plan(graph, recipe(), out, timing_cache=cache)
        assert cache.read_bytes() == CACHE + b'["10.3.0 on 8.6", %d]' % builds
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("stored", "faults"),
    [
        (CACHE + b'["10.3.0 on 8.9", 7]', {}),  # another device
        (CACHE + b'["10.0.1 on 8.6", 7]', {}),  # another version
        (b"damaged", {}),
        (b"damaged", {"cache_lost": True}),
    ],
)
def test_unusable_timings_are_dropped_with_a_word(
    monkeypatch: pytest.MonkeyPatch,
    graph: Path,
    out: Path,
    caplog: pytest.LogCaptureFixture,
    stored: bytes,
    faults: dict[str, Any],
) -> None:
    install(monkeypatch, **faults)
    cache = out.parent.parent / "timing.cache"
    cache.write_bytes(stored)
    build_plan(graph, recipe(), out, timing_cache=cache)
    assert out.is_file()
    assert cache.read_bytes() == CACHE + b'["10.3.0 on 8.6", 1]'
    assert len(caplog.messages) == 1
    assert "timing cache" in caplog.text


def test_timings_that_cannot_be_written_do_not_cost_the_plan(
    monkeypatch: pytest.MonkeyPatch, graph: Path, out: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch)
    (tmp_path / "file").touch()
    build_plan(graph, recipe(), out, timing_cache=tmp_path / "file" / "timing.cache")
    assert out.is_file()
    assert "cannot be written" in caplog.text


def test_an_error_of_the_progress_bar_is_not_lost(monkeypatch: pytest.MonkeyPatch, graph: Path, out: Path) -> None:
    install(monkeypatch)
    with pytest.raises(ZeroDivisionError):
        build_plan(graph, recipe(), out, progress=lambda phase, done, total: print(1 // (total - done)))
    assert not out.exists()


def test_a_build_outside_the_main_thread(monkeypatch: pytest.MonkeyPatch, graph: Path, out: Path) -> None:
    install(monkeypatch)
    thread = threading.Thread(target=build_plan, args=(graph, recipe(), out))
    thread.start()
    thread.join()
    assert read_plan(out).arch == "8.6"
