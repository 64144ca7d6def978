"""The cluster that an event's submissions run on, whichever it is: local, existing, or made for the event."""

import importlib
import logging
import ssl
from collections.abc import Mapping
from typing import Any, Protocol, cast

from distributed import Client, Security
from distributed.comm.core import CommClosedError

from runner.dask.certificates import certificates_for
from runner.errors import ConfigError, WorkerError

CONNECT_SECONDS = 15.0
_PROVIDERS = {"ec2": "runner.dask.ec2:open_ec2", "fargate": "runner.dask.fargate:open_fargate"}
_LOGGERS = ("distributed", "distributed.client", "distributed.gc", "tornado.application", "asyncio")


class Cluster(Protocol):
    """A Dask cluster as an event sees it. Making one does no I/O; threads may call it one at a time."""

    def connect(self) -> Client:
        """Return a new client of the scheduler, which the caller closes. What has to be started first is.

        Raises:
            WorkerError: the scheduler cannot be reached now; the same may work later.
            ConfigError: it never will as config.yml and the certificates are.
        """

    def wants(self, slots: int) -> None:
        """Say how many submissions are under way or wait. A cluster that was made for the event grows to it."""

    def close(self, *, keep: bool) -> None:
        """Let go of the cluster. Can be called again.

        Args:
            keep: whether trainings go on, which the next dispatcher will look for.
        """


def open_cluster(config: Mapping[str, Any]) -> Cluster:
    """Return the cluster that a worker's config names; nothing is read, started or reached before ``connect``."""
    quiet()
    if config.get("cluster"):
        module, _, function = _PROVIDERS[config["cluster"]["provider"]].partition(":")
        return cast(Cluster, getattr(importlib.import_module(module), function)(config))
    if config["dask_scheduler"] == "local":
        from runner.dask.local import LocalDask  # here, since its parts of distributed take a while to import

        return LocalDask(config)
    return ExistingCluster(config)


def quiet() -> None:
    """Keep distributed from logging what we notice and tell ourselves: connections that break, workers that go."""
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # a client that has gone is critical to it


class ExistingCluster:
    """A cluster that somebody else started, and ends."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def connect(self) -> Client:
        """Return a new client; see the contract."""
        certificates = certificates_for(self._config, make=False)
        return connect_to(self._config["dask_scheduler"], certificates.security("client") if certificates else None)

    def wants(self, slots: int) -> None:
        """Change nothing: it is as large as its owner made it."""

    def close(self, *, keep: bool) -> None:
        """Leave it as it is."""


def connect_to(address: str, security: Security | None, *, seconds: float = CONNECT_SECONDS) -> Client:
    """Return a client of a scheduler.

    Args:
        address: tls://HOST:PORT or tcp://HOST:PORT.
        security: certificates; None for tcp://.
        seconds: for the connection.

    Raises:
        WorkerError: nothing answers, or it is no scheduler.
        ConfigError: it answers and one side refuses the other's certificate.
    """
    try:
        return Client(address, security=security, timeout=seconds, set_as_default=False, name="ramp-cloud")
    except (OSError, TimeoutError, CommClosedError) as error:
        raise _in_words(address, error) from error


def _in_words(address: str, error: BaseException) -> WorkerError | ConfigError:
    """Return why a scheduler cannot be used, from what lies under distributed's own error."""
    causes: list[BaseException] = [error]
    while (further := causes[-1].__cause__ or causes[-1].__context__) is not None and further not in causes:
        causes.append(further)
    said = "; ".join(dict.fromkeys(filter(None, (str(cause) or type(cause).__name__ for cause in causes))))
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        msg = (
            f"the Dask scheduler at {address} shows a certificate that this event does not trust; start it with the "
            "event's own certificates (`./inv dask-scheduler`), or name its authority under `security`"
        )
        return ConfigError(msg, detail=said)
    if any(isinstance(cause, ssl.SSLError) for cause in causes) or "SSL" in said or "alert" in said:
        msg = (
            f"the Dask scheduler at {address} does not speak TLS with us: it speaks plain tcp, or refuses our "
            "certificate; start it with the event's own certificates (`./inv dask-scheduler`), or mend `security`"
        )
        return ConfigError(msg, detail=said)
    msg = (
        f"no Dask scheduler answers at {address}; start it (`./inv dask-scheduler`), check dask_scheduler, and that "
        "the firewall between lets this machine in on that port"
    )
    return WorkerError(msg, detail=said)
