"""A cluster on EC2 from its first launch to its last instance, with everything that goes wrong between."""

import copy
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import dask
import psutil
import pytest
from distributed import Client

from runner.aws.machines import Patience
from runner.checkup import examine, sweep_event
from runner.dask import ec2
from runner.dask.ec2 import Ec2Dask
from runner.errors import ConfigError, KitError, LaunchStopped, RampCloudError, WorkerError
from runner.rehearsal.faults import CallRefused, NeverBoots, QuotaReached
from runner.states import State
from runner.workers.dask import DaskWorker
from tests.dask_on_ec2 import DEATH, PATIENCE, dask_clouds, dask_config, speaks_tls_1_2, until
from tests.event_folder import EventFolder
from tests.integration.test_crash import attempts_of
from tests.rehearsing import Cloud

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """Return an emulated AWS whose image can be part of a cluster."""
    yield from dask_clouds(tmp_path_factory.mktemp("dask-ec2"))


@pytest.fixture
def make(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Ec2Dask]]:
    """Return a maker of clusters, the account as new. What a test leaves open is closed, and nothing may be left."""
    cloud.renew()
    for name, value in cloud.aws.environment.items():
        monkeypatch.setenv(name, value)
    made: list[Ec2Dask] = []

    def make(**keys: Any) -> Ec2Dask:
        made.append(Ec2Dask(dask_config(cloud, tmp_path, **keys), death=DEATH, patience=Patience(look=1)))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close(keep=False)
    assert until(lambda: not cloud.left())


def workers(client: Client) -> dict[str, str]:
    """Return the workers of a cluster: name to address."""
    known = client.sync(client.scheduler.identity, n_workers=-1)["workers"]
    return {str(each["name"]): address for address, each in known.items()}


def by_role(cloud: Cloud) -> dict[str, list[dict[str, Any]]]:
    """Return the instances that are up, by their role in the cluster."""
    found: dict[str, list[dict[str, Any]]] = {"scheduler": [], "worker": []}
    for instance in cloud.instances():
        if instance["id"] in cloud.left():
            found[instance["tags"]["ramp-cloud:dask"]].append(instance)
    return found


def test_it_grows_with_the_queue_and_shrinks_when_nothing_is_left(make: Callable[..., Ec2Dask], cloud: Cloud) -> None:
    settings = copy.deepcopy(dask.config.config["distributed"])
    cluster = make(max=2)
    with cluster.connect() as client:
        assert dask.config.config["distributed"] == settings, "no key of ours for whoever else uses Dask here"
        until(lambda: len(workers(client)) == 1)
        cluster.wants(5)
        until(lambda: len(workers(client)) == 2)  # and no more: max
        homes = client.run(os.getcwd)
        assert len(set(homes.values())) == 2
        assert {len(found) for found in by_role(cloud).values()} == {1, 2}

        cluster.wants(0)
        until(lambda: not workers(client) and not by_role(cloud)["worker"])
        assert len(by_role(cloud)["scheduler"]) == 1  # it stays while we are connected, longer than its idle limit

        cluster.wants(1)
        until(lambda: workers(client))

    cluster.close(keep=False)
    assert cloud.left() == []


def test_a_worker_with_a_training_is_not_retired(make: Callable[..., Ec2Dask], cloud: Cloud, tmp_path: Path) -> None:
    cluster, gate = make(min=0, max=2), tmp_path / "gate"
    with cluster.connect() as client:
        until(lambda: workers(client))
        held = client.submit(waiting_for(gate), resources={"ramp": 1}, pure=False)
        cluster.wants(2)
        until(lambda: len(workers(client)) == 2)
        cluster.wants(0)
        until(lambda: len(workers(client)) == 1)
        gate.touch()
        assert held.result(timeout=PATIENCE) == "done"
        until(lambda: not workers(client))


def waiting_for(path: Path) -> Callable[[], str]:
    """Return a task that ends when a file is there. Made here, so that it travels by value."""

    def wait() -> str:
        import time

        while not path.exists():
            time.sleep(0.05)
        return "done"

    return wait


