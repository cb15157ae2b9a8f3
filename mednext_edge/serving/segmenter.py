"""One bundle, open for many clients: checked again before each volume, one volume at a time."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mednext_edge.bundle import verify
from mednext_edge.bundle.manifest import MANIFEST
from mednext_edge.data.volume import Volume
from mednext_edge.errors import IntegrityError, UsageError
from mednext_edge.runtime.engines import OpenOptions, open_engine
from mednext_edge.runtime.predictor import Predictor


class Cancelled(Exception):
    """The service was told to stop in the middle of a volume."""


class Segmenter:
    """Segments volumes with a bundle.

    Args:
        bundle: its folder; the digests are checked now and before each volume.
        options: device and threads.
        step, mirror: of the sliding window, as `Predictor` takes them.

    Attributes:
        manifest: of the bundle.
        digest: SHA-256 of the manifest, hex, which stands for every byte of the bundle.

    Raises:
        IntegrityError: the bundle is damaged.
        UsageError: a model that does not take one image of one channel.
        TargetUnavailableError: the engine's device or package is not here.
    """

    def __init__(
        self, bundle: Path, options: OpenOptions | None = None, *, step: float | None = None, mirror: bool = False
    ) -> None:
        self._bundle = bundle
        self.manifest = verify(bundle)
        self.digest = self._manifest_digest()
        if self.manifest.model.kind != "segmentation":
            raise UsageError(f"{bundle} answers with a {self.manifest.model.kind}; a service sends segmentations")
        channels = self.manifest.model.in_channels
        if channels != 1:
            raise UsageError(
                f"{bundle} takes images of {channels} channels; a service is sent one series, that is one channel. "
                "Use `mednext-edge predict` with NIfTI files"
            )
        self._lock = threading.Lock()
        self._session = open_engine(bundle, self.manifest, options or OpenOptions())
        self._step, self._mirror = step, mirror

    def check(self) -> None:
        """Raise IntegrityError unless the bundle on disk is, to the byte, the one that was opened."""
        verify(self._bundle)
        if self._manifest_digest() != self.digest:
            raise IntegrityError(f"{self._bundle} was replaced while it is being served; restart the service")

    def segment(self, volume: Volume, stop: Callable[[], bool] = lambda: False) -> NDArray[np.generic]:
        """Labels of a volume, [Z, Y, X] on its grid; waits for other volumes to be done.

        Raises:
            IntegrityError: the bundle has changed.
            DataError: the image does not fit the task.
            ExportError: the engine failed.
            Cancelled: `stop` answered True between two patches.
        """

        def progress(done: int, total: int) -> None:
            if stop():
                raise Cancelled

        with self._lock:
            self.check()
            predictor = Predictor(self._session, step=self._step, mirror=self._mirror, progress=progress)
            return predictor.predict(volume)

    def close(self) -> None:
        with self._lock:
            self._session.close()

    def _manifest_digest(self) -> str:
        return hashlib.sha256((self._bundle / MANIFEST).read_bytes()).hexdigest()
