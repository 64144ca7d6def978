"""One emulated AWS for all tests here; every test finds it empty."""

import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import paramiko
import pytest
from botocore.config import Config

from runner.rehearsal.client import Rehearsal
from runner.transport.ssh import new_host_key

USER = "participant"
CREDENTIALS = {"aws_access_key_id": "rehearsal", "aws_secret_access_key": "rehearsal"}
PATIENCE = 10.0  # seconds until something must have happened


@pytest.fixture(scope="session")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the login user's private key; its public half lies beside it."""
    path = tmp_path_factory.mktemp("keys") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what homes are copied from."""
    home = tmp_path_factory.mktemp("image") / "home"
    home.mkdir()
    (home / ".profile").write_text("export FROM_PROFILE=yes\n")
    return home


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, image: Path) -> Iterator[Rehearsal]:
    """Start the one server."""
    folder = tmp_path_factory.mktemp("rehearsal")
    (folder / "kit").mkdir()
    (folder / "kit" / "problem.py").write_text("")
    (folder / "programs").mkdir()
    program = folder / "programs" / "ramp-test"
    program.write_text("#!/bin/sh\necho trained\n")
    program.chmod(0o755)
    settings = {
        "user": USER,
        "image": {"template": image, "links": {"ramp-kits/iris": folder / "kit"}, "path": [folder / "programs"]},
    }
    with Rehearsal(folder / "root", settings) as rehearsal:
        yield rehearsal


@pytest.fixture(scope="session")
def clients(server: Rehearsal) -> Callable[[str], Any]:
    """Return a maker of boto3 clients that send every call once."""
    known: dict[str, Any] = {}

    def client(service: str) -> Any:
        if service not in known:
            known[service] = boto3.client(
                service,
                endpoint_url=server.url,
                region_name="eu-west-3",
                **CREDENTIALS,
                config=Config(retries={"total_max_attempts": 1}, max_pool_connections=50),
            )
        return known[service]

    return client


@dataclass(frozen=True, kw_only=True)
class World:
    """A rehearsal with an account that something can be launched in."""

    rehearsal: Rehearsal
    ec2: Any
    key_file: Path
    image: str
    group: str
    subnets: dict[str, str]

    def launch(self, count: int = 1, **parameters: Any) -> list[str]:
        """Run instances and return their ids."""
        return [instance["InstanceId"] for instance in self.run(count, **parameters)["Instances"]]

    def run(self, count: int = 1, **parameters: Any) -> dict[str, Any]:
        """Call RunInstances."""
        usual = {
            "ImageId": self.image,
            "InstanceType": "c5.large",
            "KeyName": "key",
            "SecurityGroupIds": [self.group],
            "InstanceInitiatedShutdownBehavior": "terminate",
            "MinCount": 1,
            "MaxCount": count,
        }
        answer: dict[str, Any] = self.ec2.run_instances(**(usual | parameters))
        return answer

    def describe(self, instance: str) -> dict[str, Any]:
        """Return what DescribeInstances says of one instance."""
        (reservation,) = self.ec2.describe_instances(InstanceIds=[instance])["Reservations"]
        (found,) = reservation["Instances"]
        return dict(found)

    def wait_for(self, instance: str, state: str) -> dict[str, Any]:
        """Wait for a state and return what the rehearsal says of the instance."""
        return self.wait(lambda: self.rehearsal.instance(instance), lambda known: known["state"] == state)

    @staticmethod
    def wait(look: Callable[[], Any], is_good: Callable[[Any], bool]) -> Any:
        """Look until it is good, and return what was seen."""
        give_up = time.monotonic() + PATIENCE
        while not is_good(seen := look()):
            assert time.monotonic() < give_up, f"in vain: {seen}"
            time.sleep(0.01)
        return seen

    def connect(self, instance: str, **options: Any) -> paramiko.SSHClient:
        """Connect as the login user, once the machine says that its sshd answers."""
        known = self.wait(lambda: self.rehearsal.instance(instance), lambda known: "sshd answers" in known["console"])
        return self.connect_to(known["address"], **options)

    def connect_to(self, address: str, **options: Any) -> paramiko.SSHClient:
        """Connect to an address."""
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())  # noqa: S507 - what key it is, a test looks at
        usual: dict[str, Any] = {"username": USER, "key_filename": str(self.key_file), "port": self.rehearsal.ssh_port}
        usual |= {"look_for_keys": False, "allow_agent": False, "timeout": PATIENCE, "banner_timeout": PATIENCE}
        try:
            client.connect(address, **(usual | options))
        except BaseException:
            client.close()
            raise
        return client


def run(client: paramiko.SSHClient, command: str, given: bytes = b"") -> tuple[int, bytes, bytes]:
    """Run a command and return its exit code, output and errors."""
    stdin, stdout, stderr = client.exec_command(command, timeout=PATIENCE)
    stdin.write(given)
    stdin.flush()
    stdin.channel.shutdown_write()
    out, err = stdout.read(), stderr.read()
    return stdout.channel.recv_exit_status(), out, err


@pytest.fixture
def make_world(server: Rehearsal, clients: Callable[[str], Any], key_file: Path) -> Iterator[Callable[..., World]]:
    """Return a maker of worlds: keyword arguments are settings."""

    def make(**settings: Any) -> World:
        server.reset(**settings)
        made = server.seed(
            images=[{"name": "iris 2026-01-02"}],
            key_name="key",
            public_key=key_file.with_suffix(".pub").read_text(),
            security_group="ssh",
        )
        return World(
            rehearsal=server,
            ec2=clients("ec2"),
            key_file=key_file,
            image=made["images"]["iris 2026-01-02"],
            group=made["security_group"],
            subnets=made["subnets"],
        )

    yield make
    defects = server.state(processes=False)["defects"]
    server.reset()
    assert defects == [], "the emulation itself failed"


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """Return a world without delays."""
    return make_world()


@pytest.fixture
def host_key() -> tuple[str, str]:
    """Return a host key: private, public."""
    key = new_host_key()
    return key.private, key.public
