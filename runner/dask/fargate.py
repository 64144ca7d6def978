"""A Dask cluster of containers on ECS Fargate, by dask-cloudprovider's FargateCluster, which is told everything.

Left to itself FargateCluster makes an ECS cluster, roles, a log group and a security group that is open to the world.
Here all of that is the stack's, and the network is private: the event must run on a machine of the VPC, since no SSH
leads to a container. See docs/dask.md for what of this was never run on AWS.
"""

import logging
import math
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distributed import Client, Security

from runner.aws.tags import DASK, belonging_tags
from runner.dask.certificates import certificates_for
from runner.dask.cluster import connect_to
from runner.dask.fargate_cluster import EventFargate
from runner.dask.programs import NO_DASHBOARD, PORT, TLS_SETTINGS
from runner.errors import ConfigError, WorkerError
from runner.stack import StackFileBroken, StackOutputs, read

logger = logging.getLogger(__name__)
_DEATH = 120  # seconds that a worker waits for a scheduler that is away
_OF_STACK = {  # keys under ``cluster``, and what the stack calls the same
    "ecs_cluster": "dask_cluster",
    "execution_role": "dask_execution_role",
    "task_role": "dask_task_role",
    "log_group": "dask_log_group",
}


def open_fargate(config: Mapping[str, Any]) -> "FargateDask":
    """Return the cluster that a worker's config describes under ``cluster``. Asks nothing of AWS yet."""
    return FargateDask(config)


def arguments(config: Mapping[str, Any], outputs: StackOutputs | None, security: Security) -> dict[str, Any]:
    """Return what FargateCluster is called with, so that it makes nothing but tasks and their definitions.

    Args:
        config: what workers get.
        outputs: of the event's stack, for what the config leaves out.
        security: the client's.

    Raises:
        ConfigError: something is neither in config.yml nor among the outputs.
    """
    cluster: dict[str, Any] = dict(config["cluster"])
    region = cluster["region_name"] or (outputs and outputs.region)
    is_here = outputs is not None and region == outputs.region
    for key, name in _OF_STACK.items():
        cluster[key] = cluster[key] or (getattr(outputs, name) if is_here else None)
    groups = [outputs.dask_security_group, outputs.dask_containers_group] if outputs and is_here else []
    groups = [cluster["dask_security_group"]] if cluster["dask_security_group"] else [each for each in groups if each]
    subnets = cluster["subnets"] or (sorted(outputs.subnets) if outputs and is_here else [])
    wanted = {**{key: cluster[key] for key in _OF_STACK}, "region_name": region}
    wanted |= {"dask_security_group": groups, "subnets": subnets}
    if missing := [key for key, value in wanted.items() if not value]:
        msg = (
            f"a cluster on Fargate also needs {', '.join(missing)} under cluster; set them, or `infra: dask: true` and "
            "run `./inv up`"
        )
        raise ConfigError(msg)
    event = config["event_name"]
    owner = cluster["owner"] or (outputs and outputs.owner) or config.get("event_uid") or event
    event_id = str(config.get("event_uid") or event)
    slots = cluster["slots_per_machine"]
    return {
        "image": cluster["container_image"],
        "cluster_arn": cluster["ecs_cluster"],
        "execution_role_arn": cluster["execution_role"],
        "task_role_arn": cluster["task_role"],
        "cloudwatch_logs_group": cluster["log_group"],
        "vpc": outputs.vpc if outputs and is_here else None,
        "subnets": subnets,
        "security_groups": groups,
        "fargate_use_private_ip": True,
        "environment": dict(TLS_SETTINGS),
        "fargate_spot": cluster["use_spot_instance"],
        "region_name": region,
        "scheduler_cpu": 1024,
        "scheduler_mem": 4096,
        "scheduler_port": PORT,
        "scheduler_timeout": f"{cluster['idle_minutes'] * 60:.0f} s",
        "scheduler_extra_args": [*_tls(cluster["container_tls_folder"], "scheduler"), *NO_DASHBOARD],
        "worker_cpu": cluster["cpu"],
        "worker_mem": cluster["memory_mb"],
        "worker_nthreads": slots,
        "worker_extra_args": [
            *_tls(cluster["container_tls_folder"], "worker"),
            *NO_DASHBOARD,
            f"--resources=ramp={slots}",
            f"--death-timeout={_DEATH}",
        ],
        "n_workers": max(cluster["min"], 1),
        "tags": {**belonging_tags(event=event, event_id=event_id, owner=str(owner)), DASK: "container"},
        "skip_cleanup": True,  # it would look through the whole account for what others may have left
        "security": security,
    }


