"""A DICOM modality and its archive: series out by dcmtk's storescu, segmentation objects in by pynetdicom.

Not pynetdicom (3.0.4) for both: under load an association's own thread may take the answer that `send_c_store` waits
for, and a series then stays without its end.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.uid import SegmentationStorage
from pynetdicom import AE, evt

from tests.data.dicom_series import make_slices, save_slices

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
        RuntimeError: it does not answer each with one object, or there is no storescu.
    """

    def __init__(self, port: int, archive: Archive) -> None:
        # Python packages bring programs of the same name into virtual environments.
        program = shutil.which("storescu", path="/usr/bin:/usr/local/bin:/bin")
        if program is None:
            raise RuntimeError("storescu is not installed (Debian package dcmtk)")
        self._port, self._archive, self._program = port, archive, program
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
        with tempfile.TemporaryDirectory() as folder:
            save_slices(Path(folder), slices)
            command = [self._program, "-aet", TITLE, "-aec", CALLED, "+sd", "127.0.0.1", str(self._port), folder]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ConnectionError(done.stderr.strip().splitlines()[-1] if done.stderr else str(done.returncode))
        return self._archive.wait(str(slices[0].StudyInstanceUID))
