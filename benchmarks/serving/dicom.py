"""A DICOM modality and its archive in one: series out by C-STORE, segmentation objects in."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from typing import Any

import numpy as np
from pydicom.uid import MRImageStorage, SegmentationStorage
from pynetdicom import AE, evt

from tests.data.dicom_series import make_slices

from .outcome import judge, references

KINDS = 4
"""Different series, so that a result under another patient's study is seen."""
TITLE, CALLED = "SOAK", "MEDNEXT"
ANSWER_S = 120
DOUBLE_S = 1.0
"""So long after a result another one would be seen."""


class Archive:
    """Takes segmentation objects, by study: SOP instance UID to its pixels.

    Attributes:
        port: where it listens.
        repeated: objects that came again under the same UID, which an archive holds once.
    """

    def __init__(self) -> None:
        self.repeated = 0
        self._changed = threading.Condition()
        self._objects: dict[str, dict[str, bytes]] = defaultdict(dict)
        entity = AE(ae_title=TITLE)
        entity.add_supported_context(SegmentationStorage)
        self._server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)])
        self.port = int(self._server.socket.getsockname()[1])

    def _store(self, event: Any) -> int:
        found = event.dataset
        with self._changed:
            objects = self._objects[str(found.StudyInstanceUID)]
            self.repeated += str(found.SOPInstanceUID) in objects
            objects[str(found.SOPInstanceUID)] = bytes(found.PixelData)
            self._changed.notify_all()
        return 0

    def wait(self, study: str) -> list[bytes]:
        """Pixels of all objects of a study, once there is one and another has had its time."""
        with self._changed:
            self._changed.wait_for(lambda: self._objects[study], ANSWER_S)
        time.sleep(DOUBLE_S)
        with self._changed:
            return list(self._objects[study].values())

    def close(self) -> None:
        self._server.shutdown()


class Modality:
    """Sends one of a few series under fresh UIDs and compares the object that comes back.

    Args:
        port: of a service on this machine, which is sent every series once.
        archive: where the service sends to.

    Raises:
        RuntimeError: it does not answer each with one object.
    """

    def __init__(self, port: int, archive: Archive) -> None:
        self._port, self._archive = port, archive
        generator = np.random.default_rng(0)
        self._series = [generator.integers(0, 1000, (8, 24 + kind, 28)).astype(np.int16) for kind in range(KINDS)]
        self._expected = references([self._answer(kind) for kind in range(KINDS)])

    def send(self, number: int) -> str:
        """One series; its outcome.

        Raises:
            ConnectionError: the service did not take it.
        """
        kind = number % KINDS
        return judge(self._answer(kind), self._expected[kind])

    def _answer(self, kind: int) -> list[bytes]:
        """The objects that came back."""
        slices = make_slices(self._series[kind])
        entity = AE(ae_title=TITLE)
        entity.add_requested_context(MRImageStorage)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = ANSWER_S
        association = entity.associate("127.0.0.1", self._port, ae_title=CALLED)
        if not association.is_established:
            raise ConnectionError("the service takes no association")
        for one in slices:
            # No status: the peer closed the association, or its answer did not come in time.
            status = association.send_c_store(one).get("Status")
            if status != 0:
                association.abort()
                raise ConnectionError(f"the service answered a slice with {status}")
        association.release()
        return self._archive.wait(str(slices[0].StudyInstanceUID))
