"""What every task needs: errors as one message, packages on their first use, the event that config.yml names."""

import importlib
import importlib.util
import json
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from invoke import Exit

ROOT = Path(__file__).resolve().parents[1]
IRIS = ROOT / "examples" / "iris" / "config.yml"
IRIS_AWS = IRIS.with_name("aws.yml")
# What tells that a set of packages is there already, whoever installed it.
SETS = {
    "aws": ("boto3", "paramiko"),
    "dask": ("cryptography", "dask_cloudprovider", "distributed", "paramiko"),
    "infra": ("boto3", "paramiko", "pulumi", "pulumi_aws"),
    "rehearsal": ("asyncssh", "boto3", "memory_profiler", "moto", "paramiko"),
}

# Help of flags that many tasks have.
EVENT = {
    "config": "the event's config.yml (default: the bundled iris event)",
    "deployment_dir": "folder that relative paths start at (default: the config's own)",
}
EMULATED = {**EVENT, "emulated": "on an emulated AWS, kept in events/<event>/emulated; nothing is paid"}
LOOK = {**EVENT, "json_": "print one JSON object and nothing else"}


def front_door(body: Callable[..., Any]) -> Callable[..., Any]:
    """Turn expected errors into one message and an exit code: 1 failed, 2 wrong use."""

    @wraps(body)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        from runner.errors import RampCloudError

        try:
            return body(*args, **kwargs)
        except RampCloudError as error:
            raise Exit(error.for_organiser(), code=error.exit_code) from error
        except (Exit, KeyboardInterrupt, BrokenPipeError):
            raise
        except Exception as error:  # the front door: nothing may end without a word on what to do
            traceback.print_exc()
            msg = f"This is a defect of ramp-cloud ({error}); please report the lines above."
            raise Exit(msg, code=1) from error

    return guarded


def bring(requirements: str) -> None:
    """Install a further set of packages on its first use."""
    known = SETS.get(requirements, ())
    if known and all(importlib.util.find_spec(package) for package in known):
        return
    command = [sys.executable, str(ROOT / "inv"), "--bring", requirements]
    if subprocess.run(command, check=False).returncode:  # noqa: S603 - an argument list, never a shell
        msg = ""
        raise Exit(msg, code=1)  # inv has said what failed and what to do
    importlib.invalidate_caches()


def opened(config: str | None, deployment_dir: str | None) -> Any:
    """Return the event of a config.yml, the bundled one by default; a context manager."""
    from runner.event import open_event

    return open_event(path_of(config) or IRIS, deployment_dir=path_of(deployment_dir))


def path_of(text: str | None) -> Path | None:
    """Return what a flag says as a path, None where it was not given."""
    return Path(text) if text else None


def number(text: str, flag: str, kind: type[float]) -> Any:
    """Return what a flag says; invoke's own conversion would answer a slip with its traceback."""
    from runner.errors import UsageError

    try:
        return kind(text)
    except ValueError as error:
        msg = f"{flag} cannot be {text!r}; give a number"
        raise UsageError(msg) from error


def warn(config: Any) -> None:
    """Tell what in config.yml should be mended and does no harm yet."""
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def print_json(value: Any) -> None:
    """Print one JSON object and nothing else."""
    print(json.dumps(value, allow_nan=False, ensure_ascii=False))


def say(value: dict[str, Any], sentence: str, *, as_json: bool) -> None:
    """Answer with a sentence, or with one JSON object where ``--json`` asks for it."""
    if as_json:
        print_json(value)
    else:
        print(sentence)


@contextmanager
def account(
    config: str | None, deployment_dir: str | None, *, emulated: bool
) -> Iterator[tuple[str | None, str | None]]:
    """Yield config and deployment folder to work with: the given ones, or those of the event on an emulated AWS."""
    if not emulated:
        yield config, deployment_dir
        return
    bring("rehearsal")
    from runner.config import load_config
    from runner.layout import emulated_folder
    from runner.rehearsal.emulation import emulated as on_emulated_aws

    path = path_of(config) or IRIS_AWS
    event = load_config(path, deployment_dir=path_of(deployment_dir))
    folder = emulated_folder(event.deployment_dir, event.event_name)
    with on_emulated_aws(path, deployment_dir=path_of(deployment_dir), folder=folder, seed_image=False) as emulation:
        yield str(emulation.config), None
