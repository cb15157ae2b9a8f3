"""The estimate of a step's memory against a step, and patches and batches planned from it."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch

from mednext_edge.models.config import MedNeXtConfig
from mednext_edge.models.families import describe_mednext
from mednext_edge.models.mednext import MedNeXt
from mednext_edge.task import ModelSpec
from mednext_edge.training.memory import PeakOfStep, StepMemory, free_memory, plan_size, step_memory

STEP = """
import json, sys
import torch
from mednext_edge.evaluation.memory import PeakMemory
from mednext_edge.models.families import build
from mednext_edge.task import ModelSpec
from mednext_edge.training.loss import SupervisedLoss

net = build(ModelSpec.model_validate(json.loads(sys.argv[1]))).train()
torch.set_num_threads(1)
optimizer = torch.optim.AdamW(net.parameters())
def step(batch, side):
    optimizer.zero_grad()
    SupervisedLoss()(net(torch.randn(batch, 1, side, side, side)), torch.zeros(batch, 1, side, side, side)).backward()
    optimizer.step()
step(1, 16)
import psutil
before = psutil.Process().memory_info().rss
with PeakMemory() as peak:
    step(2, 48)
print(peak.mb * 1e6 - before)
"""


def spec(**changes: object) -> ModelSpec:
    config = {
        "channels": 16, "blocks": (1,) * 5, "expansion": (2,) * 5, "down_expansion": (2,) * 2, "down_grn": (False,) * 2,
        "deep_supervision": True,
    }  # fmt: skip
    with torch.device("meta"):
        return describe_mednext(MedNeXt(MedNeXtConfig(**config | changes)))  # type: ignore[arg-type]


def test_the_estimate_is_near_a_step() -> None:
    wanted = step_memory(spec(), (48, 48, 48), half=False, checkpointed=False, ema=False)
    command = [sys.executable, "-c", STEP, spec().model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured = float(json.loads(done.stdout))
    assert 0.6 < wanted.of(2) / measured < 1.7


def test_what_saves_memory() -> None:
    usual = step_memory(spec(), (32, 32, 32), half=False, checkpointed=False, ema=False)
    assert step_memory(spec(), (32, 32, 32), half=True, checkpointed=False, ema=False).sample < 0.7 * usual.sample
    deep = spec(blocks=(4,) * 5)
    whole, cut = (step_memory(deep, (32, 32, 32), half=False, checkpointed=c, ema=False) for c in (False, True))
    assert cut.sample < 0.6 * whole.sample
    assert step_memory(spec(), (32, 32, 32), half=False, checkpointed=False, ema=True).fixed > usual.fixed
    assert step_memory(spec(), (64, 64, 64), half=False, checkpointed=False, ema=False).sample == pytest.approx(
        8 * usual.sample, rel=0.05
    )


def test_training_in_int8_keeps_inputs_twice_and_a_teacher() -> None:
    plain = step_memory(spec(), (32, 32, 32), half=False, checkpointed=False, ema=False)
    one = step_memory(spec(), (32, 32, 32), half=False, checkpointed=False, ema=False, rounded=("enc_block_0.0.conv2",))
    assert one.sample - plain.sample == 16 * 32**3 * 4
    assert one.fixed - plain.fixed == 4 * spec().parameters
    deep = spec(blocks=(4,) * 5)
    names = [f"enc_block_0.{i}.conv{j}" for i in range(4) for j in (1, 2, 3)]
    whole, cut = (
        step_memory(deep, (32, 32, 32), half=False, checkpointed=c, ema=False, rounded=names) for c in (False, True)
    )
    assert cut.sample < 0.6 * whole.sample, "what is computed again is not kept rounded either"


MEMORY = StepMemory(fixed=1000, sample=32**3 * 10)
AT = (32, 32, 32)


def test_patches_fit_the_memory() -> None:
    shapes = [(200, 300, 300)]
    for budget in (2 * 128**3 * 10 + 1000, 2 * 96**3 * 10 + 1000, 2 * 48**3 * 10 + 1000):
        patch, batch = plan_size(shapes, MEMORY, AT, budget, batch=None, parts=1, cases=9, grow=False)
        assert batch == 2
        assert 0.6 * budget < 1000 + 2 * 10 * math.prod(patch) <= budget
    # In parts, or for more processes, fewer patches are in memory at once.
    larger, _ = plan_size(shapes, MEMORY, AT, 2 * 48**3 * 10 + 1000, batch=2, parts=2, cases=9, grow=False)
    assert math.prod(larger) > math.prod(patch)


def test_batches_grow_on_a_gpu_until_memory_or_data_are_used() -> None:
    small = [(32, 48, 32)]
    budget = 1000 + 9 * 32 * 48 * 32 * 10
    patch, batch = plan_size(small, MEMORY, AT, budget, batch=None, parts=1, cases=10_000, grow=True)
    assert (patch, batch) == ((32, 48, 32), 9)
    assert plan_size(small, MEMORY, AT, budget, batch=None, parts=2, cases=10_000, grow=True)[1] == 18
    assert plan_size(small, MEMORY, AT, budget, batch=None, parts=1, cases=80, grow=True)[1] == 4  # 5 % of the voxels
    assert plan_size(small, MEMORY, AT, budget, batch=None, parts=1, cases=5, grow=True)[1] == 2
    assert plan_size(small, MEMORY, AT, budget, batch=7, parts=1, cases=5, grow=True)[1] == 7
    assert plan_size(small, MEMORY, AT, budget, batch=None, parts=4, cases=5, grow=False)[1] == 4


def test_memory_of_this_machine() -> None:
    assert 0 < free_memory("cpu") < 1e14
    peak = PeakOfStep("cpu")
    assert peak.mb() > 10