class FargateDask:
    """See ``runner.dask.cluster.Cluster``. Containers end with the dispatcher, or by their limits after it has died.

    The next dispatcher starts a cluster of its own: what trained is interrupted, and tried again.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = {**config, "security": "auto"}
        self._cluster: Any = None
        self._lock = threading.Lock()
        self.patience = float(config["cluster"]["startup_minutes"]) * 60

    def connect(self) -> Client:
        """Return a new client; the first call starts the cluster. See the contract.

        Raises:
            WorkerError: it did not come up in time.
            ConfigError: something is missing.
        """
        certificates = certificates_for(self._config)
        assert certificates is not None  # noqa: S101 - for mypy: auto always has some
        security = certificates.security("client")
        with self._lock:
            if self._cluster is not None:
                try:
                    return connect_to(self._cluster.scheduler_address, security)
                except WorkerError as error:  # its idle limit does not know that we wait
                    logger.warning("the cluster on Fargate is started anew: %s", error.for_organiser())
                    self._cluster.close()
            self._cluster = self._start(arguments(self._config, self._outputs(), security))
            return connect_to(self._cluster.scheduler_address, security)

    def describe(self) -> str:
        """Say what the cluster would be made of; asks nothing of AWS.

        Raises:
            ConfigError: something is neither in config.yml nor among the stack's outputs.
        """
        given = arguments(self._config, self._outputs(), Security())
        return f"{given['image']} would run on {given['cluster_arn']}; nothing of it was looked at"

    def wants(self, slots: int) -> None:
        """Grow with what waits; containers that could be spared end with the cluster, since any may hold results."""
        cluster = self._config["cluster"]
        wanted = min(max(math.ceil(slots / cluster["slots_per_machine"]), cluster["min"]), cluster["max"])
        if self._cluster is not None and wanted > len(self._cluster.worker_spec):
            self._cluster.scale(wanted)

    def close(self, *, keep: bool) -> None:
        """End the containers, whatever they do; see the class."""
        with self._lock:
            cluster, self._cluster = self._cluster, None
        if cluster is not None:
            if keep:
                logger.warning("containers on Fargate do not outlive the dispatcher; what they train is tried again")
            cluster.close()

    def _start(self, given: Mapping[str, Any]) -> Any:
        try:
            with warnings.catch_warnings():
                # It takes every scheduler with TLS for one without.
                warnings.filterwarnings("ignore", message=".*tls configuration.*")
                made: Any = EventFargate
                return made(**given)
        except Exception as error:  # AWS's client raises classes of its own
            msg = "the cluster on Fargate did not come up; look at its log group, at the image, and at your rights"
            raise WorkerError(msg, detail=f"{type(error).__name__}: {error}") from error

    def _outputs(self) -> StackOutputs | None:
        config = self._config
        file = config["cluster"]["stack_outputs"]
        path = Path(file or Path(config["deployment_dir"], "events", config["event_name"], "stack.json"))
        try:
            return read(path)
        except StackFileBroken as error:
            raise ConfigError(str(error)) from error


def _tls(folder: str, role: str) -> list[str]:
    return [f"--tls-ca-file={folder}/ca.pem", f"--tls-cert={folder}/{role}.pem", f"--tls-key={folder}/{role}-key.pem"]
