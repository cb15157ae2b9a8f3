"""What a service says while it runs: one event a line, as `key=value` for people or as JSON, never of a patient.

Events carry counts, times, AE titles, kinds of faults and the spool's own keys. Nothing read out of an image or its
header is logged: no names, no UIDs, no dates, no descriptions.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

Value = str | int | float | bool | None
Emit = Callable[..., None]
"""emit(event, level="info", **fields): what the parts of a service call."""

# Text from the network is cut to this.
_LONGEST = 200


class EventLog:
    """Writes events to a stream, whole lines from any thread.

    Args:
        as_json: JSON lines on stdout; otherwise words on stderr.
        stream: another place.
    """

    def __init__(self, as_json: bool = False, stream: TextIO | None = None) -> None:
        self._json = as_json
        self._stream = stream or (sys.stdout if as_json else sys.stderr)
        self._lock = threading.Lock()

    def __call__(self, event: str, level: str = "info", **fields: Value) -> None:
        record: dict[str, Value] = {"time": datetime.now(UTC).isoformat(timespec="milliseconds")}
        record |= {"level": level, "event": event}
        record |= {key: value[:_LONGEST] if isinstance(value, str) else value for key, value in fields.items()}
        line = json.dumps(record) if self._json else _words(record)
        with self._lock:
            self._stream.write(line + "\n")
            self._stream.flush()


def _words(record: dict[str, Value]) -> str:
    head = f"{record['time']} {str(record['level']).upper():7} {record['event']}"
    rest = [f"{key}={json.dumps(value)}" for key, value in record.items() if key not in ("time", "level", "event")]
    return " ".join([head, *rest])
