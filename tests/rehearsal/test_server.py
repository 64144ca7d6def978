"""The server process itself: OpenSSH's sshd behind it, several at once, nothing left when its starter is gone."""

import contextlib
import getpass
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import boto3
import psutil
import pytest

from runner.rehearsal.client import Rehearsal, RehearsalFailed
from tests.rehearsal.conftest import World, run


def sleepers(*seconds: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.cmdline() in [["sleep", each] for each in seconds]:
                found.append(process.pid)
    return found


def test_the_way_through_opensshs_own_sshd(make_world: Callable[..., World], host_key: tuple[str, str]) -> None:
    world = make_world(sshd="openssh", user=getpass.getuser())
    config = "#cloud-config\nssh_keys:\n  ed25519_private: |\n" + "".join(
        f"    {line}\n" for line in host_key[0].splitlines()
    )
    (instance,) = world.launch(UserData=config)
    address = world.rehearsal.instance(instance)["address"]

    def answers() -> bool:
        try:
            world.connect_to(address, username=getpass.getuser()).close()
        except OSError:
            return False
        return True

    World.wait(answers, bool)
    with world.connect_to(address, username=getpass.getuser()) as ssh:
        transport = ssh.get_transport()
        assert transport
        assert transport.get_remote_server_key().get_base64() in host_key[1]
        machine = run(ssh, "cd ..; pwd")[1].decode().strip()
        assert run(ssh, 'echo "$HOME"; pwd')[1].decode().split() == [f"{machine}/home"] * 2
        assert run(ssh, "ramp-test")[1] == b"trained\n"
        assert run(ssh, "bash -lc 'command -v shutdown'")[1].decode() == f"{machine}/bin/shutdown\n"
        run(ssh, "setsid sleep 1004 >/dev/null 2>&1 </dev/null &")
        assert run(ssh, "cat", b"\0\xff" * 1000)[1] == b"\0\xff" * 1000
        World.wait(lambda: sleepers("1004"), bool)
        with pytest.raises(RehearsalFailed) as caught:
            world.rehearsal.arm({"kind": "disk-full"})
        assert "sshd emulated" in caught.value.detail
        _, stdout, _ = ssh.exec_command("sleep 1005")
        world.rehearsal.act(instance, "drop-ssh")
        assert stdout.read() == b""
    with world.connect_to(address, username=getpass.getuser()) as ssh:
        run(ssh, "sudo shutdown -h now")
        world.wait_for(instance, "terminated")
    assert sleepers("1004", "1005") == []
    assert world.rehearsal.processes(instance) == []
    assert world.rehearsal.instance(instance)["connections"] >= 3


def test_nothing_outlives_who_started_it(tmp_path: Path) -> None:
    starter = (
        "import time, os\n"
        "from pathlib import Path\n"
        "import boto3\n"
        "from runner.rehearsal.client import Rehearsal\n"
        f"rehearsal = Rehearsal(Path({str(tmp_path / 'root')!r}))\n"
        "rehearsal.start()\n"
        "os.environ.update(rehearsal.environment)\n"
        "image = list(rehearsal.seed(images=[{'name': 'a'}])['images'].values())[0]\n"
        "data = '#!/bin/sh\\nsetsid sleep 1006 &\\nsleep 1007\\n'\n"
        "launch = {'ImageId': image, 'InstanceType': 'c5.large', 'MinCount': 1, 'MaxCount': 1, 'UserData': data}\n"
        "boto3.client('ec2').run_instances(**launch)\n"
        "print('launched', flush=True)\n"
        "time.sleep(1000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"launched\n"
            (server,) = psutil.Process(process.pid).children()
            World.wait(lambda: sleepers("1006", "1007"), lambda found: len(found) == 2)
        finally:
            process.kill()
        World.wait(lambda: sleepers("1006", "1007"), lambda left: left == [])
        World.wait(server.is_running, lambda runs: not runs or server.status() == psutil.STATUS_ZOMBIE)


def test_two_at_once_have_networks_of_their_own(
    server: Rehearsal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Rehearsal(tmp_path / "root") as other:
        assert other.network != server.network
        assert other.url != server.url
        with pytest.raises(RehearsalFailed) as caught:
            Rehearsal(tmp_path / "third", {"network": other.network, "ssh_port": 2222}).start()
        assert "taken by another rehearsal" in caught.value.detail
        for name, value in other.environment.items():
            monkeypatch.setenv(name, value)
        image = other.seed(images=[{"name": "a"}])["images"]["a"]
        launch = {"ImageId": image, "InstanceType": "c5.large", "MinCount": 1, "MaxCount": 1}
        boto3.client("ec2").run_instances(**launch, UserData="#!/bin/sh\nexec sleep 1008\n")
        World.wait(lambda: sleepers("1008"), bool)
    assert sleepers("1008") == []
    other.stop()  # again


def test_what_is_wrong_with_the_settings_is_said_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(RehearsalFailed) as caught:
        Rehearsal(tmp_path / "root", {"boot_second": 1}).start()
    assert "boot_second" in caught.value.detail
