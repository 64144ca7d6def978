"""What doctor says of a Dask cluster: of one that is right, and of each thing that can be wrong with it."""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from runner.checkup import examine
from runner.dask.certificates import event_certificates
from tests.dask_clusters import Processes
from tests.event_folder import EventFolder, make_environment


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Return a cluster over TLS on two hosts that share no folder: one with three slots, a plain one with one."""
    cluster = Processes(tmp_path_factory.mktemp("hosts"), address="127.0.0.6")
    try:
        cluster.start_scheduler()
        for name, slots in (("one", 3), ("other", 1)):
            home = cluster.start_worker(name, address="127.0.0.6", slots=slots, plain=slots == 1)
            make_environment(home / "environment")
        cluster.wait_for_workers(2)
        yield cluster
    finally:
        cluster.close()


def event_on(cluster: Processes, folder: Path, **keys: Any) -> EventFolder:
    """Return an event whose kit is on every host of a cluster, in its home."""
    made = {**cluster.keys, "remote_ramp_kit_folder": "~/kit", "remote_ramp_data_folder": "~/kit"}
    event = EventFolder(folder, worker_type="dask", **{**made, **keys})
    event.keys["python"] = "~/environment/bin/python"
    for name in cluster.workers:
        shutil.rmtree(cluster.folder / name / "kit", ignore_errors=True)
        shutil.copytree(event.kit, cluster.folder / name / "kit")
    return event


def said(event: EventFolder, **how: Any) -> dict[str, tuple[str, str]]:
    """Return what doctor says: name of each check to its state and its words."""
    report = examine(event.config, bring=lambda _: None, **how)
    return {check["name"]: (check["state"], check["found"]) for check in report["checks"]}


def test_a_cluster_that_is_right_is_told_host_by_host(hosts: Processes, tmp_path: Path) -> None:
    found = said(event_on(hosts, tmp_path / "event"))
    assert {name: state for name, (state, _) in found.items()} == dict.fromkeys(
        ("config", "database", "certificates", "scheduler", "workers"), "ok"
    )
    assert found["scheduler"][1] == f"{hosts.address} answers and has 2 workers"
    first, *lines = found["workers"][1].splitlines()
    assert first == "4 slots on 2 hosts"
    assert len(lines) == 2
    for line, slots in zip(sorted(lines, key=lambda line: "3 slots" in line), ("1 slot,", "3 slots,"), strict=True):
        assert line.startswith("tls://127.0.0.6:")
        assert slots in line
        assert f"distributed {version('distributed')}, ramp-workflow " in line
        assert ", kit problem.py " in line


def test_a_host_without_the_kit_is_named(hosts: Processes, tmp_path: Path) -> None:
    event = event_on(hosts, tmp_path / "event")
    shutil.rmtree(hosts.folder / "other" / "kit")
    state, words = said(event)["workers"]
    assert state == "wrong"
    first, second, *more = words.splitlines()
    assert first.endswith("cannot run this event's submissions; mend or stop them:")
    assert f"there is no problem.py in {hosts.folder / 'other' / 'kit'}" in second
    assert str(hosts.folder / "one") not in words
    assert more == []


def test_a_host_with_another_kit_is_named(hosts: Processes, tmp_path: Path) -> None:
    event = event_on(hosts, tmp_path / "event")
    with (hosts.folder / "one" / "kit" / "problem.py").open("a") as problem:
        problem.write("\n# another edition\n")
    state, words = said(event)["workers"]
    assert state == "wrong"
    assert len(words.splitlines()) == 2
    assert "the kit's commit or problem.py is problem.py " in words


def test_a_wrong_certificate_is_told(hosts: Processes, tmp_path: Path) -> None:
    files = event_certificates(tmp_path / "strange", now=datetime.now(UTC)).of("client")
    security = {"ca": str(files.ca), "cert": str(files.cert), "key": str(files.key)}
    found = said(event_on(hosts, tmp_path / "event", security=security))
    assert found["certificates"][0] == "ok"  # they are in order, and somebody else's
    state, words = found["scheduler"]
    assert state == "wrong"
    assert "shows a certificate that this event does not trust" in words
    assert "workers" not in found


def test_certificates_that_are_not_there_are_told_first(hosts: Processes, tmp_path: Path) -> None:
    found = said(event_on(hosts, tmp_path / "event", security="auto"))
    assert found["certificates"][0] == "wrong"
    assert "has no certificate with its key" in found["certificates"][1]
    assert "scheduler" not in found
    assert not (tmp_path / "event" / "events" / "toy_event" / "tls").exists(), "doctor makes none"


def test_a_scheduler_without_workers_is_told(tmp_path: Path) -> None:
    lonely = Processes(tmp_path / "lonely")
    lonely.folder.mkdir(exist_ok=True)
    event = event_on(lonely, tmp_path / "event")
    try:
        lonely.start_scheduler()
        with lonely.client():
            pass
        state, words = said(event)["scheduler"]
    finally:
        lonely.close()
    assert (state, words) == (
        "wrong",
        f"{lonely.address} answers and has no worker; start some: `./inv dask-worker`",
    )