def test_what_is_open_and_who_holds_which_key(make: Callable[..., Ec2Dask], cloud: Cloud, tmp_path: Path) -> None:
    cluster = make()
    with cluster.connect() as client:
        until(lambda: workers(client))
        machines = by_role(cloud)
        for role, (instance,) in machines.items():
            pids = {each["pid"] for each in cloud.aws.processes(instance["id"])}
            ports = [
                listening.laddr
                for pid in pids
                for listening in psutil.Process(pid).net_connections("tcp")
                if listening.status == psutil.CONN_LISTEN
            ]
            outside = [address for address in ports if address.ip != "127.0.0.1"]
            assert [address.ip for address in outside] == [instance["address"]], role  # one port, and that speaks TLS
            home = home_of(cloud, instance["id"])
            (key,) = home.rglob("key.pem")
            own = tmp_path / "events" / "toy_event" / "tls" / f"{role}-key.pem"
            assert key.read_text() == own.read_text()
            assert key.stat().st_mode & 0o777 == 0o600
            assert "PRIVATE KEY" not in json.dumps([psutil.Process(pid).environ() for pid in pids])
            user_data = (home.parent / "user-data").read_text()
            assert own.read_text().splitlines()[1] not in user_data
        (scheduler,) = machines["scheduler"]
        assert not speaks_tls_1_2(address_of(scheduler["id"]))
        raw = cloud.aws.state(processes=False)["instances"]
        assert {each["tags"]["ramp-cloud:owner"] for each in raw} == {"uid-of-toy"}


def address_of(instance: str) -> str:
    """Return the address of a machine inside its network."""
    (found,) = boto3.client("ec2").describe_instances(InstanceIds=[instance])["Reservations"]
    return str(found["Instances"][0]["PrivateIpAddress"])


def home_of(cloud: Cloud, instance: str) -> Path:
    """Return the home folder of a machine."""
    return next(cloud.folder.rglob(f"{instance}/home"))


def test_a_spot_instance_that_aws_takes_back_is_replaced(make: Callable[..., Ec2Dask], cloud: Cloud) -> None:
    cluster = make(use_spot_instance=True, max=1)
    with cluster.connect() as client:
        (first,) = until(lambda: workers(client))
        (instance,) = by_role(cloud)["worker"]
        assert instance["market"] == "spot"
        cluster.wants(1)
        cloud.aws.act(instance["id"], "kill")
        until(lambda: [name for name in workers(client) if name != first])
        assert instance["id"] not in [each["id"] for each in by_role(cloud)["worker"]]


def test_a_scheduler_whose_machine_is_gone_is_started_anew(make: Callable[..., Ec2Dask], cloud: Cloud) -> None:
    cluster = make(max=1)
    with cluster.connect() as client:
        until(lambda: workers(client))
        (scheduler,) = by_role(cloud)["scheduler"]
        cloud.aws.act(scheduler["id"], "kill")

        def again() -> Client | None:
            with suppress(RampCloudError):
                return cluster.connect()
            return None

        with until(again) as another:
            until(lambda: workers(another))
            assert [each["id"] for each in by_role(cloud)["scheduler"]] != [scheduler["id"]]


def test_a_scheduler_that_dies_comes_back_with_its_workers(make: Callable[..., Ec2Dask], cloud: Cloud) -> None:
    cluster = make(max=1)
    with cluster.connect() as client:
        (name,) = until(lambda: workers(client))
        (scheduler,) = by_role(cloud)["scheduler"]
        for each in cloud.aws.processes(scheduler["id"]):
            if psutil.Process(each["pid"]).name().startswith("python"):
                psutil.Process(each["pid"]).kill()

        def again() -> bool:
            with suppress(RampCloudError, OSError), cluster.connect() as another:
                return list(workers(another)) == [name]
            return False

        until(again)
        assert [each["id"] for each in by_role(cloud)["scheduler"]] == [scheduler["id"]]


