"""Faults: each is armed, happens as it says, and stops when it has struck often enough."""

import contextlib
import io
import tarfile
import time
from collections.abc import Callable
from typing import Any

import paramiko
import pytest
from botocore.exceptions import ClientError, ConnectionClosedError

from runner.rehearsal.client import RehearsalFailed
from runner.rehearsal.faults import CallRefused, Stage, SuddenDeath
from tests.rehearsal.conftest import World, run

TRAIN = "echo 'import time' > supervise.py; python3 supervise.py"
PACK = "tar -C . -cf - big"
SPOT = {"InstanceMarketOptions": {"MarketType": "spot"}}


def archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        made.addfile(tarfile.TarInfo("file"), io.BytesIO())
    return buffer.getvalue()


def code_of(call: Callable[[], Any]) -> str:
    with pytest.raises(ClientError) as caught:
        call()
    return str(caught.value.response["Error"]["Code"])


# -- calls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["RequestLimitExceeded", "UnauthorizedOperation", "InternalError"])
def test_calls_are_refused_as_often_as_told(world: World, code: str) -> None:
    world.rehearsal.arm(CallRefused(action="Describe*", code=code, times=2, skip=1))
    world.ec2.describe_instances()
    assert code_of(world.ec2.describe_instances) == code
    assert code_of(world.ec2.describe_vpcs) == code
    world.ec2.describe_instances()
    world.launch()
    assert world.rehearsal.state()["faults"][0]["struck"] == 2


def test_calls_of_other_services_are_refused_in_their_own_words(world: World, clients: Callable[[str], Any]) -> None:
    world.rehearsal.arm({"kind": "call-refused", "code": "AccessDenied", "status": 403})
    assert code_of(clients("sts").get_caller_identity) == "AccessDenied"
    assert code_of(clients("ssm").describe_parameters) == "AccessDenied"


def test_a_connection_breaks_before_the_call_is_done(world: World) -> None:
    world.rehearsal.arm({"kind": "connection-reset", "action": "RunInstances", "times": 1})
    with pytest.raises(ConnectionClosedError):
        world.launch(ClientToken="token")
    assert world.rehearsal.state()["instances"] == []
    assert len(world.launch(ClientToken="token")) == 1


def test_an_answer_is_lost_and_the_token_finds_it_again(world: World) -> None:
    world.rehearsal.arm({"kind": "connection-reset", "action": "RunInstances", "times": 1, "done": True})
    with pytest.raises(ConnectionClosedError):
        world.launch(2, ClientToken="token")
    known = [instance["id"] for instance in world.rehearsal.state()["instances"]]
    assert world.launch(2, ClientToken="token") == known


def test_calls_are_slow(world: World) -> None:
    world.rehearsal.arm({"kind": "slow-call", "action": "DescribeVpcs", "seconds": 0.3})
    began = time.monotonic()
    world.ec2.describe_vpcs()
    assert time.monotonic() - began >= 0.3


def test_calls_are_throttled_as_aws_does(make_world: Callable[..., World]) -> None:
    world = make_world(request_limits=True)
    codes = []
    for _ in range(8):
        try:
            world.launch()
            codes.append("")
        except ClientError as error:
            codes.append(error.response["Error"]["Code"])
    assert codes[:5] == [""] * 5
    assert "RequestLimitExceeded" in codes
    assert world.ec2.describe_instances()["Reservations"]  # a bucket of its own


def test_disarmed_faults_strike_no_more(world: World) -> None:
    world.rehearsal.arm({"kind": "quota-reached"})
    assert code_of(world.run) == "VcpuLimitExceeded"
    world.rehearsal.disarm()
    assert len(world.launch()) == 1


# -- machines ------------------------------------------------------------------------------------------------------


def test_a_spot_instance_is_taken_back_after_a_notice(world: World) -> None:
    world.rehearsal.arm({"kind": "spot-interruption", "stage": "boot", "seconds": 0.1, "notice_seconds": 0.2})
    (spot,) = world.launch(**SPOT)
    (on_demand,) = world.launch()
    known = world.wait_for(spot, "terminated")
    assert known["reason"] == "Server.SpotInstanceTermination"
    assert "spot notice" in known["console"]
    assert world.rehearsal.instance(on_demand)["state"] == "running"
    assert world.describe(spot)["StateReason"]["Code"] == "Server.SpotInstanceTermination"


