"""What an event asks of its cluster: one slot per submission."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from distributed import Future

LARGEST_PARCEL = 256 * 1024  # bytes of a submission that travel with its task; larger ones follow once there is a slot


@dataclass(kw_only=True, eq=False)
class Claim:
    """One submission's slot. Changed by the session; ``ring`` is called after each change, from any thread.

    Args:
        run: id of the attempt.
        orders: what the agent needs to start it; None for one that was started before.
        parcel: its archive, when it is small.
        ring: wakes whoever waits for it.

    Attributes:
        address: of a worker process on the host that has the slot; empty while it waits, or is out of reach.
        host: that has the slot, by the agent's name for it.
        is_started: whether its training was started there.
        is_over: whether it needs its slot no longer.
        error: why it could not be started, as the agent said.
    """

    run: str
    orders: dict[str, Any] | None
    parcel: bytes | None
    ring: Callable[[], None]
    address: str = ""
    host: str = ""
    is_started: bool = False
    is_over: bool = False
    error: dict[str, Any] = field(default_factory=dict)
    future: "Future[None] | None" = None
    asked: int = 0  # how often the scheduler was asked for it

    def let_go(self) -> None:
        """Ask the scheduler to forget the task, if there is one."""
        future, self.future = self.future, None
        if future is not None:
            future.release()