@pytest.fixture
def dispatcher(
    request: pytest.FixtureRequest, make: Callable[..., Ec2Dask], cloud: Cloud, tmp_path: Path
) -> Iterator[subprocess.Popen[str]]:
    """Start another process that has a cluster, and return it once a worker is there; its keys may be parametrized."""
    config = json.dumps(dask_config(cloud, tmp_path, max=1, **getattr(request, "param", {})))
    script = (
        "import json, sys, time\nfrom runner.dask.ec2 import Ec2Dask\n"
        f"cluster = Ec2Dask(json.loads(sys.argv[1]), death={DEATH})\nclient = cluster.connect()\n"
        f"client.wait_for_workers(1, timeout={PATIENCE})\nprint('there', flush=True)\ntime.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, config], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        assert process.stdout.readline() == "there\n", process.stderr.read()
        yield process
        process.kill()


def test_nothing_outlives_a_dispatcher_that_was_killed(dispatcher: subprocess.Popen[str], cloud: Cloud) -> None:
    assert len(cloud.left()) == 2
    dispatcher.kill()
    until(lambda: not cloud.left())  # idle limit 3 s, then the workers' 3 s


@pytest.mark.parametrize("dispatcher", [{"idle_minutes": 0.5}], indirect=True)  # longer than a busy machine needs here
def test_the_next_dispatcher_takes_the_cluster_over(
    dispatcher: subprocess.Popen[str], cloud: Cloud, make: Callable[..., Ec2Dask]
) -> None:
    before = cloud.left()
    dispatcher.kill()
    dispatcher.wait()
    for keep in (True, False):
        cluster = make(max=1)
        with cluster.connect() as client:
            until(lambda: workers(client))
            assert cloud.left() == before
            cluster.wants(1)
        cluster.close(keep=keep)
        assert cloud.left() == (before if keep else [])


def test_a_machine_that_never_boots_is_told_by_the_deadline(make: Callable[..., Ec2Dask], cloud: Cloud) -> None:
    cloud.aws.arm(NeverBoots())
    cluster = make(startup_minutes=0.05)
    with pytest.raises(WorkerError) as caught:
        cluster.connect()
    assert "did not" in caught.value.message or "does not answer" in caught.value.message
    assert "hangs before its sshd starts" in caught.value.detail  # what its console says
    assert cloud.left() == []


def test_an_image_without_distributed_is_told(make: Callable[..., Ec2Dask], cloud: Cloud) -> None:
    python = cloud.folder / "image" / "bin" / "python3"
    good = python.read_text()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    try:
        with pytest.raises(KitError, match=r"the image has distributed none.*build the image anew"):
            make().connect()
    finally:
        python.write_text(good)
    assert cloud.left() == []


def test_workers_that_cannot_be_had_are_told_to_whoever_waits(
    make: Callable[..., Ec2Dask], cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = make(instance_type="c5.large")
    with cluster.connect() as client:
        until(lambda: workers(client))
        cloud.aws.arm(CallRefused(action="RunInstances", code="UnauthorizedOperation"))

        cluster.wants(2)
        until(lambda: "the cluster stays as large as it is" in caplog.text)
        cluster.wants(3)  # whoever waits still has the one that there is
        (worker,) = by_role(cloud)["worker"]
        cloud.aws.act(worker["id"], "kill")

        def stopped() -> bool:
            try:
                cluster.wants(2)
            except LaunchStopped:
                return True
            return False

        until(stopped)


def test_a_group_that_is_not_there_is_a_matter_of_the_config(make: Callable[..., Ec2Dask]) -> None:
    with pytest.raises(ConfigError, match="no group 'dask'"):
        make(dask_security_group="dask").connect()


def event_on_a_cluster(cloud: Cloud, folder: Path, **keys: Any) -> EventFolder:
    """Return an event of which each run makes a cluster; ``keys`` stand under ``cluster``."""
    whole = dask_config(cloud, folder, **keys)["cluster"]
    cluster = {key: value for key, value in whole.items() if value not in (None, [], {})}
    event = EventFolder(
        folder / "event",
        worker_type="dask",
        cluster=cluster,
        remote_ramp_kit_folder="~/ramp-kits/toy",
        n_workers=4,
    )
    event.keys["python"] = str(cloud.folder / "image" / "bin" / "python")  # the stand-in's ramp-test is beside it
    return event


@pytest.mark.usefixtures("make")
def test_a_whole_event(cloud: Cloud, tmp_path: Path) -> None:
    """More submissions than machines, one that raises; nothing is left of the cluster afterwards."""
    event = event_on_a_cluster(cloud, tmp_path, max=2, idle_minutes=1)
    for number in range(4):
        event.add(f"good {number}", "SCORE = 0.75\nprint('all is well')")
    event.add("raises", "raise ValueError('no idea')")

    event.run()

    records = event.records()
    assert {name: (record.state, record.attempts) for name, record in records.items()} == {
        **{f"good {number}": (State.SCORED, 1) for number in range(4)},
        "raises": (State.TRAINING_ERROR, 1),
    }
    with event.opened() as opened:
        assert "all is well" in "".join(opened.log("good 0", follow=False))
        assert "ValueError: no idea" in "".join(opened.log("raises", follow=False))
    assert cloud.left() == []
    roles = [instance["tags"]["ramp-cloud:dask"] for instance in cloud.instances()]
    assert roles.count("scheduler") == 1
    assert 1 <= roles.count("worker") <= 2
    left = cluster_left_behind(cloud, event)
    with event.opened() as opened:
        swept = sweep_event(opened, bring=lambda _: None, really=True)
    assert [(row["id"], row["ended"]) for row in swept["found"]] == [(left, True)]
    assert cloud.left() == []


@pytest.mark.usefixtures("make")
def test_an_event_goes_on_with_the_machines_that_its_quota_allows(cloud: Cloud, tmp_path: Path) -> None:
    event = event_on_a_cluster(cloud, tmp_path, max=3, idle_minutes=1)
    for number in range(3):
        event.add(str(number))
    cloud.aws.arm(QuotaReached(skip=2))

    event.run()

    assert {record.state for record in event.records().values()} == {State.SCORED}
    assert len(cloud.instances()) == 2
    assert cloud.left() == []


@pytest.mark.usefixtures("make")
def test_a_training_whose_machine_dies_is_tried_on_another(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DaskWorker, "patience", 2.0)  # seconds for which its host may be away
    monkeypatch.setattr(ec2, "open_ec2", lambda config: Ec2Dask(config, patience=Patience(look=1)))
    event = event_on_a_cluster(cloud, tmp_path, max=1, idle_minutes=1)
    began = tmp_path / "began"
    event.add("a", f"import pathlib, time\nbegan = pathlib.Path({str(began)!r})\n{_FIRST_TIME}SCORE = 0.75")

    def kill() -> None:
        until(began.exists)
        (worker,) = by_role(cloud)["worker"]
        cloud.aws.act(worker["id"], "kill")

    killing = threading.Thread(target=kill)
    killing.start()
    event.run()
    killing.join()

    (record,) = event.records().values()
    assert record.state is State.SCORED
    assert attempts_of(event) == {("a", "interrupted"): 1, ("a", "ok"): 1}
    assert len(cloud.instances()) == 3
    assert cloud.left() == []


_FIRST_TIME = "if not began.exists():\n    began.touch()\n    time.sleep(600)\n"


def cluster_left_behind(cloud: Cloud, event: EventFolder) -> str:
    """Launch a machine with the tags of an event's cluster, as a dispatcher that died has left it; return its id."""
    tags = next(each["tags"] for each in cloud.instances() if each["tags"]["ramp-cloud:dask"] == "scheduler")
    with event.opened() as opened:
        assert tags["ramp-cloud:event-id"] == opened.store.uid
    ec2 = boto3.client("ec2")
    made = ec2.run_instances(
        ImageId=next(iter(cloud.seeded["images"].values())),
        InstanceType="t3.medium",
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[
            {"ResourceType": "instance", "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}
        ],
    )
    return str(made["Instances"][0]["InstanceId"])


@pytest.mark.usefixtures("make")
def test_doctor_makes_no_cluster_unless_it_is_told_to(cloud: Cloud, tmp_path: Path) -> None:
    event = event_on_a_cluster(cloud, tmp_path, max=3)

    state, words = looked_at(event)["machines"]
    assert (state, cloud.instances()) == ("ok", [])
    assert words.startswith("key, image, subnets and groups are there for up to 3 workers of 1 slot each")

    found = looked_at(event, launch=True)
    assert found["workers"][0] == "ok", found
    assert found["workers"][1].startswith("1 slot on 1 host\ntls://")
    assert len(cloud.instances()) == 2
    assert cloud.left() == []

    event.keys["cluster"]["security_group"] = "nowhere"
    state, words = looked_at(event)["machines"]
    assert state == "wrong"
    assert "no group 'nowhere'" in words


def looked_at(event: EventFolder, **how: Any) -> dict[str, tuple[str, str]]:
    """Return what doctor says: name of each check to its state and its words."""
    checks = examine(event.config, bring=lambda _: None, **how)["checks"]
    return {check["name"]: (check["state"], check["found"]) for check in checks}
