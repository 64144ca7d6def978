"""Machines without processes: the server answers the runner's commands itself. The runner's own code asks here."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.remote import Limits, RemoteTraining, probe
from runner.transport.ssh import SshTransport, connect
from runner.watch_frames import Ended, Gone, Log, Notice
from tests.rehearsal.conftest import USER, World

LIMITS = Limits(timeout=60, max_output_mb=10, max_log_mb=10, environment={})
RUN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Return what every training gives back."""
    folder = tmp_path / "results"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "fold_0" / "y_pred").write_text("1")
    return folder


@pytest.fixture
def submission(tmp_path: Path) -> Path:
    """Return a submission's folder."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "classifier.py").write_text("")
    return folder


@pytest.fixture
def simulated(make_world: Callable[..., World], results: Path) -> World:
    """Return a world whose machines only pretend."""
    return make_world(trainings="simulated", training_seconds=0.3, results=str(results), beat_seconds=0.1)


@pytest.fixture
def transport_to(key_file: Path, host_key: tuple[str, str]) -> Iterator[Callable[[World, str], SshTransport]]:
    """Return a maker of the runner's connections."""
    made: list[SshTransport] = []

    def make(world: World, instance: str) -> SshTransport:
        known = World.wait(lambda: world.rehearsal.instance(instance), lambda known: "sshd answers" in known["console"])
        transport = connect(
            known["address"],
            port=world.rehearsal.ssh_port,
            user=USER,
            key_path=key_file,
            host_key=host_key[1],
            gate=threading.Semaphore(10),
        )
        made.append(transport)
        return transport

    yield make
    for transport in made:
        transport.close()


def user_data(host_key: tuple[str, str], **more: Any) -> str:
    keys = {"ed25519_private": host_key[0], "ed25519_public": host_key[1]}
    return f"#cloud-config\n{json.dumps({'ssh_keys': keys, **more})}\n"


def test_a_training_from_upload_to_results(
    simulated: World,
    transport_to: Callable[[World, str], SshTransport],
    host_key: tuple[str, str],
    submission: Path,
    tmp_path: Path,
) -> None:
    (instance,) = simulated.launch(UserData=user_data(host_key))
    transport = transport_to(simulated, instance)
    training = RemoteTraining(RUN, "mine", probe(transport, "ramp-kits/iris"))
    assert not training.has_started(transport)
    training.upload(transport, submission, LIMITS, memory_profiling=False)
    training.start(transport)
    assert training.has_started(transport)
    stream, frames = training.follow(transport, offset=0, spot=False)
    *said, end = frames
    stream.close()
    assert isinstance(end, Ended)
    assert end.outcome["returncode"] == 0
    assert b"score" in b"".join(frame.data for frame in said if isinstance(frame, Log))
    training.fetch(transport, tmp_path / "predictions", max_bytes=10_000_000)
    assert (tmp_path / "predictions" / "fold_0" / "y_pred").read_text() == "1"
    known = simulated.rehearsal.instance(instance)
    assert set(known["stages"]) == {"boot", "connect", "upload", "training", "fetch"}
    assert known["connections"] == 1
    assert simulated.rehearsal.state()["trainings_at_once"]["highest"] == 1
    assert simulated.rehearsal.processes(instance) == []


def test_a_notice_comes_over_the_open_connection(
    make_world: Callable[..., World],
    transport_to: Callable[[World, str], SshTransport],
    host_key: tuple[str, str],
    submission: Path,
) -> None:
    world = make_world(trainings="simulated", training_seconds=60)
    (instance,) = world.launch(UserData=user_data(host_key), InstanceMarketOptions={"MarketType": "spot"})
    transport = transport_to(world, instance)
    training = RemoteTraining(RUN, "mine", probe(transport, "ramp-kits/iris"))
    stream, frames = training.follow(transport, offset=0, spot=True)
    assert isinstance(next(frames), Gone)
    stream.close()
    training.upload(transport, submission, LIMITS, memory_profiling=False)
    training.start(transport)
    stream, frames = training.follow(transport, offset=10_000, spot=True)
    world.rehearsal.act(instance, "notice", seconds=60)
    notice = next(frame for frame in frames if isinstance(frame, Notice))
    assert notice.action == "terminate"
    stream.close()


def test_the_boot_timer_ends_a_simulated_machine(make_world: Callable[..., World], host_key: tuple[str, str]) -> None:
    world = make_world(trainings="simulated", minute_seconds=0.1)
    (instance,) = world.launch(UserData=user_data(host_key, runcmd=[["shutdown", "-P", "+1"]]))
    assert world.wait_for(instance, "terminated")["reason"] == "Client.InstanceInitiatedShutdown"


def test_hundreds_fit_into_one_server(simulated: World) -> None:
    began = time.monotonic()
    instances = simulated.launch(300)
    state = simulated.wait(
        lambda: simulated.rehearsal.state(processes=False),
        lambda state: all("sshd answers" in known["console"] for known in state["instances"]),
    )
    assert len(state["instances"]) == 300
    simulated.ec2.terminate_instances(InstanceIds=instances)
    simulated.wait(
        lambda: simulated.rehearsal.state(processes=False),
        lambda state: all(known["state"] == "terminated" for known in state["instances"]),
    )
    assert time.monotonic() - began < 20  # seen: 1.5 s on two cores
