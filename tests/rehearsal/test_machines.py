"""Machines: real processes behind an SSH server, a first boot, a metadata service, and an end that ends them all."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import paramiko
import psutil
import pytest

from runner.rehearsal.imds import Imds
from runner.rehearsal.machine import Birth, Machine
from runner.rehearsal.settings import Settings
from runner.rehearsal.simulated import SimulatedComputer
from runner.rehearsal.trainings import Trainings
from runner.transport.ssh import new_host_key
from tests.rehearsal.conftest import PATIENCE, USER, World, run

CLOUD_CONFIG = "#cloud-config\n"
TOKEN = "X-aws-ec2-metadata-token"  # noqa: S105 - the name of a header


def test_a_machine_answers_soon_after_its_launch(world: World) -> None:
    world.launch()  # what is loaded on first use is loaded now
    began = time.monotonic()
    with world.connect(world.launch()[0]) as ssh:
        assert run(ssh, "echo here") == (0, b"here\n", b"")
    assert time.monotonic() - began < 2  # seen: 0.15 s on an idle host


def test_a_command_runs_in_the_machines_own_home(world: World) -> None:
    first, second = world.launch(2)
    with world.connect(first) as ssh, world.connect(second) as other:
        _, home, _ = run(ssh, "pwd")
        assert run(ssh, 'echo "$HOME"')[1] == home
        assert run(other, "pwd")[1] != home
        run(ssh, "echo mine > file")
        assert run(other, "cat file")[0] == 1
        assert run(ssh, 'cd "$TMPDIR" && pwd')[1].startswith(home.rpartition(b"/home")[0])
        assert run(ssh, "echo $USER $LOGNAME")[1] == f"{USER} {USER}\n".encode()
        passwd = run(ssh, f"getent passwd {USER}")[1].decode().split(":")
        assert passwd[5] == home.decode().strip()


def test_the_image_is_in_every_home_and_on_the_path(world: World) -> None:
    with world.connect(world.launch()[0]) as ssh:
        assert run(ssh, "ls ramp-kits/iris")[1] == b"problem.py\n"
        assert run(ssh, "ramp-test")[1] == b"trained\n"
        # A login shell reads the system's profile, which sets PATH anew, and then the image's own.
        assert run(ssh, "bash -lc 'ramp-test; echo $FROM_PROFILE'")[1] == b"trained\nyes\n"
        assert run(ssh, "bash -lc 'command -v shutdown'")[1].endswith(b"/bin/shutdown\n")
        machine = run(ssh, "cd .. && pwd")[1].strip()
        for shell in ("bash -lc", "sh -c", "sh -lc"):
            assert run(ssh, f"{shell} 'command -v shutdown'")[1].startswith(machine), "never the host's"


def test_input_output_errors_and_exit_codes_are_carried(world: World) -> None:
    with world.connect(world.launch()[0]) as ssh:
        data = bytes(range(256)) * 8000
        assert run(ssh, "cat", data) == (0, data, b"")
        assert run(ssh, "echo bad >&2; exit 7") == (7, b"", b"bad\n")
        assert run(ssh, "kill -TERM $$")[0] == -1  # a signal has no exit code
        assert run(ssh, "no-such-program")[0] == 127


def test_a_process_outlives_its_connection_but_not_its_machine(world: World) -> None:
    (instance,) = world.launch()
    with world.connect(instance) as ssh:
        run(ssh, "setsid sleep 1001 >/dev/null 2>&1 </dev/null &")
        run(ssh, "cd /; setsid env -i sleep 1002 >/dev/null 2>&1 </dev/null &")
        run(ssh, "setsid sh -c 'cd /; sleep 1003; true' >/dev/null 2>&1 </dev/null &")
    running = world.wait(lambda: world.rehearsal.processes(instance), lambda found: len(found) >= 4)
    commands = {" ".join(process["command"]) for process in running}
    assert {"sleep 1001", "sleep 1002", "sleep 1003"} <= commands
    pids = [process["pid"] for process in running]
    world.ec2.terminate_instances(InstanceIds=[instance])
    world.wait_for(instance, "terminated")
    alive = [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
    assert alive == []
    assert world.rehearsal.processes(instance) == []


def test_the_end_of_a_machine_breaks_its_connections(world: World) -> None:
    (instance,) = world.launch()
    address = world.rehearsal.instance(instance)["address"]
    with world.connect(instance) as ssh:
        _, stdout, _ = ssh.exec_command("sleep 1000")
        world.rehearsal.act(instance, "kill")
        assert stdout.read() == b""
        world.wait_for(instance, "terminated")
        transport = ssh.get_transport()
        assert transport
        World.wait(transport.is_active, lambda active: not active)
    with pytest.raises(paramiko.ssh_exception.NoValidConnectionsError):
        world.connect_to(address)


def test_who_shuts_down_in_good_order_is_heard(make_world: Callable[..., World]) -> None:
    world = make_world(shutdown_seconds=0.5)
    (instance,) = world.launch()
    with world.connect(instance) as ssh:
        run(ssh, "(trap 'echo told > told; exit' TERM; touch ready; while :; do sleep 0.01; done) > /dev/null 2>&1 &")
        home = Path(run(ssh, "pwd")[1].decode().strip())
    World.wait((home / "ready").exists, bool)
    world.ec2.terminate_instances(InstanceIds=[instance])
    World.wait((home / "told").exists, bool)
    world.wait_for(instance, "terminated")


def test_only_the_right_key_and_user_get_in(world: World, tmp_path: Path) -> None:
    (instance,) = world.launch()
    world.connect(instance).close()
    (tmp_path / "other").write_text(new_host_key().private)
    with pytest.raises(paramiko.AuthenticationException):
        world.connect(instance, key_filename=str(tmp_path / "other"))
    with pytest.raises(paramiko.AuthenticationException):
        world.connect(instance, username="root")
    assert world.rehearsal.instance(instance)["connections"] == 3


def test_the_host_key_comes_with_the_user_data(world: World, host_key: tuple[str, str]) -> None:
    private, public = host_key
    data = {"ssh_deletekeys": True, "ssh_keys": {"ed25519_private": private, "ed25519_public": public}}
    (instance,) = world.launch(UserData=f"#cloud-config\n{json.dumps(data)}\n")
    with world.connect(instance) as ssh:
        transport = ssh.get_transport()
        assert transport
        shown = transport.get_remote_server_key()
    assert f"{shown.get_name()} {shown.get_base64()}" == " ".join(public.split()[:2])


def test_the_first_boot_runs_on_the_machine_and_its_console_tells(world: World) -> None:
    config = (
        CLOUD_CONFIG + "runcmd:\n- [sh, -c, 'pwd > where; echo one']\n- echo two >&2; exit 3\n- [no-such-program]\n"
    )
    (instance,) = world.launch(UserData=config)
    said = world.wait(lambda: world.rehearsal.instance(instance)["console"], lambda said: "finished" in said)
    assert "one\n" in said
    assert "two\n" in said
    assert "exit code 3" in said
    assert "no-such-program" in said
    output = world.ec2.get_console_output(InstanceId=instance, Latest=True)["Output"]
    assert "two" in output
    with world.connect(instance) as ssh:
        assert run(ssh, "cat where")[1] == run(ssh, "pwd")[1]


@pytest.mark.parametrize(
    ("user_data", "said"),
    [
        ("#!/bin/sh\necho from a script", "from a script"),
        (CLOUD_CONFIG + "packages: [git]\n", "does not do packages"),
        (CLOUD_CONFIG + "runcmd: [", "not valid YAML"),
        ("Content-Type: multipart/mixed", "is ignored"),
    ],
)
def test_other_user_data(world: World, user_data: str, said: str) -> None:
    (instance,) = world.launch(UserData=user_data)
    world.wait(lambda: world.rehearsal.instance(instance)["console"], lambda console: said in console)
    world.connect(instance).close()


@pytest.mark.parametrize(("behaviour", "state"), [("terminate", "terminated"), ("stop", "stopped")])
def test_a_machine_that_shuts_itself_down(world: World, behaviour: str, state: str) -> None:
    (instance,) = world.launch(
        UserData=CLOUD_CONFIG + "runcmd: [[shutdown, -P, now]]", InstanceInitiatedShutdownBehavior=behaviour
    )
    assert world.wait_for(instance, state)["reason"] == "Client.InstanceInitiatedShutdown"


def test_the_timer_of_shutdown_can_be_set_anew(make_world: Callable[..., World]) -> None:
    world = make_world(minute_seconds=2)
    timed = CLOUD_CONFIG + "runcmd: [[shutdown, -P, '+1']]"
    first, second = world.launch(2, UserData=timed)
    with world.connect(second) as ssh:
        run(ssh, "sudo -n shutdown -c")
        world.wait_for(first, "terminated")
        assert world.rehearsal.instance(second)["state"] == "running"
        run(ssh, "sudo /sbin/shutdown -h +0")
    world.wait_for(second, "terminated")


def ask(address: str, path: str, *, method: str = "GET", headers: dict[str, str] | None = None) -> tuple[int, str]:
    request = urllib.request.Request(address + path, method=method, headers=headers or {})  # noqa: S310 - always http
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""


def test_a_notice_is_seen_by_who_has_a_token(world: World) -> None:
    (instance,) = world.launch(InstanceMarketOptions={"MarketType": "spot"}, MetadataOptions={"HttpTokens": "required"})
    with world.connect(instance) as ssh:
        service = run(ssh, "echo $AWS_EC2_METADATA_SERVICE_ENDPOINT")[1].decode().strip()
    action = "/latest/meta-data/spot/instance-action"
    assert ask(service, action)[0] == 401
    assert ask(service, "/latest/api/token", method="PUT")[0] == 400
    status, token = ask(service, "/latest/api/token", method="PUT", headers={f"{TOKEN}-ttl-seconds": "60"})
    assert status == 200
    assert ask(service, action, headers={TOKEN: token})[0] == 404
    assert ask(service, "/latest/meta-data/instance-id", headers={TOKEN: token}) == (200, instance)
    assert ask(service, action, headers={TOKEN: "wrong"})[0] == 401
    world.rehearsal.act(instance, "notice", seconds=0.5)
    status, notice = ask(service, action, headers={TOKEN: token})
    assert status == 200
    assert json.loads(notice)["action"] == "terminate"
    assert world.wait_for(instance, "terminated")["reason"] == "Server.SpotInstanceTermination"


def test_the_first_version_of_the_metadata_service_has_to_be_allowed(world: World) -> None:
    (instance,) = world.launch(MetadataOptions={"HttpTokens": "optional"})
    (without,) = world.launch(MetadataOptions={"HttpEndpoint": "disabled"})
    for one, status in ((instance, 200), (without, 403)):
        world.wait_for(one, "running")
        address = f"http://{world.rehearsal.instance(one)['address']}:1669"
        assert ask(address, "/latest/meta-data/instance-id")[0] == status


def test_trainings_at_once_are_counted(world: World) -> None:
    script = "import subprocess, sys; subprocess.run(['sleep', '0.6'])"
    start = (
        "mkdir -p .ramp-cloud/runs/a && cd .ramp-cloud/runs/a && "
        f'echo "{script}" > supervise.py && (python3 supervise.py & echo $! > pid; wait; echo {{}} > outcome.json)'
    )
    instances = world.launch(3)
    connections = [world.connect(instance) for instance in instances]
    workers = [threading.Thread(target=run, args=(ssh, start)) for ssh in connections[:2]]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for ssh in connections:
        ssh.close()
    seen = world.wait(
        lambda: world.rehearsal.state(processes=False)["trainings_at_once"],
        lambda seen: seen["timeline"] and seen["timeline"][-1]["count"] == 0,
    )
    assert seen["highest"] == 2
    stages = [world.rehearsal.instance(instance)["stages"] for instance in instances]
    assert ["training" in known for known in stages] == [True, True, False]


def test_the_state_lists_calls_and_instances(world: World) -> None:
    (instance,) = world.launch(TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "a", "Value": "b"}]}])
    world.wait_for(instance, "running")
    world.describe(instance)
    state = world.rehearsal.state()
    assert [(call["action"], call["count"], call["error"]) for call in state["calls"]] == [
        ("RunInstances", 1, ""),
        ("DescribeInstances", 1, ""),
    ]
    (known,) = state["instances"]
    assert (known["id"], known["type"], known["market"], known["zone"]) == (
        instance,
        "c5.large",
        "on-demand",
        "eu-west-3a",
    )
    assert (known["tags"], known["processes"], known["ended"]) == ({"a": "b"}, [], None)
    assert known["launched"] <= time.time()


@pytest.mark.parametrize("steps", range(8))
def test_a_machine_that_ends_while_it_boots_leaves_its_port_free(steps: int, tmp_path: Path) -> None:
    """Whenever the boot is cut short: the next machine may get the same address."""
    birth = Birth(
        id="i-0",
        address="127.1.2.3",
        instance_type="c5.large",
        market="spot",
        zone="a",
        user_data=b"",
        public_key="",
        ends_on_shutdown=True,
    )
    settings = Settings()

    async def cut_short() -> None:
        loop = asyncio.get_running_loop()
        computer = SimulatedComputer(tmp_path, Trainings())
        service = Imds(Machine(birth, settings, computer, faults=[], loop=loop, moved=lambda _: None))
        opening = loop.create_task(service.open())
        for _ in range(steps):
            await asyncio.sleep(0)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await service.close()
        await asyncio.sleep(0)
        socket.create_server((birth.address, settings.imds_port)).close()

    asyncio.run(cut_short())


def test_who_gives_up_waiting_for_the_power_does_not_break_the_switch(tmp_path: Path) -> None:
    """In a process of its own, because the switch adopts orphans."""
    script = (
        "import pathlib, sys; from runner.rehearsal.power import Power; power = Power(pathlib.Path(sys.argv[1]))\n"
        "for _ in range(20): power.off('i-0').cancel(); power.off('i-1').result(30)\n"
        "power.close()"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
