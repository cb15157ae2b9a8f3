"""A run from images to weights: end to end, killed and resumed, from other weights, and into NaN."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mednext_edge.checkpoints import load, save
from mednext_edge.data.dataset import Case, Dataset
from mednext_edge.data.volume import Volume
from mednext_edge.errors import CheckpointError, UsageError
from mednext_edge.models.families import build
from mednext_edge.models.loaded import LoadedModel, Source
from mednext_edge.models.mednext import MedNeXt
from mednext_edge.task import Task
from mednext_edge.training import loop
from mednext_edge.training.loop import Progress, train
from mednext_edge.training.objective import Batch, Network, Outcome
from mednext_edge.training.precision import choose_amp
from mednext_edge.training.start import start_network
from mednext_edge.training.state import BEST, LAST, LOG, PLAN, RunFolder
from mednext_edge.training.validation import overlaps, pooled_dice

from .blobs import plan, same, task_for, weights

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from mednext_edge.data.dataset import open_dataset
from mednext_edge.training.loop import train
from tests.training.blobs import plan, task_for

folder, out, step, threads = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(threads)
dataset = open_dataset(folder)

def die(progress):
    if progress.step == step:
        os.kill(os.getpid(), signal.SIGKILL)

train(dataset, task_for(dataset), plan(epochs=3), out, on_step=die)
"""


def begin(task: Task, init: LoadedModel) -> nn.Module:
    return start_network(task, plan().seed, init=init)


@pytest.fixture(scope="module")
def finished(dataset: Dataset, task: Task, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LoadedModel]:
    """Three epochs of two steps without a stop."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, train(dataset, task, plan(epochs=3), out)


def test_four_steps_end_to_end(dataset: Dataset, task: Task, tmp_path: Path) -> None:
    steps: list[Progress] = []
    model = train(dataset, task, plan(), tmp_path / "run", on_step=steps.append)
    assert [(p.step, p.total) for p in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(math.isfinite(p.loss) and 0 <= p.dice <= 1 for p in steps)
    assert [p.rate for p in steps] == [plan().rate_at(i) for i in range(4)]
    assert [p.validation is not None for p in steps] == [False, True, False, True]
    assert set(steps[-1].validation or {}) == {"one", "two"}
    history = RunFolder(tmp_path / "run", plan(), resume=True).history()
    assert [(e["step"], e["epoch"]) for e in history] == [(2, 1), (4, 2)]
    assert history[0]["loss"] == pytest.approx((steps[0].loss + steps[1].loss) / 2)
    assert {f.name for f in (tmp_path / "run").iterdir()} >= {PLAN, LOG, LAST, BEST}

    assert isinstance(model.net, MedNeXt)
    assert not model.net.training
    assert not model.net.do_ds
    assert model.task == task
    x = torch.zeros(1, 1, 16, 16, 32)
    assert model.net(x).shape == (1, 3, 16, 16, 32)
    save(tmp_path / "model", model, dtype=torch.float32)
    assert same(weights(load(tmp_path / "model")), weights(model))


def test_the_same_plan_gives_the_same_weights(
    dataset: Dataset, task: Task, finished: tuple[Path, LoadedModel], tmp_path: Path
) -> None:
    again = train(dataset, task, plan(epochs=3), tmp_path / "run")
    assert same(weights(again), weights(finished[1]))
    other = train(dataset, task, plan(epochs=3, seed=4), tmp_path / "other")
    assert not same(weights(other), weights(finished[1]))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
# In the first epoch, before any checkpoint; right after the first whole epoch; in the middle of the second.
@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_killed_run_ends_with_the_same_weights(
    folder: Path, dataset: Dataset, task: Task, finished: tuple[Path, LoadedModel], tmp_path: Path, step: int
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, str(folder), str(out), str(step), str(torch.get_num_threads())]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (out / LAST).exists() == (step >= 2)

    seen: list[int] = []
    model = train(dataset, task, plan(epochs=3), out, resume=True, on_step=lambda p: seen.append(p.step))
    assert seen == list(range(1 + step // 2 * 2, 7))
    assert same(weights(model), weights(finished[1]))
    whole, resumed = (
        [
            {k: e[k] for k in ("step", "loss", "rate", "dice")}
            for e in RunFolder(p, plan(epochs=3), resume=True).history()
        ]
        for p in (finished[0], out)
    )
    assert whole == resumed


def test_resume_of_a_finished_run_does_nothing(
    dataset: Dataset, task: Task, finished: tuple[Path, LoadedModel]
) -> None:
    def never(_: Progress) -> None:
        raise AssertionError("a finished run has no step left")

    again = train(dataset, task, plan(epochs=3), finished[0], resume=True, on_step=never)
    assert same(weights(again), weights(finished[1]))


def test_best_weights_are_returned(
    dataset: Dataset, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The epoch with the best validation wins, though later ones follow."""
    scores = iter([0.3, 0.9, 0.2])
    states: list[dict[str, Tensor]] = []

    def validate(net: nn.Module, *_: object) -> dict[str, float]:
        states.append({name: tensor.clone() for name, tensor in net.state_dict().items()})
        return {"one": next(scores), "two": float("nan")}

    monkeypatch.setattr(loop, "validate_dice", validate)
    model = train(dataset, task, plan(epochs=3), tmp_path / "run")
    assert same(weights(model), states[1])
    assert not same(weights(model), states[2])


