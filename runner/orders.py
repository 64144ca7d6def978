"""What supervise.py is told of the fence around a training, made from the keys of config.yml; see fence.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner import fence

_MEGABYTE = 1_000_000


def fence_orders(
    config: Mapping[str, Any], *, writable: Sequence[Path], readable: Sequence[Path], hidden: Sequence[Path] = ()
) -> dict[str, Any]:
    """Return the part of a supervisor's orders that is about the fence.

    Args:
        config: the worker's keys.
        writable: the folders of the submission.
        readable: what its training reads, beside the system, its Python's environment, and ``fence_readable``.
        hidden: what it must not see although it may lie in something readable.
    """
    if config.get("fence") is False:
        return {"notice": fence.OPEN}
    return {
        "fence": {
            "writable": [str(path) for path in writable],
            "readable": [str(path) for path in (*readable, *config.get("fence_readable", ()))],
            "hidden": [str(path) for path in hidden],
            "processes": config.get("max_processes", 1000),
            "scratch": int(config["max_output_mb"] * _MEGABYTE),
            "strict": bool(config.get("fence")),
        }
    }