@pytest.mark.parametrize(
    ("stage", "command"),
    [("boot", ""), ("connect", "true"), ("upload", "tar -xf -"), ("training", TRAIN), ("fetch", PACK)],
)
def test_a_machine_dies_at_a_stage(world: World, stage: str, command: str) -> None:
    world.rehearsal.arm(SuddenDeath(stage=Stage(stage), code="Server.HardwareFailure"))
    (instance,) = world.launch()
    if command:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException), world.connect(instance) as ssh:
            run(ssh, command, archive() if stage == "upload" else b"")
    known = world.wait_for(instance, "terminated")
    assert known["reason"] == "Server.HardwareFailure"
    assert stage in known["stages"]


def test_a_machine_is_stopped_from_outside(world: World) -> None:
    world.rehearsal.arm({"kind": "stopped-from-outside", "stage": "boot"})
    (instance,) = world.launch()
    assert world.wait_for(instance, "stopped")["reason"] == "Client.UserInitiatedShutdown"


def test_a_fault_strikes_the_machine_it_names_at_once(world: World) -> None:
    first, second = world.launch(2)
    world.wait_for(first, "running")
    world.wait_for(second, "running")
    world.rehearsal.arm({"kind": "sudden-death", "stage": "boot", "instance": first})
    world.wait_for(first, "terminated")
    assert world.rehearsal.instance(second)["state"] == "running"


def test_faults_strike_as_many_machines_as_told(world: World) -> None:
    world.rehearsal.arm({"kind": "sudden-death", "stage": "boot", "times": 2, "skip": 1})
    instances = world.launch(4)
    for instance in instances[1:3]:
        world.wait_for(instance, "terminated")
    assert [world.rehearsal.instance(instance)["state"] for instance in instances] == [
        "running",
        "terminated",
        "terminated",
        "running",
    ]


@pytest.mark.parametrize("state", ["pending", "running"])
def test_a_machine_never_boots(world: World, state: str) -> None:
    world.rehearsal.arm({"kind": "never-boots", "state": state, "times": 1})
    stuck, fine = world.launch(2)
    world.connect(fine).close()
    assert world.rehearsal.instance(stuck)["state"] == state
    with pytest.raises(OSError, match="Unable to connect"):
        world.connect_to(world.rehearsal.instance(stuck)["address"])
    world.ec2.terminate_instances(InstanceIds=[stuck])
    world.wait_for(stuck, "terminated")


def test_ssh_is_refused_for_a_while(world: World) -> None:
    world.rehearsal.arm({"kind": "ssh-refused", "seconds": 0.3})
    (instance,) = world.launch()
    world.wait_for(instance, "running")
    with pytest.raises(OSError, match="Unable to connect"):
        world.connect_to(world.rehearsal.instance(instance)["address"])
    world.connect(instance).close()


def test_ssh_hangs_for_the_first_connection(world: World) -> None:
    world.rehearsal.arm({"kind": "ssh-hanging", "connections": 1})
    (instance,) = world.launch()
    with pytest.raises(paramiko.SSHException, match="banner"):
        world.connect(instance, banner_timeout=0.3)
    world.connect(instance).close()


def test_keys_are_refused_for_the_first_connection(world: World) -> None:
    world.rehearsal.arm({"kind": "ssh-auth-refused", "connections": 1})
    (instance,) = world.launch()
    with pytest.raises(paramiko.AuthenticationException):
        world.connect(instance)
    world.connect(instance).close()


def test_another_host_key_is_shown(world: World) -> None:
    world.rehearsal.arm({"kind": "ssh-wrong-host-key", "connections": 1})
    (instance,) = world.launch()
    shown = []
    for _ in range(3):
        with world.connect(instance) as ssh:
            transport = ssh.get_transport()
            assert transport
            shown.append(transport.get_remote_server_key().get_base64())
    assert shown[0] != shown[1] == shown[2]


