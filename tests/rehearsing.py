"""Events on an emulated AWS: one server per test process, its account made anew for every test."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.rehearsal.client import Rehearsal
from runner.transport.ssh import new_host_key
from tests.event_folder import PROBLEM, EventFolder, make_environment

IMAGE = "toy image"
USER = "ubuntu"


class Cloud:
    """An emulated AWS whose machines have the toy kit and the stand-in for ramp-test.

    Args:
        folder: an empty folder; outlives the tests that share the cloud.
        settings: keys of runner.rehearsal.settings.Settings in place of those used here.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        programs = make_environment(folder / "image").parent
        kit = folder / "kit"
        (kit / "data").mkdir(parents=True)
        (kit / "problem.py").write_text(PROBLEM)
        image = {"links": {"ramp-kits/toy": str(kit)}, "path": [str(programs)]}
        self.folder = folder
        self.login = new_host_key()  # any key pair would do
        self.key = folder / "key"
        self.key.touch(mode=0o600)
        self.key.write_text(self.login.private)
        self.aws = Rehearsal(folder / "aws", {"user": USER, "image": image, **settings})

    def start(self) -> None:
        """Start the server; takes seconds."""
        self.aws.start()

    def stop(self) -> None:
        """End the server and every machine."""
        self.aws.stop()

    def renew(self) -> None:
        """Make the account as new: no machine, no fault, one image, one key pair, one security group."""
        self.aws.reset()
        self.seeded = self.aws.seed(
            images=[{"name": IMAGE, "created": "2026-01-01T00:00:00Z"}],
            key_name="toy key",
            public_key=self.login.public,
            security_group="toy group",
        )

    @property
    def keys(self) -> dict[str, Any]:
        """Keys of config.yml for an event that runs here."""
        return {
            "worker_type": "aws",
            "ami_image_name": IMAGE,
            "ami_user_name": USER,
            "key_name": "toy key",
            "key_path": str(self.key),
            "security_group": "toy group",
            "region_name": self.aws.environment["AWS_REGION"],
            "ssh_port": self.aws.ssh_port,
            "remote_ramp_kit_folder": "~/ramp-kits/toy",
        }

    # -- what AWS saw --------------------------------------------------------------------------------------------

    def instances(self) -> list[dict[str, Any]]:
        """Return every instance that was launched."""
        return list(self.aws.state(processes=False)["instances"])

    def left(self) -> list[str]:
        """Return the instances that are not ended."""
        return [i["id"] for i in self.instances() if i["state"] not in ("shutting-down", "terminated")]

    def calls(self, *actions: str) -> int:
        """Return how many calls there were, of all actions or of some."""
        return sum(not actions or call["action"] in actions for call in self.aws.state(processes=False)["calls"])


class AwsEventFolder(EventFolder):
    """An event whose submissions train on machines of a cloud; see ``EventFolder``."""

    def __init__(self, folder: Path, cloud: Cloud, **keys: Any) -> None:
        super().__init__(folder, **{**cloud.keys, **keys})
        del self.keys["python"]
        self.cloud = cloud


def clouds(folder: Path, settings: Mapping[str, Any]) -> Iterator[Cloud]:
    """Yield a running cloud and end it; the body of a fixture."""
    cloud = Cloud(folder, **settings)
    try:
        cloud.start()
        yield cloud
    finally:
        cloud.stop()
        shutil.rmtree(folder, ignore_errors=True)
