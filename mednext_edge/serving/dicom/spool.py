"""The queue on disk. Every step is one rename, so that a kill at any instant loses nothing and doubles nothing.

    incoming/KEY/slices/*.dcm   a series while it is being received
    ready/JOB/                  complete: waits for segmentation      (slices/, job.json)
    outbox/JOB/                 segmented: waits for its destinations (and result.dcm)
    done/JOB/, failed/JOB/      sent, or refused with the reason; removed after a while

KEY is a digest of the series' UIDs, JOB the key and a number; no file name says anything of a patient. An instance is
acknowledged to its sender only when it lies in `incoming` and the disk has confirmed it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import threading
import time
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from mednext_edge.bundle.swap import sync
from mednext_edge.errors import UsageError
from mednext_edge.task import Frozen

State = Literal["ready", "outbox", "done", "failed"]
STATES: tuple[State, ...] = ("ready", "outbox", "done", "failed")
SLICES, JOB, RESULT = "slices", "job.json", "result.dcm"


class Job(Frozen):
    """What is known of one series on its way.

    Attributes:
        name: of its folder.
        key: of its series.
        instances: digests of its SOP instance UIDs, sorted.
        created: seconds since the epoch when the series was complete.
        attempts: segmentations begun; one that kills the service each time is given up.
        sent: destinations that have acknowledged the result.
        reason: why it failed, in words that name no patient.
        kind: why it failed, in one word.
    """

    name: str
    key: str
    instances: tuple[str, ...]
    created: float
    attempts: int = 0
    sent: tuple[str, ...] = ()
    reason: str | None = None
    kind: str | None = None


class Full(Exception):
    """The spool may not take more; `what` says which limit."""


class Spool:
    """The queue of one service.

    Args:
        root: its folder; made when it is not there, readable by its owner alone.

    Raises:
        UsageError: another service uses this folder, or it cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.RLock()
        try:
            for name in ("incoming", "tmp", *STATES):
                (root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            self._guard = (root / "lock").open("w")
            fcntl.flock(self._guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"{root} is the spool of a service that runs; choose another --spool") from error
        except OSError as error:
            raise UsageError(f"{root} cannot be written: {error.strerror}; choose another --spool") from error
        self._recover()

    def close(self) -> None:
        self._guard.close()

    def _recover(self) -> None:
        """Clear what a kill left half written, and give senders of open series a full pause from now on."""
        for left in (self.root / "tmp").iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        for series in (self.root / "incoming").iterdir():
            os.utime(series / SLICES if (series / SLICES).is_dir() else series)

    # Receiving

    def temporary(self) -> Path:
        """A fresh file name on the spool's disk."""
        return self.root / "tmp" / uuid.uuid4().hex

    def add(self, file: Path, study: str, series: str, instance: str, max_slices: int, max_series: int) -> str:
        """Take a finished file in; a second copy of an instance replaces the first. Returns the series' key.

        Raises:
            Full: too many slices of this series, or too many series.
            OSError: the disk refuses.
        """
        key, name = digest(study, series), f"{digest(instance)}.dcm"
        sync(file)
        with self._lock:
            folder = self.root / "incoming" / key
            slices = folder / SLICES
            fresh = not folder.exists()
            if fresh and len(self.series()) >= max_series:
                raise Full("series")
            slices.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (slices / name).exists() and _count(slices) >= max_slices:
                raise Full("slices")
            file.rename(slices / name)
        for path in (slices, folder, self.root / "incoming") if fresh else (slices,):
            with contextlib.suppress(
                FileNotFoundError
            ):  # the series was completed meanwhile: a rename, already on disk
                sync(path)
        return key

    def series(self) -> dict[str, int]:
        """The series that are being received, and how many slices each has."""
        return {path.name: _count(path / SLICES) for path in _folders(self.root / "incoming")}

    def due(self, quiet_s: float, expect: int | None, held: Collection[str] = (), held_s: float = 0.0) -> list[str]:
        """Keys of the series that are complete: quiet for so long, or of the expected number of slices.

        Args:
            held: series whose sender is still there, and which are complete only when quiet for `held_s`.
        """
        now, found = time.time(), []
        for key, count in self.series().items():
            if not count:  # its folder is being made
                continue
            quiet = now - (self.root / "incoming" / key / SLICES).stat().st_mtime
            pause = max(quiet_s, held_s) if key in held else quiet_s
            # A clock that was set back must not hold a series for ever.
            if quiet >= pause or quiet < -pause or (expect is not None and count >= expect):
                found.append(key)
        return found

    def complete(self, key: str) -> Job | None:
        """Queue a series for segmentation; None where the very same slices are queued, sent or being sent already.

        Slices that come after a series was complete are joined with those that came before, as long as these are kept.
        """
        with self._lock:
            folder = self.root / "incoming" / key
            earlier = sorted(self._jobs_of(key), key=lambda found: found[1].created)
            for state, job in earlier:
                for old in _files(self.root / state / job.name / SLICES):
                    with contextlib.suppress(FileExistsError):
                        os.link(old, folder / SLICES / old.name)
            instances = tuple(sorted(path.stem for path in _files(folder / SLICES)))
            if any(state != "failed" and job.instances == instances for state, job in earlier):
                shutil.rmtree(folder)
                return None
            number = 1 + max((int(job.name.rpartition(".")[2]) for _, job in earlier), default=0)
            job = Job(name=f"{key}.{number}", key=key, instances=instances, created=time.time())
            self._write(folder, job)
            folder.rename(self.root / "ready" / job.name)
            sync(self.root / "ready")
            sync(self.root / "incoming")
            return job

    # Working

    def folder(self, state: State, job: Job) -> Path:
        return self.root / state / job.name

    def jobs(self, state: State) -> list[Job]:
        """The jobs in one state, oldest first."""
        found = [self._read(path) for path in _folders(self.root / state)]
        return sorted((job for job in found if job is not None), key=lambda job: (job.created, job.name))

    def save(self, state: State, job: Job) -> Job:
        """Write a changed job to the disk."""
        self._write(self.folder(state, job), job)
        return job

    def move(self, job: Job, source: State, target: State) -> None:
        """Put a job, as it was saved last, into another state."""
        with self._lock:
            self.folder(source, job).rename(self.folder(target, job))
            sync(self.root / target)
            sync(self.root / source)

    def purge(self, keep_s: float) -> int:
        """Remove what was sent or refused longer ago than that. Returns how many jobs were removed."""
        removed = 0
        for state in ("done", "failed"):
            for path in _folders(self.root / state):
                if time.time() - path.stat().st_mtime > keep_s:
                    with self._lock:
                        gone = path.rename(self.root / "tmp" / uuid.uuid4().hex)
                    shutil.rmtree(gone)
                    removed += 1
        return removed

    def counts(self) -> dict[str, int]:
        """Series or jobs in each state."""
        return {name: _count(self.root / name) for name in ("incoming", *STATES)}

    def size(self) -> int:
        """Bytes of all files; slices that two jobs share count twice."""
        total = 0
        for folder, _, names in os.walk(self.root):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    total += (Path(folder) / name).lstat().st_size
        return total

    def _jobs_of(self, key: str) -> Iterator[tuple[State, Job]]:
        for state in STATES:
            for path in _folders(self.root / state):
                job = self._read(path) if path.name.startswith(f"{key}.") else None
                if job is not None:
                    yield state, job

    def _read(self, folder: Path) -> Job | None:
        """None where the folder has just been moved on."""
        try:
            return Job.model_validate_json((folder / JOB).read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise UsageError(f"{folder / JOB} is no job of this version; move {folder} away by hand") from error

    def _write(self, folder: Path, job: Job) -> None:
        temporary = self.temporary()
        temporary.write_text(job.model_dump_json())
        sync(temporary)
        temporary.replace(folder / JOB)
        sync(folder)


def digest(*parts: str) -> str:
    """A name for a file that stands for these words and does not show them."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def disk_full(error: BaseException | None) -> bool:
    """Whether a full disk or quota stands among the causes of an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


def _folders(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.is_dir()]


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0