def test_training_learns(dataset: Dataset, task: Task, tmp_path: Path) -> None:
    """Forty steps bring the loss well below where it starts."""
    losses: list[float] = []
    chosen = plan(epochs=1, steps=40, augment=False, learning_rate=1e-2, validate_every=1)
    train(replace(dataset, validation=()), task, chosen, tmp_path / "run", on_step=lambda p: losses.append(p.loss))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


@pytest.mark.parametrize("amp", ["bf16", "fp32"])
def test_two_dimensions(dataset: Dataset, tmp_path: Path, amp: str) -> None:
    task = task_for(dataset, spatial_dims=2)
    seen: list[Progress] = []
    chosen = plan(patch=(16, 32), mirror_axes=(0, 1), epochs=1, amp=amp)
    model = train(dataset, task, chosen, tmp_path / "run", on_step=seen.append)
    assert model.net(torch.zeros(1, 1, 16, 32)).shape == (1, 3, 16, 32)
    assert set(seen[-1].validation or {}) == {"one", "two"}


def test_init_starts_from_the_weights(
    dataset: Dataset, task: Task, finished: tuple[Path, LoadedModel], tmp_path: Path
) -> None:
    start = finished[1]
    before = {name: tensor.clone() for name, tensor in weights(start).items()}
    # Next to no learning: what comes out is what went in.
    model = train(
        dataset, task, plan(epochs=1, steps=1, learning_rate=1e-12), tmp_path / "run", net=begin(task, init=start)
    )
    for name, tensor in weights(model).items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-4, atol=1e-8)
    assert same(weights(start), before)


