"""Dask clusters for tests: a scheduler and workers as processes of their own, over TLS, on loopback addresses."""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distributed import Client

from runner.dask.certificates import event_certificates
from runner.dask.cluster import Cluster, ExistingCluster, quiet
from runner.errors import WorkerError

_PATIENCE = 60.0
_QUICK = {
    "DASK_DISTRIBUTED__SCHEDULER__REUSE_BROADCAST_COMM": "true",
    "DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING_INTERVAL": "100ms",
    "DASK_DISTRIBUTED__ADMIN__LOW_LEVEL_LOG_LENGTH": "100",
}


class Processes:
    """A cluster whose parts can be killed and started again.

    Args:
        folder: for certificates, logs, and what each host has for itself.
        address: of the scheduler, a loopback address.
    """

    def __init__(self, folder: Path, *, address: str = "127.0.0.1") -> None:
        quiet()
        self.folder = folder
        self.host = address
        with socket.socket() as free:
            free.bind((address, 0))
            self.port = free.getsockname()[1]
        self.address = f"tls://{address}:{self.port}"
        self._certificates = event_certificates(folder / "tls", now=datetime.now(UTC))
        self.scheduler: subprocess.Popen[bytes] | None = None
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self._numbers = itertools.count()

    @property
    def cluster(self) -> ExistingCluster:
        """The cluster as an event sees it."""
        return ExistingCluster(self.keys)

    @property
    def keys(self) -> dict[str, Any]:
        """The keys of an event's config that lead to it."""
        files = self._certificates.of("client")
        return {
            "dask_scheduler": self.address,
            "security": {name: str(getattr(files, name)) for name in ("ca", "cert", "key")},
        }

    def start_scheduler(self) -> None:
        """Start it, at the same address each time."""
        self.scheduler = self._start("scheduler", "--host", f"tls://{self.host}", "--port", str(self.port))

    def start_worker(
        self,
        name: str,
        *,
        address: str = "127.0.0.1",
        slots: int = 1,
        threads: int = 0,
        plain: bool = False,
        preload: str = "",
    ) -> Path:
        """Start a worker; returns the folder that it has for itself, its home. A second start is the same host.

        Args:
            name: of the worker and its host.
            address: a loopback address.
            slots: how many submissions at once.
            threads: of the worker; 0 is as many as slots.
            plain: whether it is a worker that knows nothing of ramp-cloud's resource.
            preload: code that it runs at its start.
        """
        home = self.folder / name
        (home / "scratch").mkdir(parents=True, exist_ok=True)
        options = [
            "--host",
            address,
            "--nthreads",
            str(threads or slots),
            "--memory-limit",
            "0",
            "--no-nanny",
            "--name",
        ]
        options += [f"{name}-{next(self._numbers)}", "--local-directory", str(home / "scratch")]
        options += [] if plain else ["--resources", f"ramp={slots}"]
        options += ["--preload", preload] if preload else []
        self.workers[name] = self._start("worker", self.address, *options, HOME=str(home))
        return home

    def wait_for_workers(self, count: int) -> None:
        """Return when so many are there."""
        with self.client() as client:
            client.wait_for_workers(count, timeout=_PATIENCE)

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        """Open a client of one's own."""
        give_up = time.monotonic() + _PATIENCE
        while True:
            try:
                client = self.cluster.connect()
                break
            except WorkerError:
                if time.monotonic() > give_up:
                    raise
        with client:
            yield client

    def kill(self, process: subprocess.Popen[bytes] | None) -> None:
        """End a part without a word."""
        if process is not None:
            process.kill()
            process.wait()

    def close(self) -> None:
        """End everything."""
        for process in (*self.workers.values(), self.scheduler):
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGCONT)
                self.kill(process)

    def _start(self, role: str, *options: str, **environment: str) -> subprocess.Popen[bytes]:
        files = self._certificates.of(role)
        tls = ["--tls-ca-file", str(files.ca), "--tls-cert", str(files.cert), "--tls-key", str(files.key)]
        command = [sys.executable, "-m", f"distributed.cli.dask_{role}", *options, "--no-dashboard", *tls]
        with (self.folder / f"{role}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **_QUICK, **environment},
                process_group=0,
            )


class Wire:
    """A loopback port that leads to another one, and can be cut: what is sent then goes nowhere, and nobody is told.

    Once it is whole again new connections pass; those from before are closed, as a system does which gave them up.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._cut = threading.Event()
        self._open: list[socket.socket] = []
        self._ended: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        """Swallow everything from now on."""
        self._cut.set()

    def mend(self) -> None:
        """Be a wire again."""
        self._end_all()
        self._cut.clear()

    def close(self) -> None:
        """End."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._end_all()
        for thread in self._threads:
            thread.join()
        for connection in (self._listener, *self._ended):
            connection.close()

    def _end_all(self) -> None:
        connections, self._open = self._open, []
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._ended += connections

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                self._open += [near, far]
                for ends in ((near, far), (far, near)):
                    self._threads.append(threading.Thread(target=self._pass_on, args=ends, daemon=True))
                    self._threads[-1].start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if not self._cut.is_set():
                    sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


class Shared:
    """A cluster that many sessions use one after another: none of them ends it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def connect(self) -> Client:
        """Return a new client."""
        return self._cluster.connect()

    def wants(self, slots: int) -> None:
        """Change nothing."""

    def close(self, *, keep: bool) -> None:
        """Change nothing."""


def worker_keys(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a worker's config that a Dask event adds to those of a local one."""
    return {
        "worker_kit_dir": keys["kit_dir"],
        "worker_data_dir": keys["data_dir"],
        "dask_scheduler": None,
        "security": None,
        "insecure": False,
        "cluster": None,
        "n_workers": 2,
        "conda_env": None,
    }


def until(holds: Callable[[], Any], patience: float = _PATIENCE) -> Any:
    """Return what something that no event tells of gives once it is true."""
    give_up = time.monotonic() + patience
    while not (found := holds()):
        assert time.monotonic() < give_up, "it did not come to that"
        time.sleep(0.02)
    return found
