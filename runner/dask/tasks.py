"""The tasks of a cluster that is not made for an event: its scheduler and its workers, here or over SSH."""

import signal
import sys
import threading
from pathlib import Path
from typing import Any

from invoke import Context, Exit, task

from runner.front_door import EVENT, bring, front_door, number, path_of

CLUSTER = {
    **EVENT,
    "config": "the event's config.yml, which names the scheduler",
    "port": "port that it listens on (default: scheduler as in config.yml, workers 8790)",
    "hosts": "run it on these machines over SSH in place of this one: [USER@]HOST[:PORT], comma separated",
    "python": "interpreter that has distributed (default: this one; on --hosts the same path)",
    "key": "private key for --hosts (default: that of ~/.ssh)",
    "known_hosts": "file with the host keys of --hosts (default: ~/.ssh/known_hosts)",
}


@task(name="dask-scheduler", help={**CLUSTER, "address": "address that it listens on (default: as in config.yml)"})
@front_door
def dask_scheduler(
    _: Context,
    config: str,
    deployment_dir: str | None = None,
    address: str | None = None,
    port: str = "",
    hosts: str = "",
    python: str | None = None,
    key: str | None = None,
    known_hosts: str = "~/.ssh/known_hosts",
) -> None:
    """Run the scheduler of an event's Dask cluster, here or on one other machine, until Ctrl-C."""
    bring("dask")
    from runner.config import load_config
    from runner.dask import launch
    from runner.errors import UsageError

    keys = load_config(config, deployment_dir=deployment_dir).worker_config()
    plan = launch.scheduler_plan(keys, address=address, port=number(port, "--port", int) if port else None)
    places = _places(hosts, python, key, known_hosts)
    if len(places) > 1:
        msg = "a cluster has one scheduler; name one machine with --hosts"
        raise UsageError(msg)
    _keep(plan, places, launch.firewall_rules(plan, keys))


@task(
    name="dask-worker",
    help={
        **CLUSTER,
        "address": "by which the scheduler reaches the workers (default: the one that leads to the scheduler)",
        "slots": "submissions that a machine trains at once (default: its cores)",
    },
)
@front_door
def dask_worker(
    _: Context,
    config: str,
    deployment_dir: str | None = None,
    address: str | None = None,
    port: str = "",
    slots: str = "",
    hosts: str = "",
    python: str | None = None,
    key: str | None = None,
    known_hosts: str = "~/.ssh/known_hosts",
) -> None:
    """Run workers of an event's Dask cluster, here or on other machines, until Ctrl-C."""
    bring("dask")
    from runner.config import load_config
    from runner.dask import launch

    keys = load_config(config, deployment_dir=deployment_dir).worker_config()
    plan = launch.worker_plan(
        keys,
        address=address,
        port=number(port, "--port", int) if port else None,
        slots=number(slots, "--slots", int) if slots else None,
        elsewhere=bool(hosts),
    )
    places = _places(hosts, python, key, known_hosts)
    _keep(plan, places, launch.firewall_rules(plan, keys, [place.name for place in places] if hosts else []))


def _places(hosts: str, python: str | None, key: str | None, known_hosts: str) -> list[Any]:
    from runner.dask.hosts import hosts_of
    from runner.dask.launch import Here

    if not hosts:
        return [Here(python)]
    known = Path(known_hosts).expanduser()
    return list(hosts_of(hosts, key=path_of(key), python=python or sys.executable, known_hosts=known))


def _keep(plan: Any, places: list[Any], rules: list[str]) -> None:
    """Keep a plan running until Ctrl-C or SIGTERM; what is said comes as it is said."""
    from runner.dask.launch import keep_all

    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda _number, _frame: stop.set())
    print("\n".join([*rules, "Ctrl-C ends it."]), flush=True)
    if failed := keep_all(plan, places, lambda line: print(line, flush=True), stop):
        msg = f"It could not run, or not any more, on {', '.join(failed)}."
        raise Exit(msg, code=1)
