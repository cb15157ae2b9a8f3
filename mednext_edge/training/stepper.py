"""One optimiser step: forward, backward, clipping, update, for one process or several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mednext_edge.errors import CheckpointError
from mednext_edge.training.average import AveragedWeights
from mednext_edge.training.loss import Regions
from mednext_edge.training.objective import Batch, Objective, Outputs
from mednext_edge.training.plan import TrainingPlan
from mednext_edge.training.precision import Precision
from mednext_edge.training.team import ALONE, Team, no_sync
from mednext_edge.training.validation import overlaps, pooled_dice


class Stepper:
    """A network with its optimiser.

    Args:
        net: in training mode, on `device`.
        plan: the recipe.
        device: torch device.
        team: the processes that share each batch.

    Attributes:
        net: the bare network, whose state is saved.
        judged: what is validated and returned: the averaged weights where the plan asks for them, else `net`.
    """

    def __init__(
        self, net: nn.Module, plan: TrainingPlan, device: str, team: Team = ALONE, regions: Regions = ()
    ) -> None:
        self.net, self._plan, self._device, self._team, self._regions = net, plan, device, team, regions
        self._precision = Precision.of(plan.amp, device)
        self._scaler = self._precision.scaler()
        self._optimizer = torch.optim.AdamW(
            net.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay, eps=plan.eps
        )
        self._average = AveragedWeights(net, plan.ema) if plan.ema else None
        if plan.compile:
            net.compile()
        self._parallel = team.wrap(net)

    @property
    def judged(self) -> nn.Module:
        return self.net if self._average is None else self._average.net

    def step(self, objective: Objective, images: Tensor, labels: Tensor, step: int) -> tuple[float, float]:
        """Update the weights from this process's share of a batch.

        Args:
            objective: gives the loss.
            images, labels: [N, C, *patch] and [N, 1, *patch], on any device.
            step: number of the step, from 0.

        Returns:
            Loss and mean foreground Dice of the whole batch, of all processes.
        """
        # Whatever the network draws (dropout in some) follows from seed, step and process, as the patches do.
        torch.manual_seed(hash((self._plan.seed, step, self._team.rank)) % 2**63)
        for group in self._optimizer.param_groups:
            group["lr"] = self._plan.rate_at(step)
        self._optimizer.zero_grad(set_to_none=True)
        parts = self._plan.accumulate
        loss: Tensor | None = None
        counts: Tensor | None = None
        for i, (x, y) in enumerate(zip(images.chunk(parts), labels.chunk(parts), strict=True)):
            batch = Batch(x.to(self._device, non_blocking=True), y.to(self._device, non_blocking=True), step)
            with no_sync(self._parallel, last=i == parts - 1):
                outcome = objective(self._forward, batch)
                self._scaler.scale(outcome.loss / parts).backward()  # type: ignore[no-untyped-call]
            part, seen = outcome.loss.detach() / parts, overlaps(outcome.logits.detach(), batch.labels, self._regions)
            loss, counts = (part, seen) if loss is None or counts is None else (loss + part, counts + seen)
        assert loss is not None and counts is not None
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(self.net.parameters(), self._plan.clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._average is not None:
            self._average.update(self.net, step)
        return float(self._team.mean(loss)), pooled_dice(self._team.sum(counts))

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        state = {
            "network_weights": self.net.state_dict(),
            "optimizer_state": self._optimizer.state_dict(),
            "scaler_state": self._scaler.state_dict(),
        }
        return state if self._average is None else {**state, "average": self._average.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that was saved.

        Raises:
            CheckpointError: it is of another network or recipe; the tensor is named.
        """
        check_same_network(self.net, state["network_weights"])
        try:
            self.net.load_state_dict(state["network_weights"])
            self._optimizer.load_state_dict(state["optimizer_state"])
            self._scaler.load_state_dict(state["scaler_state"])
            if self._average is not None:
                self._average.load_state_dict(state["average"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"the saved state is of another run: {str(error).splitlines()[0]}") from error

    def _forward(self, images: Tensor) -> Outputs:
        with self._precision.context():
            outputs: Outputs = self._parallel(images)
        return outputs


def check_same_network(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """That `weights` fit `net`.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape.
    """
    wanted = net.state_dict()
    for name in [*wanted, *weights]:
        if name not in weights or name not in wanted:
            there = "the plan's network" if name in wanted else "the checkpoint"
            raise CheckpointError(f"it is of another network than the plan's: `{name}` is only in {there}")
        if weights[name].shape != wanted[name].shape:
            raise CheckpointError(
                f"it is of another network than the plan's: `{name}` has shape {tuple(weights[name].shape)}, "
                f"{tuple(wanted[name].shape)} is needed"
            )
