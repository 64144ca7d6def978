"""What ``./inv doctor`` and ``./inv sweep`` do, put together for an event: its config, its store, its worker."""

import ipaddress
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil

from runner import fence
from runner.config import EventConfig, load_config
from runner.errors import RampCloudError, UsageError
from runner.event import Event, open_event
from runner.findings import Finding, State, check_by, report, trouble
from runner.store import utc_now
from runner.workers import load_worker

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_MOST_HOURS = 1_000_000.0


def examine(
    path: Path,
    *,
    deployment_dir: Path | None = None,
    bring: Callable[[str], None],
    address: str | None = None,
    launch: bool = False,
) -> dict[str, Any]:
    """Look at everything that an event needs and return the object of ``doctor --json``. Changes nothing.

    Args:
        path: config.yml.
        deployment_dir: as for ``load_config``.
        bring: makes sure that a set of packages is there.
        address: from which AWS sees this machine, where its user knows it.
        launch: whether to launch an instance and end it again, to see what only an instance can show.

    Raises:
        UsageError: ``address`` is none.
    """
    seen_from = _address(address)
    try:
        config = load_config(path, deployment_dir=deployment_dir)
    except RampCloudError as error:
        return report(None, [Finding(name="config", state=State.WRONG, found=error.message)])
    findings = [Finding(name="config", state=State.OK, found=f"{config.path} has no mistakes")]
    findings += [Finding(name="config", state=State.WARNING, found=warning) for warning in config.warnings]
    with ExitStack() as stack:
        event: Event | None = None
        try:
            event = stack.enter_context(open_event(path, deployment_dir=deployment_dir))
            shown = config.database_url.render_as_string(hide_password=True)
            findings.append(Finding(name="database", state=State.OK, found=shown))
        except RampCloudError as error:
            findings.append(Finding(name="database", state=State.WRONG, found=trouble(error)))
        keys = {**config.worker_config(), "event_uid": event.store.uid if event else config.event_name}
        if config.worker.worker_type == "aws":
            bring("aws")
            findings += _aws(config, keys, seen_from, launch=launch)
        elif config.worker.worker_type == "dask":
            findings += _dask(keys, bring, launch=launch)
        else:
            findings.append(check_by("worker", lambda: _prepare(config, {**keys, "preload": False})))
            findings += _fence(keys)
    return report(config.event_name, findings)


def sweep_event(
    event: Event,
    *,
    bring: Callable[[str], None],
    owner: str | None = None,
    older_than_hours: float = 0.0,
    everything: bool = False,
    really: bool = False,
) -> dict[str, Any]:
    """Find what an event's owner has left in EC2, end it if ``really``, and return the object of ``sweep --json``.

    Raises:
        UsageError: the event does not run on EC2, or ``older_than_hours`` is no number of hours.
        AwsError: AWS does not answer, or does not allow it.
    """
    config: dict[str, Any] = event.config.worker_config()
    is_cluster = event.config.worker.worker_type == "dask" and config["cluster"] is not None
    if event.config.worker.worker_type != "aws" and not is_cluster:
        msg = (
            f"the event runs with worker_type {event.config.worker.worker_type}; give --config of one that runs on "
            "aws, or has a cluster there"
        )
        raise UsageError(msg)
    if not 0 <= older_than_hours <= _MOST_HOURS:
        msg = f"--older-than cannot be {older_than_hours:g}; give hours, such as 24"
        raise UsageError(msg)
    bring("aws")
    from runner.aws import sweep
    from runner.aws.cluster_keys import machine_keys
    from runner.aws.event import open_session
    from runner.aws.facts import facts_of
    from runner.aws.prices import Prices

    config = {**config, "event_uid": event.store.uid}
    facts = facts_of(machine_keys(config) if is_cluster else config, open_session)
    rules = sweep.Rules(
        owner=owner or facts.owner,
        event_id=event.store.uid,
        older_than=timedelta(hours=older_than_hours),
        everything=everything,
    )
    plan = sweep.look(
        facts.ec2,
        rules,
        attempts=lambda: {attempt.run: attempt.handle for attempt in event.store.open_attempts()},
        prices=Prices.load(facts.region, facts.config["prices"]),
        now=utc_now(),
    )
    return plan.as_json(sweep.carry_out(facts.ec2, plan) if really else None)


def _prepare(config: EventConfig, keys: dict[str, Any]) -> str:
    worker = load_worker(config.worker.worker_type, beside=config.deployment_dir)
    prepared = worker.prepare_event(keys)
    worker.close_event(prepared)
    found = [str(prepared[key]) for key in ("kit_dir", "data_dir", "ramp_test") if prepared.get(key)]
    return f"{config.worker.worker_type} can run the event: {', '.join(found)}"


def _fence(keys: dict[str, Any]) -> list[Finding]:
    """Tell what trainings on this machine are kept from; nothing for workers that know no fence."""
    if "fence" not in keys:
        return []
    if keys["fence"] is False:
        return [Finding(name="fence", state=State.WARNING, found=f"submissions are {fence.OPEN}")]
    why = fence.missing({"writable": [], "readable": [keys["kit_dir"], keys["data_dir"]]})
    if not why:
        found = "submissions see the kit, the data and their own folder, and no network"
        return [Finding(name="fence", state=State.OK, found=found)]
    state = State.WRONG if keys["fence"] else State.WARNING
    return [Finding(name="fence", state=state, found=f"this machine cannot have it whole: {why}", next="docs/fence.md")]


def _dask(keys: dict[str, Any], bring: Callable[[str], None], *, launch: bool) -> list[Finding]:
    bring("dask")
    from runner.dask import doctor  # here, since most events need nothing of it

    return list(doctor.findings(keys, launch=launch))


def _aws(config: EventConfig, keys: dict[str, Any], seen_from: Address | None, *, launch: bool) -> list[Finding]:
    from runner.aws.doctor import AwsDoctor  # here, since most events need nothing of it
    from runner.aws.event import open_session

    doctor = AwsDoctor(
        keys,
        connect=open_session,
        n_workers=config.dispatcher.workers_on(os.cpu_count() or 1),
        address=seen_from,
        local_addresses=_local_addresses(),
        try_launch=(lambda: _launch_once(keys)) if launch else None,
    )
    return list(doctor.findings())


def _launch_once(keys: dict[str, Any]) -> str:
    """Get an instance as an attempt would, look for the kit on it, and end it."""
    from runner.aws.event import open_event as open_ec2
    from runner.aws.tags import Request

    begun = time.monotonic()
    event = open_ec2(keys)
    try:
        request = Request(run=uuid.uuid4().hex, submission="doctor", attempt=1)
        machine = event.machines.acquire(request, threading.Event())
        try:
            seconds = time.monotonic() - begun
            image = event.image_of(machine)
        finally:
            event.machines.release(machine)
    finally:
        event.machines.close()
    return f"{image.kit} is on the image, and {image.ramp_test}; an instance was ready in {seconds:.0f} s"


def _address(text: str | None) -> Address | None:
    try:
        return None if text is None else ipaddress.ip_address(text)
    except ValueError as error:
        msg = f"--address cannot be {text!r}; give this machine's public address, such as 203.0.113.7"
        raise UsageError(msg) from error


def _local_addresses() -> list[Address]:
    """Return the addresses of this machine that others can reach."""
    families = {socket.AF_INET, socket.AF_INET6}
    found = [
        ipaddress.ip_address(entry.address.partition("%")[0])
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family in families
    ]
    return [address for address in found if not (address.is_loopback or address.is_link_local)]
