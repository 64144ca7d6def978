"""Ends a scheduler that nobody uses. A preload of `dask scheduler`, which runs it on the cluster's own machine.

Standard library only: the file travels alone. Dask's own idle-timeout knows neither that a dispatcher is connected and
waits for submissions, nor that one has died and left tasks which no worker can take.
"""

import asyncio
import logging
import os
import time
from typing import Any

logger = logging.getLogger("distributed.scheduler")
IDLE = "RAMP_CLOUD_IDLE"  # variable with the seconds that a scheduler may be without use
_LOOK = 1.0  # seconds


def is_used(scheduler: Any) -> bool:
    """Whether a client is connected, or a worker holds a slot for a training."""
    return bool(scheduler.client_comms) or any(worker.processing for worker in scheduler.workers.values())


async def dask_setup(scheduler: Any) -> None:
    """Start to look; distributed calls it before the scheduler starts."""
    scheduler._ramp_cloud_limit = asyncio.ensure_future(_watch(scheduler, float(os.environ[IDLE])))  # noqa: SLF001, RUF100 - or the task would be collected


async def _watch(scheduler: Any, idle: float) -> None:
    used = time.monotonic()
    while time.monotonic() - used < idle:
        await asyncio.sleep(_LOOK)
        if is_used(scheduler):
            used = time.monotonic()
    logger.warning("no client and no training for %g s: closing", idle)
    await scheduler.close(reason="nobody uses it")
