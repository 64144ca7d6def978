"""The agent as it is sent to the workers: as text, which any Python reads, and not as compiled code."""

from functools import cache
from pathlib import Path
from typing import Any

from distributed import WorkerPlugin

_PARTS = ("host_files.py", "../preload_keeper.py", "host_runs.py", "host_kit.py", "agent.py")
# Evaluated by whoever unpickles; a space is filled once per message that holds it.
_FILL = '[exec(compile(text, name, "exec"), space) for name, text in sources]'
_AGENT = f'{_FILL} and space["Agent"](**settings)'


class Traveller(WorkerPlugin):
    """A worker plugin that becomes an ``Agent`` where it is unpickled. ``settings`` are the agent's keywords."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as an expression and the texts that it needs."""
        sources = [_source(part) for part in _PARTS]
        space = {"__name__": "ramp_cloud_agent"}
        return eval, (_AGENT, {"sources": sources, "space": space, "settings": self._settings})


class Errand:
    """A function of errands.py, which becomes it where it is unpickled."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.__name__ = name  # for Dask's log

    def __call__(self, *_: Any) -> None:
        """Do nothing: Dask asks that a task can be called, here where it never is."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as an expression and the text that it needs."""
        space = {"__name__": "ramp_cloud_errand"}
        return eval, (f'{_FILL} and space["{self._name}"]', {"sources": [_source("errands.py")], "space": space})


@cache
def _source(part: str) -> tuple[str, str]:
    """Return a module's name and text, without imports of ours: there its names stand in the same namespace."""
    text = (Path(__file__).parent / part).read_text(encoding="utf-8")
    return f"ramp-cloud/{part}", "\n".join(
        "" if line.startswith("from runner.") else line for line in text.splitlines()
    )
