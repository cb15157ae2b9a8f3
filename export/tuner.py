"""The steps of one tuning, within one budget: forms of the up blocks, layers of INT8, threads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mednext_edge.export.targets import Job, Progress, in_int8
from mednext_edge.export.tune import Effort, Setting, Tuning, check_tunable, tuned
from mednext_edge.export.tune_cache import TuningCache
from mednext_edge.export.tune_layers import LayerTuning, tune_layers
from mednext_edge.export.tune_race import Watch
from mednext_edge.export.tune_threads import tune_threads
from mednext_edge.models.loaded import LoadedModel
from mednext_edge.runtime.threads import TUNING, ThreadTuning

if TYPE_CHECKING:
    from mednext_edge.quantize.plan import Plan

FORMS, FORMS_INT8, LAYERS = 0.6, 0.4, 0.7
"""Share of what is left that a step may take: the forms without INT8 and with it, the layers; the threads take all."""


class Tuner:
    """Chooses for one export by measurement; what a step leaves of its time is for the next ones.

    Args:
        model: before the export.
        setting: what is tuned for.
        effort: that it may take.
        progress: told of every step.
        cache: folder of earlier tunings; None is the user's.
        watch: what time is told by; None is this machine's.

    Raises:
        UsageError: nothing to choose for this target or network.
    """

    def __init__(
        self,
        model: LoadedModel,
        setting: Setting,
        effort: Effort,
        progress: Progress,
        *,
        cache: Path | None = None,
        watch: Watch | None = None,
    ) -> None:
        check_tunable(model, setting)
        self.setting, self.effort, self.progress = setting, effort, progress
        self.left = effort.seconds
        self.cache, self.watch = TuningCache(cache), watch or Watch()
        self._forms: Tuning | None = None
        self._layers: LayerTuning | None = None
        self._threads: ThreadTuning | None = None

    def forms(self, model: LoadedModel) -> LoadedModel:
        """The deploy form of the model with the fastest form of every up block."""
        start = self.watch.clock()
        share = FORMS_INT8 if self.effort.layers and in_int8(self.setting.precision) else FORMS
        deploy, self._forms = tuned(
            model,
            self.setting,
            seconds=share * self.left,
            progress=self.progress,
            cache=self.cache.folder,
            watch=self.watch,
        )
        self._spent(start)
        return deploy

    def layers(self, job: Job, plan: Plan) -> Mapping[str, str]:
        """Names of the plan's layers that are faster in float -> why; `tune_layers` describes the arguments."""
        if not self.effort.layers:
            return {}
        start = self.watch.clock()
        self._layers = tune_layers(
            self.setting.target,
            job,
            plan,
            seconds=LAYERS * self.left,
            progress=self.progress,
            cache=self.cache,
            watch=self.watch,
        )
        self._spent(start)
        return self._layers.reasons

    def threads(self, job: Job) -> None:
        """Find the number of threads that the job's engine is fastest with, if there is time to make it twice."""
        if self.left <= 0:
            return
        self._threads = tune_threads(
            self.setting.target, job, seconds=self.left, progress=self.progress, cache=self.cache, watch=self.watch
        )

    def write(self, folder: Path) -> None:
        """Put `tuning.json` into a bundle's folder; the forms must have been chosen."""
        assert self._forms is not None
        tuning = self._forms.model_copy(update={"layers": self._layers, "threads": self._threads})
        (folder / TUNING).write_text(tuning.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def _spent(self, start: float) -> None:
        self.left = max(0.0, self.left - (self.watch.clock() - start))
