"""``dask_scheduler: local``: a cluster on this machine for as long as the dispatcher lives, over TLS like any other.

Its scheduler runs in this process. Its workers are processes that hold slots and watch trainings, which are processes
of their own; they end with this process, however it ends, and the trainings go on until their lease is over.
"""

import logging
import math
import os
from collections.abc import Mapping
from typing import Any

import dask
from distributed import Client, LocalCluster, Nanny

from runner.dask.certificates import certificates_for
from runner.dask.cluster import connect_to
from runner.errors import WorkerError

_HOST = "127.0.0.1"
_SETTINGS: dict[str, object] = {
    # Nothing is told over plain HTTP, not even on the loopback.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    # A slot that became free is given away soon.
    "distributed.scheduler.work-stealing-interval": "100ms",
    # What Dask would set for its workers: numpy with one thread. Trainings have what the organiser's environment says.
    "distributed.nanny.pre-spawn-environ": {},
}
_PARENT = "__DASK_PARENT_PID"  # by which a worker process knows that it may change its title
# Ctrl-C goes to every process of a terminal. The dispatcher ends what runs, and needs the workers for that.
_DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"


class LocalDask:
    """A cluster in and under this process; see ``Cluster`` for the contract."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._cluster: LocalCluster | None = None

    def connect(self) -> Client:
        """Return a new client; the first call starts the cluster. See the contract."""
        certificates = certificates_for(self._config)
        assert certificates is not None  # noqa: S101 - for mypy: a local cluster always has some
        if self._cluster is None:
            self._cluster = _start(certificates.security("scheduler", "worker", "client"), self._config["n_workers"])
        return connect_to(self._cluster.scheduler_address, certificates.security("client"))

    def wants(self, slots: int) -> None:
        """Change nothing: there are as many slots as submissions can be under way at once."""

    def close(self, *, keep: bool) -> None:
        """End scheduler and workers; trainings that go on do so under their lease."""
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            cluster.close()


class _Discreet(Nanny):
    """Starts a worker and leaves the environment of this process as it was, which Dask would change for good."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        # A seed of hashes for all workers, which trainings would get too; what Dask needs it for is not used here.
        self.env = {name: value for name, value in self.env.items() if name not in self.pre_spawn_env}
        self.pre_spawn_env = {}

    async def instantiate(self) -> Any:
        """Start the worker process, or start it again."""
        try:
            return await super().instantiate()
        finally:
            os.environ.pop(_PARENT, None)


def _start(security: Any, slots: int) -> LocalCluster:
    processes = max(min(slots, os.cpu_count() or 1), 1)
    slots_each = math.ceil(slots / processes)
    try:
        with dask.config.set(_SETTINGS):
            return LocalCluster(
                host=_HOST,
                protocol="tls://",
                security=security,
                n_workers=processes,
                worker_class=_Discreet,
                threads_per_worker=slots_each,
                resources={"ramp": slots_each},
                memory_limit=0,  # trainings are processes of their own, with limits of their own
                dashboard_address=None,
                # The server of its pages is there all the same, with none, and is not to take a port that others want.
                scheduler_kwargs={"dashboard_address": f"{_HOST}:0"},
                silence_logs=logging.CRITICAL,
                preload=[_DEAF],
            )
    except (OSError, TimeoutError, RuntimeError) as error:
        msg = "the local Dask cluster cannot be started; look at this machine's memory and /tmp, then try again"
        raise WorkerError(msg, detail=str(error)) from error
