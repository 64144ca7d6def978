"""The workers by the name that ``worker_type`` gives them. A worker is imported only when an event uses it."""

import importlib
import sys
from importlib.metadata import entry_points
from pathlib import Path

from runner.config import ENTRY_POINT_GROUP
from runner.errors import ConfigError
from runner.workers.base import BaseWorker

BUILT_IN = {
    "local": "runner.workers.local:LocalWorker",
    "conda": "runner.workers.conda:CondaWorker",
    "aws": "runner.workers.aws:AWSWorker",
    "dask": "runner.workers.dask:DaskWorker",
}


def load_worker(worker_type: str, *, beside: Path | None = None) -> type[BaseWorker]:
    """Import the worker class that ``worker_type`` names.

    Args:
        worker_type: a built-in name, the name of an entry point, or package.module:Class.
        beside: a folder whose modules can be imported too, so that a worker may lie beside its config.yml.

    Raises:
        ConfigError: there is no such module or class, it cannot be imported, or it is no BaseWorker.
    """
    target = BUILT_IN.get(worker_type) or _entry_point(worker_type) or worker_type
    module_name, _, class_name = target.partition(":")
    if not class_name:
        msg = (
            f"worker_type {worker_type} cannot run submissions in this version; use {', '.join(BUILT_IN)} "
            "or a worker of your own (package.module:Class)"
        )
        raise ConfigError(msg)
    if beside is not None and worker_type not in BUILT_IN and str(beside) not in sys.path:
        sys.path.append(str(beside))
    try:
        found: object = importlib.import_module(module_name)
        for part in class_name.split("."):
            found = getattr(found, part)
    except ImportError as error:
        msg = (
            f"worker_type {worker_type}: the module {module_name} cannot be imported: {error}; install it where "
            "ramp-cloud runs, or put it beside config.yml"
        )
        raise ConfigError(msg) from error
    except AttributeError as error:
        if module_name in sys.modules:
            msg = f"worker_type {worker_type}: {module_name} has no {class_name}; check the spelling"
            raise ConfigError(msg) from error
        raise _broken(worker_type, module_name, error) from error
    except Exception as error:
        raise _broken(worker_type, module_name, error) from error
    if not (isinstance(found, type) and issubclass(found, BaseWorker)):
        msg = (
            f"worker_type {worker_type}: {class_name} is not a subclass of runner.workers.base.BaseWorker; "
            "change its base class"
        )
        raise ConfigError(msg)
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        msg = f"worker_type {worker_type}: {class_name} lacks {', '.join(missing)}; see docs/workers.md"
        raise ConfigError(msg)
    return found


def _broken(worker_type: str, module_name: str, error: Exception) -> ConfigError:
    reason = f"{type(error).__name__}: {error}"
    return ConfigError(f"worker_type {worker_type}: importing {module_name} raises {reason}; mend the module")


def _entry_point(name: str) -> str | None:
    found = entry_points(group=ENTRY_POINT_GROUP, name=name)
    return next(iter(found)).value if found else None
