"""What the dispatcher has Dask do on a worker: call the agent there. Sent as text each time, so it is short."""

from __future__ import annotations

from typing import Any


async def hold(name: str, run: str, orders: dict[str, Any] | None, parcel: bytes | None) -> None:
    """Occupy a slot as long as a run trains. This is the Dask task; what it starts outlives it."""
    from distributed import get_worker

    agent: Any = get_worker().plugins[name]
    await agent.hold(run, orders, parcel)


async def ask(name: str, method: str, words: dict[str, Any], dask_worker: Any = None) -> Any:
    """Call a method of the agent; None when this worker has none. A worker that just came may still be getting it."""
    import asyncio

    for _ in range(100):
        if name in dask_worker.plugins:
            return await getattr(dask_worker.plugins[name], method)(**words)
        await asyncio.sleep(0.05)
    return None
