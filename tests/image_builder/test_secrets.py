"""A secret that a build needs is nowhere but in the service that keeps it, and for a moment in the kit's own script."""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from image_builder.emulated import bring_up
from image_builder.release import Release
from runner.aws.ec2 import Ec2
from runner.event import open_event
from runner.rehearsal.emulation import emulated
from tests.image_builder.building import Notes

ROOT = Path(__file__).parents[2]
USER, PASSWORD = "organiser@example.org", "Tr0ub4dor&3 ünd mehr"
# As the kits' own: takes what RAMP's kits take, and is as careless as a script can be with what it is given.
DOWNLOAD = """
import hashlib, os, sys, time
from pathlib import Path
given = dict(zip(sys.argv[2::2], sys.argv[3::2]))
print("arguments", sys.argv[1:])
assert sys.argv[1] == "--private" and os.environ["OSF_PASSWORD"] == given["--password"], "not what was stored"
time.sleep(0.5)  # long enough to be looked at
digest = hashlib.sha256((given["--username"] + given["--password"]).encode()).hexdigest()
Path("data", "proof").write_text(digest)
print("downloaded as", given["--username"], "with", given["--password"])
"""


class Watch:
    """Looks at command lines and environments of every process of this host until told to end."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.seen: set[str] = set()

    def look(self) -> None:
        """Look again and again."""
        while not self.over.wait(0.02):
            for process in psutil.process_iter():
                if process.pid == os.getpid():
                    continue
                try:
                    words = [*process.cmdline(), *(f"{name}={value}" for name, value in process.environ().items())]
                except (psutil.Error, OSError):
                    continue
                self.seen.update(word for word in words if PASSWORD in word)


@contextmanager
def watching() -> Iterator[Watch]:
    """Watch all processes while the block runs."""
    watch = Watch()
    thread = threading.Thread(target=watch.look)
    thread.start()
    try:
        yield watch
    finally:
        watch.over.set()
        thread.join()


def everything_that_aws_tells(release: Release) -> str:
    """Return images, instances with their user data, components, recipes and logs, as one text."""
    ec2, session = Ec2(release.session), release.session
    told: list[Any] = [session.call("ec2", "describe_images", Owners=["self"])]
    told.append(session.call("ec2", "describe_snapshots", OwnerIds=["self"]))
    for instance in ec2.describe():
        told.append(instance)
        attribute = {"InstanceId": instance.id, "Attribute": "userData"}
        told.append(session.call("ec2", "describe_instance_attribute", **attribute))
    components = session.call("imagebuilder", "list_components", owner="Self")["componentVersionList"]
    assert components
    for component in components:
        builds = session.call("imagebuilder", "list_component_build_versions", componentVersionArn=component["arn"])
        for build in builds["componentSummaryList"]:
            told.append(session.call("imagebuilder", "get_component", componentBuildVersionArn=build["arn"]))
    for recipe in session.call("imagebuilder", "list_image_recipes")["imageRecipeSummaryList"]:
        told.append(session.call("imagebuilder", "get_image_recipe", imageRecipeArn=recipe["arn"]))
    for group in session.call("logs", "describe_log_groups")["logGroups"]:
        name = group["logGroupName"]
        for stream in session.call("logs", "describe_log_streams", logGroupName=name)["logStreams"]:
            place = {"logGroupName": name, "logStreamName": stream["logStreamName"], "startFromHead": True}
            told.append(session.call("logs", "get_log_events", **place))
    return repr(told)


def test_a_planted_secret_is_found_nowhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ROOT / "examples" / "iris", tmp_path / "iris", ignore=shutil.ignore_patterns("*.db*", "emulated"))
    (tmp_path / "iris" / "ramp-kits" / "iris" / "download_data.py").write_text(DOWNLOAD)
    config = tmp_path / "iris" / "aws.yml"
    keys = yaml.safe_load(config.read_text())
    keys["image"] = {"data": "osf", "data_secret": "ramp/iris/osf"}
    config.write_text(yaml.safe_dump(keys))
    heard = Notes()
    with emulated(config, folder=tmp_path / "emulated", seed_image=False, settings={"ssh_seconds": 0}) as emulation:
        with open_event(emulation.config) as event:
            release = bring_up(Release(config=event.config, store=event.store))
            stored = json.dumps({"OSF_USERNAME": USER, "OSF_PASSWORD": PASSWORD})
            release.session.call("secretsmanager", "create_secret", Name="ramp/iris/osf", SecretString=stored)
            with watching() as watch:
                image = release.accepted(release.follow(release.start(heard), heard), heard.note)
        told = everything_that_aws_tells(release)
    printed = "\n".join(capfd.readouterr())

    homes = list((tmp_path / "emulated" / "aws" / "images").glob(f"{image}/**/data/proof"))
    assert [proof.read_text() for proof in homes] == [hashlib.sha256((USER + PASSWORD).encode()).hexdigest()]
    log = "\n".join(heard.lines)
    assert "downloaded as *** with ***" in log, "the script really printed it"
    assert "downloaded as *** with ***" in told, "and so did the log that AWS keeps"
    assert watch.seen == set()
    for shown in (log, told, printed):
        assert PASSWORD not in shown
        assert USER not in shown
    spelt = [text.encode() for text in (PASSWORD, json.dumps(PASSWORD)[1:-1], USER)]
    files = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert {"ramp-cloud.db", f"{image}.json", "stack.json", ".bashrc", "account.json"} <= {path.name for path in files}
    assert [str(path) for path in files if any(text in path.read_bytes() for text in spelt)] == []