def test_init_without_deep_supervision_heads(
    dataset: Dataset, task: Task, finished: tuple[Path, LoadedModel], tmp_path: Path
) -> None:
    assert isinstance(finished[1].net, MedNeXt)
    plain = MedNeXt(finished[1].net.config.without_deep_supervision())
    plain.load_state_dict({k: v for k, v in weights(finished[1]).items() if k in plain.state_dict()})
    start = replace(finished[1], net=plain)
    model = train(
        dataset, task, plan(epochs=1, steps=1, learning_rate=1e-12), tmp_path / "run", net=begin(task, init=start)
    )
    torch.testing.assert_close(model.net.get_parameter("stem.weight"), plain.get_parameter("stem.weight"))
    assert "out_2.conv_out.weight" in weights(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 8}, r"is \(8, .*this plan needs \(4,"),
        ({"encoder_kernel": 5}, "this plan needs"),
        ({"blocks": (2, 1, 1, 1, 1)}, "another network"),
        ({"grn": True}, "another network"),
    ],
)
def test_init_of_another_network_is_refused(
    dataset: Dataset, task: Task, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    other = task_for(dataset, **changes)
    start = LoadedModel(build(other.model), other, Source(format="test", file="other.pth", sha256=""))
    with pytest.raises(CheckpointError, match=message):
        train(dataset, task, plan(), tmp_path / "run", net=begin(task, init=start))
    assert not (tmp_path / "run").exists()


def test_the_network_and_the_objective_are_the_callers(dataset: Dataset, task: Task, tmp_path: Path) -> None:
    """A network without deep supervision that also keeps close to a teacher."""
    student = build(task_for(dataset, deep_supervision=False).model)
    teacher = start_network(task, 11).eval()
    seen: list[int] = []

    def distil(net: Network, batch: Batch) -> Outcome:
        logits = net(batch.images)
        assert isinstance(logits, Tensor)
        with torch.no_grad():
            wanted = teacher(batch.images)[0]
        seen.append(batch.step)
        return Outcome((logits - wanted).square().mean(), logits)

    losses: list[float] = []
    chosen = plan(epochs=1, steps=30, learning_rate=1e-2, validate_every=1)
    model = train(
        dataset, task, chosen, tmp_path / "run", net=student, objective=distil, on_step=lambda p: losses.append(p.loss)
    )
    assert model.net is student
    assert seen == list(range(30))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_parts_of_a_batch_add_up(dataset: Dataset, task: Task, tmp_path: Path) -> None:
    """Cut in two, with activations computed twice, and resumed in another cut: the same run, up to rounding."""
    whole, parts, mixed = (tmp_path / name for name in ("whole", "parts", "mixed"))
    chosen = plan(batch=4, epochs=2, keep="last")
    states: list[bytes] = []

    def keep_first(progress: Progress) -> None:
        if progress.step == chosen.steps:
            states.append((whole / LAST).read_bytes())

    one = train(dataset, task, chosen, whole, on_step=keep_first)
    two = train(dataset, task, replace(chosen, accumulate=2, checkpoint_gradients=True), parts)
    shutil.copytree(whole, mixed)
    (mixed / LAST).write_bytes(states[0])
    three = train(dataset, task, replace(chosen, accumulate=4), mixed, resume=True)
    for name, tensor in weights(one).items():
        for other in (two, three):
            torch.testing.assert_close(weights(other)[name], tensor, rtol=0, atol=2e-6, msg=name)


def test_averaged_weights_are_judged_kept_and_resumed(dataset: Dataset, task: Task, tmp_path: Path) -> None:
    chosen = plan(epochs=3, ema=0.5, keep="last")
    model = train(dataset, task, chosen, tmp_path / "run")
    saved = torch.load(tmp_path / "run" / LAST, weights_only=True)
    assert same(weights(model), saved["average"])
    assert not same(weights(model), saved["network_weights"])
    part = tmp_path / "part"

    def stop(progress: Progress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(dataset, task, chosen, part, on_step=stop)
    assert same(weights(train(dataset, task, chosen, part, resume=True)), weights(model))


def test_through_our_operators(dataset: Dataset, task: Task, tmp_path: Path) -> None:
    """Our operators compute with PyTorch's on a CPU, so that the run is the same up to rounding."""
    chosen = plan(keep="last")
    plain = train(dataset, task, chosen, tmp_path / "plain")
    fused = train(dataset, task, replace(chosen, fused=True), tmp_path / "fused")
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(fused)[name], tensor, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("changes", [{}, {"checkpoint_gradients": True, "ema": 0.5}], ids=["plain", "saving"])
def test_through_the_compiler(
    dataset: Dataset, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """The graphs that `torch.compile` finds are run as they are, which is exact; code is generated by PyTorch alone."""
    ran: list[int] = []
    compiled = nn.Module.compile

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        def call(*args: object) -> object:
            ran.append(len(graph.graph.nodes))
            return graph.forward(*args)

        return call

    monkeypatch.setattr(nn.Module, "compile", lambda net: compiled(net, backend=backend))
    chosen = plan(keep="last", **changes)
    plain = train(dataset, task, chosen, tmp_path / "plain")
    assert not ran
    torch._dynamo.reset()
    found = train(dataset, task, replace(chosen, compile=True), tmp_path / "compiled")
    assert len(ran) >= chosen.total_steps
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(found)[name], tensor, rtol=0, atol=1e-5, msg=name)


def test_tensorboard_holds_the_log(dataset: Dataset, task: Task, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    train(dataset, task, plan(epochs=3), out, tensorboard=True)
    train(dataset, task, plan(epochs=3), out, tensorboard=True, resume=True)  # a finished run's is written anew
    found = EventAccumulator(str(out / "tensorboard"))
    found.Reload()
    history = RunFolder(out, plan(epochs=3), resume=True).history()
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [
        (e["step"], pytest.approx(e["loss"])) for e in history
    ]
    assert {"dice/one", "dice/mean", "learning rate", "peak memory, MB"} <= set(found.Tags()["scalars"])


def test_amp_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_amp("fp32", "cpu") is None
    assert choose_amp("bf16", "cpu") is torch.bfloat16
    assert choose_amp("fp16", "cuda:1") is torch.float16
    assert choose_amp("auto", "cuda") is torch.float16
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert choose_amp("auto", "cpu") is None
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert choose_amp("auto", "cpu") is torch.bfloat16


def test_patch_dice_pools_the_batch() -> None:
    target = torch.tensor([[[0, 1, 1, 2]], [[0, 0, 1, 0]]]).float()
    predicted = torch.tensor([[0, 1, 0, 0], [1, 0, 1, 0]])
    logits = nn.functional.one_hot(predicted, 3).movedim(-1, 1).float()
    # Class 1: 2 of 3 predicted and 3 true agree; class 2: none.
    assert pooled_dice(overlaps(logits, target)) == pytest.approx((2 * 2 / 6 + 0) / 2)
    nothing = nn.functional.one_hot(torch.zeros(1, 4, dtype=torch.long), 3).movedim(-1, 1)
    assert pooled_dice(overlaps(nothing, target[:1] * 0)) == 1


def test_an_existing_run_is_refused_before_any_image_is_read(
    dataset: Dataset, task: Task, finished: tuple[Path, LoadedModel]
) -> None:
    def unread() -> Volume:
        raise AssertionError("the image was read")

    blind = replace(dataset, training=(Case("a", unread, unread),))
    with pytest.raises(UsageError, match="already holds a run"):
        train(blind, task, plan(epochs=3), finished[0])
    with pytest.raises(UsageError, match="another plan"):
        train(blind, task, plan(epochs=4), finished[0], resume=True)
