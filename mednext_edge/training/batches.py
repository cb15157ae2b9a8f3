"""Training batches, a pure function of (seed, step): a killed run goes on with the very patches it would have seen.

Each sample draws from (seed, step, place in the batch) alone, so that several processes share a batch without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor
from torch.utils.data import DataLoader

from mednext_edge.data.recipe import Prepared
from mednext_edge.errors import DataError
from mednext_edge.training.augment import augmentation
from mednext_edge.training.plan import TrainingPlan
from mednext_edge.training.team import ALONE, Team


class BatchSource:
    """Draws augmented patches from prepared cases.

    Args:
        cases: training images with labels, after preprocessing; they stay in memory. Of a 2-D patch's cases
            each sample is one slice.
        plan: patch, batch size, augmentation, seed, and the processes that prepare batches (`workers`).
        team: whose share of each batch is drawn.

    Raises:
        DataError: no case, or a case without labels.
    """

    def __init__(self, cases: Sequence[Prepared], plan: TrainingPlan, team: Team = ALONE) -> None:
        if not cases:
            raise DataError("found no training case; expected at least one image with labels")
        self._samples: list[dict[str, Tensor]] = []
        for case in cases:
            if case.labels is None:
                raise DataError("found a training image without labels; every training case needs a label map")
            label = torch.from_numpy(case.labels.astype(np.float32))[None]
            self._samples.append({"image": torch.from_numpy(case.image), "label": label})
        self._has_foreground = [bool((s["label"] > 0).any()) for s in self._samples]
        self._plan, self._team = plan, team
        self._pipelines = {flag: augmentation(plan, foreground=flag) for flag in (False, True)}

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """This process's share of a batch: images [N, C, *patch] and class indices [N, 1, *patch], both float32."""
        each = self._plan.batch // self._team.size
        drawn = [self._sample(step, place) for place in range(self._team.rank * each, (self._team.rank + 1) * each)]
        images, labels = zip(*drawn, strict=True)
        return torch.stack(images), torch.stack(labels)

    def stream(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of steps start .. stop-1, the next ones prepared while the current one is used."""
        if self._plan.workers:
            yield from DataLoader(
                _Steps(self, start, stop),
                batch_size=None,
                num_workers=self._plan.workers,
                pin_memory=torch.cuda.is_available(),
            )
            return
        with ThreadPoolExecutor(max_workers=1) as pool:
            ahead = pool.submit(self.batch, start) if start < stop else None
            for step in range(start, stop):
                assert ahead is not None
                current = ahead.result()
                ahead = pool.submit(self.batch, step + 1) if step + 1 < stop else None
                yield current

    def _sample(self, step: int, place: int) -> tuple[Tensor, Tensor]:
        """One patch: image [C, *patch] and class indices [1, *patch]."""
        plan = self._plan
        rng = np.random.RandomState(np.array([plan.seed, step, place], dtype=np.uint32))
        # As nnU-Net: the last ones of each batch are on foreground, at least one of them.
        on_foreground = max(1, round(plan.batch * plan.foreground)) if plan.foreground > 0 else 0
        index = int(rng.randint(len(self._samples)))
        wanted = place >= plan.batch - on_foreground and self._has_foreground[index]
        pipeline = self._pipelines[wanted]
        pipeline.set_random_state(seed=int(rng.randint(2**31 - 1)))
        sample = self._samples[index]
        out = pipeline(dict(sample) if len(plan.patch) == 3 else _slice(sample, wanted, rng))
        patch = out[0] if isinstance(out, list) else out
        return _plain(patch["image"]), _plain(patch["label"]).round()


class _Steps(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """The batches of some steps, for worker processes to make."""

    def __init__(self, source: BatchSource, start: int, stop: int) -> None:
        self._source, self._start, self._length = source, start, max(0, stop - start)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._source.batch(self._start + index)


def _slice(sample: dict[str, Tensor], foreground: bool, rng: np.random.RandomState) -> dict[str, Tensor]:
    """One slice of [C, Z, Y, X], of those with foreground if asked for."""
    slices = torch.arange(sample["label"].shape[1])
    if foreground:
        slices = slices[(sample["label"] > 0).any(-1).any(-1)[0]]
    z = int(slices[int(rng.randint(len(slices)))])
    return {name: tensor[:, z] for name, tensor in sample.items()}


def _plain(x: Tensor) -> Tensor:
    return (x.as_tensor() if isinstance(x, MetaTensor) else x).float().contiguous()