def test_connections_break_while_the_machine_goes_on(world: World) -> None:
    world.rehearsal.arm({"kind": "ssh-dropped", "stage": "training", "seconds": 0.2})
    (instance,) = world.launch()
    with world.connect(instance) as ssh:
        _, stdout, _ = ssh.exec_command("(sleep 0.6; echo late > late) & echo 'import time' > supervise.py; sleep 5")
        run(ssh, TRAIN)
        assert stdout.read() == b""
    with world.connect(instance) as ssh:
        world.wait(lambda: run(ssh, "cat late")[1], lambda said: said == b"late\n")


def test_connections_break_after_so_many_bytes(world: World) -> None:
    world.rehearsal.arm({"kind": "ssh-dropped", "stage": "fetch", "after_bytes": 5000})
    (instance,) = world.launch()
    with world.connect(instance) as ssh:
        run(ssh, "head -c 100000 /dev/zero > big")
        _, stdout, _ = ssh.exec_command(PACK)
        assert len(stdout.read()) <= 5000
    with world.connect(instance) as ssh:
        assert len(run(ssh, PACK)[1]) > 100_000  # once is enough


def test_the_test_can_break_connections_itself(world: World) -> None:
    (instance,) = world.launch()
    with world.connect(instance) as ssh:
        _, stdout, _ = ssh.exec_command("sleep 1000")
        world.rehearsal.act(instance, "drop-ssh")
        assert stdout.read() == b""
    assert world.rehearsal.instance(instance)["state"] == "running"


def test_a_machine_stops_answering(world: World) -> None:
    (instance,) = world.launch()
    with world.connect(instance) as ssh:
        _, stdout, _ = ssh.exec_command("sleep 1000")
        world.rehearsal.act(instance, "hang-ssh")
        assert stdout.read() == b""
    with pytest.raises(paramiko.SSHException, match="banner"):
        world.connect(instance, banner_timeout=0.2)


def test_the_disk_is_full(world: World) -> None:
    world.rehearsal.arm({"kind": "disk-full"})
    with world.connect(world.launch()[0]) as ssh:
        code, _, errors = run(ssh, 'sh -c \'mkdir -p -- "$1" && exec tar -C "$1" --no-same-owner -xmf -\' unpack there')
        assert code == 2
        assert b"No space left on device" in errors


def test_results_are_cut(world: World) -> None:
    world.rehearsal.arm({"kind": "results-cut", "after_bytes": 700})
    with world.connect(world.launch()[0]) as ssh:
        run(ssh, "head -c 100000 /dev/zero > big")
        code, out, _ = run(ssh, PACK)
        assert (code, len(out)) == (137, 700)
        assert run(ssh, "cat big")[0] == 0


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"kind": "no-such-fault"}, "no-capacity"),
        ({"kind": "no-capacity", "fre": 1}, "fre"),
        ({"kind": "spot-interruption", "stage": "lunch"}, "stage"),
        ({"kind": "disk-full", "probability": 2}, "probability"),
        ({}, "kind"),
    ],
)
def test_a_wrong_fault_is_refused_with_what_is_wrong(world: World, fault: dict[str, Any], said: str) -> None:
    with pytest.raises(RehearsalFailed) as caught:
        world.rehearsal.arm(fault)
    assert said in caught.value.detail
    assert world.rehearsal.state()["faults"] == []


def test_what_cannot_be_done_is_refused(world: World) -> None:
    (instance,) = world.launch()
    calls: list[Callable[[], Any]] = [
        lambda: world.rehearsal.act(instance, "paint"),
        lambda: world.rehearsal.act("i-0", "kill"),
        lambda: world.rehearsal.arm({"kind": "never-boots", "instance": instance}),
        lambda: world.rehearsal.instance("i-0"),
        lambda: world.rehearsal.seed(colour="red"),
        lambda: world.rehearsal.reset(network="10.0"),
        lambda: world.rehearsal.reset(boot_seconds=-1),
    ]
    for call in calls:
        with pytest.raises(RehearsalFailed):
            call()
