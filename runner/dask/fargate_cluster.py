"""dask-cloudprovider's FargateCluster with commands that distributed still has, and with nothing left after its end.

FargateCluster starts containers with `dask-scheduler` and `dask-worker`, programs that distributed has no longer, and
forgets its task definitions until the process ends, when there is no loop any more to remove them by.
"""

import logging
from collections.abc import Callable
from typing import Any

from dask_cloudprovider.aws import FargateCluster
from dask_cloudprovider.aws.ecs import Scheduler, Task, Worker
from distributed.core import Status
from distributed.deploy.spec import SpecCluster

logger = logging.getLogger(__name__)


class _ByModule(Task):  # type: ignore[misc]  # dask-cloudprovider has no types
    """A container whose command is a module of the image's Python."""

    _overrides: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        program, *arguments = self._overrides["command"]
        module = f"distributed.cli.{program.replace('-', '_')}"
        self._overrides = {**self._overrides, "command": ["python", "-m", module, *arguments]}


class EventContainerScheduler(_ByModule, Scheduler):  # type: ignore[misc]  # dask-cloudprovider has no types
    """The scheduler's container."""


class EventContainerWorker(_ByModule, Worker):  # type: ignore[misc]  # dask-cloudprovider has no types
    """A worker's container."""


class _WithOurContainers(SpecCluster):
    """What ECSCluster calls when it has decided what to start."""

    async def _start(self) -> None:
        self.scheduler_spec["cls"] = EventContainerScheduler
        for spec in (self.new_spec, *self.worker_spec.values()):
            spec["cls"] = EventContainerWorker
        start: Any = super()._start
        await start()


class EventFargate(FargateCluster, _WithOurContainers):  # type: ignore[misc]  # dask-cloudprovider has no types
    """Containers of an event; takes what FargateCluster takes."""

    scheduler_task_definition_arn: str | None
    worker_task_definition_arn: str | None

    def sync(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a coroutine of the cluster's; after its end nothing, for what ECSCluster would still do at our exit."""
        run: Any = super().sync
        return None if self.status is Status.closed else run(func, *args, **kwargs)

    async def _start(self) -> None:
        try:
            await super()._start()
        except BaseException:
            if self.status is not Status.closed:  # it did not come to start a container
                await self._forget()
                self.status = Status.closed
            raise

    async def _close(self) -> None:
        close: Any = super()._close
        await close()
        await self._forget()

    async def _forget(self) -> None:
        for arn, forget in (
            (self.scheduler_task_definition_arn, self._delete_scheduler_task_definition_arn),
            (self.worker_task_definition_arn, self._delete_worker_task_definition_arn),
        ):
            if arn is None:
                continue
            try:
                await forget()
            except Exception as error:  # noqa: BLE001 - whatever AWS's client raises; what is left costs nothing
                logger.warning("a task definition is left on ECS, %s: %s", arn, error)
        self.scheduler_task_definition_arn = self.worker_task_definition_arn = None
