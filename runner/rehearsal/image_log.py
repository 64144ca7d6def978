"""The log that a build of Image Builder writes to the emulated CloudWatch, line by line while it runs."""

import threading
import time
from typing import Any

from moto.logs.models import LogsBackend, logs_backends

from runner.rehearsal.account import ACCOUNT


class ImageLog:
    """One build's log stream; it and its group come to be with the first line. May be used from many threads.

    Args:
        lock: held for what is done in moto.
        group: log group, such as ``/aws/imagebuilder/iris``.
        stream: ``<version>/<build>``.
        late: seconds until anything of it can be seen; ``inf`` for never.
    """

    def __init__(self, lock: threading.RLock, region: str, group: str, stream: str, *, late: float = 0.0) -> None:
        self._lock = lock
        self._region, self._group, self._stream = region, group, stream
        self._visible = time.monotonic() + late
        self._waiting: list[dict[str, Any]] = []
        self._timer = threading.Timer(late, self._write) if 0 < late < float("inf") else None
        if self._timer:
            self._timer.daemon = True
            self._timer.start()

    def line(self, text: str) -> None:
        """Write one line."""
        with self._lock:
            # CloudWatch takes no empty messages.
            self._waiting.append({"timestamp": int(time.time() * 1000), "message": text or " "})
            if time.monotonic() >= self._visible:
                self._write()

    def close(self) -> None:
        """Write nothing any more, also of what is late."""
        if self._timer:
            self._timer.cancel()

    def _write(self) -> None:
        with self._lock:
            events, self._waiting = self._waiting, []
            if not events:
                return
            backend: LogsBackend = logs_backends[ACCOUNT][self._region]
            if self._group not in backend.groups:
                backend.create_log_group(self._group, {})
            backend.ensure_log_stream(self._group, self._stream)
            backend.put_log_events(self._group, self._stream, events)
