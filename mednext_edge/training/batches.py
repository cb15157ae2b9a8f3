"""Training batches, a pure function of (seed, step): a killed run goes on with the very patches it would have seen.

Each sample draws from (seed, step, place in the batch) alone, so that several processes share a batch without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mednext_edge.data.recipe import Prepared
from mednext_edge.errors import DataError
from mednext_edge.training.augment import change_intensities, draw_flips, draw_matrix, intensity_steps
from mednext_edge.training.patches import Sample, choose_centre, cut, reach, warp
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
        self._samples: list[Sample] = []
        for number, case in enumerate(cases):
            if case.labels is None:
                raise DataError("found a training image without labels; every training case needs a label map")
            self._samples.append(Sample.of(case.image, case.labels, np.random.default_rng([plan.seed, number])))
        self._plan, self._team = plan, team
        self._steps = intensity_steps(plan.patch)

    def notes(self, labels: Mapping[str, int], *, validated: bool) -> list[str]:
        """What is unusual about the cases.

        Raises:
            DataError: no case has any foreground.
        """
        seen = {value for sample in self._samples for value in sample.classes}
        if not seen:
            raise DataError(
                "no training case has a voxel of foreground; expected one at least. Look at the label maps of the "
                f"{len(self._samples)} cases: they are empty, at least where the images are not zero"
            )
        absent = [name for name, value in labels.items() if value and value not in seen]
        notes = [f"the label `{name}` is in no training case: the network cannot learn it" for name in absent]
        if len(self._samples) == 1:
            notes.append("there is one training case alone: the network will know no other")
        if not validated:
            notes.append("there is no case to validate on: the weights of the last epoch are taken")
        return notes

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
        rng = np.random.default_rng([plan.seed, step, place])
        # As nnU-Net: the last ones of each batch are on foreground, at least one of them.
        on_foreground = max(1, round(plan.batch * plan.foreground)) if plan.foreground > 0 else 0
        sample = self._samples[int(rng.integers(len(self._samples)))]
        centre = choose_centre(sample, plan.patch, foreground=place >= plan.batch - on_foreground, rng=rng)
        image, labels = sample.image, sample.labels[np.newaxis]
        if len(plan.patch) == 2:
            image, labels, centre = image[:, centre[0]], labels[:, centre[0]], centre[1:]
        matrix = draw_matrix(plan.patch, rng) if plan.augment else None
        if matrix is None:
            patch, target = cut(image, centre, plan.patch), cut(labels, centre, plan.patch)
        else:
            sides = reach(matrix, plan.patch)
            patch = warp(cut(image, centre, sides), matrix, plan.patch, mode="bilinear")
            target = warp(cut(labels, centre, sides), matrix, plan.patch, mode="nearest")
        if plan.augment:
            patch = change_intensities(patch, self._steps, rng)
            flips = [1 + axis for axis in draw_flips(plan.mirror_axes, rng)]
            patch, target = patch.flip(flips), target.flip(flips)
        return patch.contiguous(), target.contiguous()


class CategorySource(BatchSource):
    """The same of whole images with a class: labels are [N, 1] float32.

    Args:
        cases: with the class in every pixel of their label maps.
    """

    def _sample(self, step: int, place: int) -> tuple[Tensor, Tensor]:
        patch, target = super()._sample(step, place)
        return patch, target.amax().view(1)  # 0 stands where the patch reaches beyond the image


class _Steps(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """The batches of some steps, for worker processes to make."""

    def __init__(self, source: BatchSource, start: int, stop: int) -> None:
        self._source, self._start, self._length = source, start, max(0, stop - start)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._source.batch(self._start + index)
