"""Baking an image over SSH on the emulated EC2: what comes out, and what is left after each way to fail."""

import re
import signal
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from image_builder import documents as component
from image_builder.acceptance import accept
from image_builder.bake import bake
from image_builder.baked_image import image_name
from image_builder.borrowed import NotAnswering
from image_builder.documents import Document
from image_builder.kit import GitKit, Kit, folder_kit
from image_builder.recipe import ImagePlan, plan
from runner.aws.machines import Patience
from runner.aws.session import AwsSession
from runner.aws.tags import CONTENT, IMAGE
from runner.config import load_config
from runner.errors import BuildFailed, ConfigError, ImageError, LaunchStopped, RampCloudError
from runner.rehearsal.faults import (
    CallRefused,
    ConnectionReset,
    ImageCreationFails,
    NeverBoots,
    Stage,
    SuddenDeath,
)
from runner.stack import StackOutputs, write
from tests.rehearsing import IMAGE as BASE
from tests.rehearsing import AwsEventFolder, Cloud

QUICK = Patience(look_soon=0.1, boot=30, handshake=3)
BRIEF = Patience(look_soon=0.1, boot=1)
MOMENT = datetime(2026, 11, 23, 10, 15, 30, 123_456, tzinfo=UTC)
NAME = "iris 2026-11-23T10-15-30.123Z"


def document(name: str, phases: Mapping[str, Mapping[str, str]], **keys: Any) -> Document:
    """Return a document whose phases have ExecuteBash steps: name to script."""
    content = {
        "name": name,
        "schemaVersion": 1.0,
        "phases": [
            {
                "name": phase,
                "steps": [
                    {
                        "name": step,
                        "action": "ExecuteBash",
                        "timeoutSeconds": 20,
                        "inputs": {"commands": [script]},
                        **keys,
                    }
                    for step, script in steps.items()
                ],
            }
            for phase, steps in phases.items()
        ],
    }
    return component.render(name, Path(f"{name}.yaml"), content, {})


GOOD = document(
    "toy",
    {
        "build": {
            "install": 'echo installing as "$(id -un)"; mkdir -p "${RAMP_CLOUD_ROOT:-}/etc/toy"; '
            'echo built > "${RAMP_CLOUD_ROOT:-}/etc/toy/made"; echo kept > "$RAMP_CLOUD_HOME/kept"'
        },
        "validate": {"look": 'grep -q built "${RAMP_CLOUD_ROOT:-}/etc/toy/made"; echo valid'},
        "test": {"try": 'grep -q built "${RAMP_CLOUD_ROOT:-}/etc/toy/made"; cat "$RAMP_CLOUD_HOME/kept"; echo tested'},
    },
)


# What must not come on an image, and what may.
LEAVE = """
cd "$RAMP_CLOUD_ROOT"
mkdir -p etc/ssh
echo key | tee etc/ssh/ssh_host_rsa_key etc/ssh/ssh_host_rsa_key.pub > etc/ssh/sshd_config
echo 4711 > etc/machine-id
echo secret | tee root/.bash_history tmp/left var/tmp/left > "$RAMP_CLOUD_HOME/.bash_history"
"""
LOOK = """
cd "$RAMP_CLOUD_ROOT"
test -e etc/ssh/sshd_config
test ! -e etc/ssh/ssh_host_rsa_key
test ! -e etc/ssh/ssh_host_rsa_key.pub
test -e etc/machine-id
test ! -s etc/machine-id
test ! -e root/.bash_history
test ! -e "$RAMP_CLOUD_HOME/.bash_history"
test ! -e tmp/left
test ! -e var/tmp/left
grep -c . "$RAMP_CLOUD_HOME/.ssh/authorized_keys" | grep -x 1
ls var/lib/cloud/instances | wc -l | grep -x 1
"""


# Never ends at its first attempt.
TWICE = """
first="$RAMP_CLOUD_ROOT/var/first"
if [ ! -e "$first" ]; then
    touch "$first"
    sleep 600 &
    wait
fi
"""
QUICK_TEST = """#!/bin/sh
case "$*" in *--quick-test*) echo "quick test of $2"; exit ;; esac
exec '{standing_in}' "$@"
"""


class Oven:
    """An event whose image is baked, and what was said meanwhile."""

    def __init__(self, folder: Path, cloud: Cloud, session: AwsSession) -> None:
        self.cloud = cloud
        self.session = session
        self.folder = folder
        self.event = AwsEventFolder(folder / "event", cloud)
        self.parent: str = cloud.seeded["images"][BASE]
        self.kit: Kit = GitKit(address="https://example.org/kit", commit="0" * 40)
        self.said: list[str] = []
        self.printed: list[str] = []
        self.on_line: dict[str, Callable[[], object]] = {}

    def plan(self, *documents: Document, **values: Any) -> ImagePlan:
        usual: dict[str, Any] = {
            "name": "iris",
            "user": "ubuntu",
            "documents": documents or (GOOD,),
            "parent": self.parent,
            "architecture": "x86_64",
            "root_device": "/dev/sda1",
            "volume_gb": 30,
            "instance_type": "t3.large",
            "regions": (),
            "schedule": None,
            "gpu": False,
            "kit": self.kit,
            "content": "0123456789abcdef",
            "version": "1.2.3",
            "ami_name": "iris {{ imagebuilder:buildDate }}",
            "ami_tags": {IMAGE: "iris", CONTENT: "0123456789abcdef"},
        }
        return ImagePlan(**{**usual, **values})

    def heard(self, line: str) -> None:
        """Hear a line; something may be due when it is printed."""
        self.printed.append(line)
        for start, deed in list(self.on_line.items()):
            if line.startswith(start):
                del self.on_line[start]
                deed()

    def say(self, line: str) -> None:
        """Note what is done; something may be due when it begins."""
        self.said.append(line)
        for start, deed in list(self.on_line.items()):
            if line.startswith(start):
                del self.on_line[start]
                deed()

    def bake(
        self, *documents: Document, planned: ImagePlan | None = None, patience: Patience = QUICK, **values: Any
    ) -> str:
        config = load_config(self.event.config).worker_config()
        return bake(
            planned or self.plan(*documents, **values),
            config,
            say=self.say,
            heard=self.heard,
            patience=patience,
            session=self.session,
            clock=lambda: MOMENT,
            sleep=lambda _: time.sleep(0.05),
        )

    def images(self) -> dict[str, dict[str, Any]]:
        """Return the images that bear our name, by id."""
        named = [{"Name": "name", "Values": ["iris *"]}]
        found = self.session.call("ec2", "describe_images", Owners=["self"], Filters=named)["Images"]
        return {image["ImageId"]: image for image in found}

    def instances(self) -> list[dict[str, Any]]:
        """Return all instances as EC2 describes them, each with its volumes."""
        found = []
        for reservation in self.session.call("ec2", "describe_instances")["Reservations"]:
            for instance in reservation["Instances"]:
                filters = [{"Name": "attachment.instance-id", "Values": [instance["InstanceId"]]}]
                volumes = self.session.call("ec2", "describe_volumes", Filters=filters)["Volumes"]
                found.append({**instance, "volumes": volumes})
        return found

    def assert_nothing_sleeps(self) -> None:
        """See that what was ended at its time limit does not run any more."""
        give_up = time.monotonic() + 30
        while any("sleep" in each["command"] for each in self.cloud.aws.processes(self.cloud.left()[0])):
            assert time.monotonic() < give_up, "it is still there"

    def give_profile(self, name: str) -> None:
        """Let the stack have an instance profile for building."""
        self.cloud.aws.seed(instance_profile=name)
        outputs = StackOutputs(region=str(self.event.keys["region_name"]), image_profile=name)
        write(self.event.folder / "events" / "toy_event" / "stack.json", outputs)

    def failing(self, kind: type[RampCloudError], *documents: Document, **values: Any) -> RampCloudError:
        """Bake in vain; return what was raised, and see that nothing is left on."""
        with pytest.raises(kind) as caught:
            self.bake(*documents, **values)
        assert self.cloud.left() == []
        return caught.value


@pytest.fixture(scope="module")
def session() -> AwsSession:
    """Return one way to the account for all tests: making boto3's clients takes longer than most of them."""
    return AwsSession()


@pytest.fixture
def oven(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, session: AwsSession) -> Oven:
    """Return an event whose image can be baked."""
    for name, value in cloud.aws.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("runner.aws.launcher._GATHER", 0.0)  # no other launch will come
    return Oven(tmp_path, cloud, session)


def tags_of(described: Mapping[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in described["Tags"]}


def test_an_image_is_baked(oven: Oven) -> None:
    oven.kit = folder_kit(oven.event.kit)
    takes_kit = document(
        "kit",
        {"build": {"unpack": f'tar -tzf "${{RAMP_CLOUD_ROOT:-}}{component.ARCHIVE}" | grep problem.py'}},
    )
    dirt = document("dirt", {"build": {"leave": LEAVE}, "test": {"look": LOOK}})

    oven.session.call("ssm", "put_parameter", Name="/own/base", Value=oven.parent, Type="String")

    oven.give_profile("builders")
    builders: list[dict[str, Any]] = []
    testers: list[dict[str, Any]] = []
    oven.on_line["installing"] = lambda: builders.extend(oven.instances())
    oven.on_line["tested"] = lambda: testers.extend(oven.instances()[1:])

    image = oven.bake(takes_kit, GOOD, dirt, parent="ssm:/own/base")

    assert_protected(*builders, profile="builders")
    assert_protected(*testers, profile=None)
    described = oven.images()[image]
    assert (described["Name"], described["State"]) == (NAME, "available")
    tags = tags_of(described)
    assert (
        tags.items()
        >= {
            "ramp-cloud:image": "iris",
            "ramp-cloud:content": "0123456789abcdef",
            "ramp-cloud:event": "toy_event",
            "ramp-cloud:owner": "toy_event",
        }.items()
    )
    assert "ramp-cloud:accepted" not in tags, "its tests passed, so nothing speaks against it"
    assert oven.cloud.left() == []
    steps = [line for line in oven.printed if not line.startswith("ramp-cloud: ")]
    assert "installing as root" in steps
    assert [line for line in steps if line in ("valid", "kept", "tested")] == ["valid", "kept", "tested"]


def assert_protected(instance: Mapping[str, Any], *, profile: str | None) -> None:
    """See that an instance is launched as the runner launches, but for what a build needs."""
    assert instance["InstanceType"] == "t3.large"
    assert instance["MetadataOptions"]["HttpTokens"] == "required"
    given = instance.get("IamInstanceProfile", {"Arn": "/None"})["Arn"]
    assert given.rpartition("/")[2] == str(profile)
    (volume,) = instance["volumes"]
    assert (volume["Encrypted"], volume["Size"]) == (True, 30)
    tags = tags_of(instance)
    assert tags["ramp-cloud:submissions"] == "bake-image"
    assert datetime.fromisoformat(tags["ramp-cloud:expires"]) > datetime.now(UTC) + timedelta(hours=1)


def test_the_shipped_documents_are_baked_and_the_image_is_accepted(oven: Oven) -> None:
    kit, sandbox = oven.event.kit, oven.event.kit / "submissions" / "starting_kit"
    sandbox.mkdir(parents=True)
    (sandbox / "main.py").write_text("SCORE = 0.875\nprint('trained')")
    (kit / "requirements.txt").write_text("ramp-workflow\nmemory_profiler\n")
    programs = oven.folder / "programs"
    programs.mkdir()
    ramp_test = programs / "ramp-test"
    standing_in = oven.cloud.folder / "image" / "bin" / "ramp-test"
    ramp_test.write_text(QUICK_TEST.format(standing_in=standing_in))
    ramp_test.chmod(0o755)
    oven.cloud.aws.reset(image={"path": [str(programs)]})
    seed(oven, bare=True)
    oven.event.keys |= {
        "ami_image_name": "iris",
        "image": {"base": oven.parent, "environment": "pip", "instance_type": "t3.medium", "kit": str(kit)},
    }
    config = load_config(oven.event.config)

    image = oven.bake(planned=plan(config, bucket=None))

    assert "quick test of starting_kit" in oven.printed
    found = accept(config.worker_config(), image_id=image, sandbox=sandbox, gpu=False, say=oven.say, patience=QUICK)
    assert found.ok, found.reason
    assert "trained" in oven.said
    assert oven.cloud.left() == []


# -- refused before anything is launched -----------------------------------------------------------------------------


def test_an_action_that_only_awstoe_knows(oven: Oven) -> None:
    content = {
        "name": "own",
        "schemaVersion": 1.0,
        "phases": [{"name": "build", "steps": [{"name": "again", "action": "Reboot", "inputs": {}}]}],
    }
    own = component.render("own", Path("own.yaml"), content, {})

    error = oven.failing(ImageError, GOOD, own)

    assert "only EC2 Image Builder can run this:\n  own.yaml: phase build, step again: action Reboot" in error.message
    assert oven.cloud.instances() == []


def test_a_base_that_is_not_known(oven: Oven) -> None:
    error = oven.failing(ImageError, parent="ssm:/aws/service/nowhere/ami-id")

    assert error.message.startswith("base: /aws/service/nowhere/ami-id leads to no image in eu-west-3; set base to")
    assert oven.cloud.instances() == []


def test_a_volume_that_is_too_small(oven: Oven) -> None:
    error = oven.failing(ConfigError, volume_gb=1)

    assert re.fullmatch(r"volume_gb: 1 GiB are less than ami-\w+ has; set it to \d+ or more", error.message)
    assert oven.cloud.instances() == []


# -- at every stage --------------------------------------------------------------------------------------------------


def test_a_launch_that_is_refused(oven: Oven) -> None:
    oven.cloud.aws.arm(CallRefused(action="RunInstances", code="UnauthorizedOperation", message="not you", status=403))

    error = oven.failing(LaunchStopped)

    assert "these credentials may not call" in error.message
    assert oven.images() == {}


def test_the_builder_never_answers(oven: Oven) -> None:
    oven.cloud.aws.arm(NeverBoots())

    error = oven.failing(NotAnswering, patience=BRIEF)

    assert "did not answer on SSH within 1 s; look at the end of its console below" in error.message
    assert oven.images() == {}


def test_a_step_fails(oven: Oven) -> None:
    bad = document("bad", {"build": {"one": "echo fine", "two": "echo about to fail; false; echo never"}})

    error = oven.failing(BuildFailed, GOOD, bad)

    assert error.message.startswith("step two of document bad ended with code 1 in phase build; what it printed last")
    assert error.detail.endswith("about to fail")
    assert (error.fields["document"], error.fields["phase"], error.fields["step"]) == ("bad", "build", "two")
    assert oven.images() == {}


def test_a_step_takes_too_long(oven: Oven) -> None:
    # Many attempts: on a busy machine the first may be ended before it could do anything.
    again = document("again", {"build": {"wait": TWICE}}, timeoutSeconds=1, maxAttempts=20)
    slow = document("slow", {"build": {"wait": "sleep 600 & sleep 600"}}, timeoutSeconds=1)

    oven.on_line["ramp-cloud: done again"] = oven.assert_nothing_sleeps

    error = oven.failing(BuildFailed, again, slow)

    assert oven.on_line == {}, "another attempt went well"

    assert "step wait of document slow did not end within 1 s" in error.message


def test_a_connection_that_breaks_under_a_step(oven: Oven) -> None:
    stuck = document("stuck", {"build": {"wait": "echo waiting; sleep 600"}})
    oven.on_line["waiting"] = lambda: oven.cloud.aws.act(oven.cloud.left()[0], "drop-ssh")

    error = oven.failing(BuildFailed, stuck)

    instance = oven.cloud.instances()[0]["id"]
    assert error.message == (
        f"the connection to {instance} broke during step wait of document stuck (build); look at this machine's "
        "network, and try again"
    )
    assert (error.fields["document"], error.fields["phase"], error.fields["step"]) == ("stuck", "build", "wait")


def test_a_builder_that_is_ended_under_a_step(oven: Oven) -> None:
    stuck = document("stuck", {"build": {"wait": "echo waiting; sleep 600"}})
    oven.on_line["waiting"] = lambda: oven.cloud.aws.act(oven.cloud.left()[0], "kill")

    error = oven.failing(BuildFailed, stuck)

    instance = oven.cloud.instances()[0]["id"]
    assert error.message.startswith(
        f"{instance} was ended from outside during step wait of document stuck (build) (Server.InternalError"
    )


def test_create_image_is_refused(oven: Oven) -> None:
    oven.cloud.aws.arm(CallRefused(action="CreateImage", code="UnauthorizedOperation", message="not you", status=403))

    error = oven.failing(BuildFailed)

    assert "AWS makes no image of i-" in error.message
    assert "these credentials may not call create_image" in error.message
    assert oven.images() == {}


def test_the_answer_of_create_image_is_lost(oven: Oven) -> None:
    oven.cloud.aws.arm(ConnectionReset(action="CreateImage", done=True, times=1))

    image = oven.bake()

    assert list(oven.images()) == [image], "the image that was made then is taken, and no second one"


def test_an_image_that_comes_to_nothing(oven: Oven) -> None:
    oven.cloud.aws.arm(ImageCreationFails(message="Client.InternalError: no room"))

    error = oven.failing(BuildFailed)

    assert re.fullmatch(
        rf"AWS could not make the image '{NAME}', ami-\w+ is failed: Client.InternalError: no room; build it again",
        error.message,
    )
    assert oven.images() == {}


@pytest.mark.parametrize("at", ["waiting", "making the image"])
def test_ctrl_c_while_it_builds(oven: Oven, at: str) -> None:
    stuck = document("stuck", {"build": {"wait": "echo waiting; sleep 600" if at == "waiting" else "echo on"}})
    oven.on_line[at] = lambda: signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        oven.bake(stuck)

    assert oven.cloud.left() == []
    assert oven.images() == {}


def test_ctrl_c_while_the_builder_boots(oven: Oven) -> None:
    oven.cloud.aws.arm(NeverBoots(state="pending"))
    here = threading.main_thread().ident
    assert here is not None

    def interrupt() -> None:
        give_up = time.monotonic() + 30
        while not oven.cloud.left() and time.monotonic() < give_up:
            time.sleep(0.02)
        signal.pthread_kill(here, signal.SIGINT)

    helper = threading.Thread(target=interrupt)
    helper.start()
    with pytest.raises(KeyboardInterrupt):
        oven.bake()
    helper.join()

    assert len(oven.cloud.instances()) == 1
    assert oven.cloud.left() == []


def test_ctrl_c_while_the_image_is_made(oven: Oven) -> None:
    oven.cloud.aws.reset(image_seconds=600)
    seed(oven)
    oven.on_line["ami-"] = lambda: signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        oven.bake()

    assert oven.cloud.left() == []
    (image,) = oven.images()
    assert tags_of(oven.images()[image])["ramp-cloud:accepted"] == "no", "should it become available, no event takes it"


def seed(oven: Oven, **image: Any) -> None:
    """Make an account as ``Cloud.renew`` does, after a reset that changed settings."""
    oven.cloud.seeded = oven.cloud.aws.seed(
        images=[{"name": BASE, "created": "2026-01-01T00:00:00Z", **image}],
        key_name="toy key",
        public_key=oven.cloud.login.public,
        security_group="toy group",
    )
    oven.parent = oven.cloud.seeded["images"][BASE]


def test_the_tests_fail(oven: Oven) -> None:
    bad = document("bad", {"test": {"try": "echo no ramp-test here; exit 3"}})

    error = oven.failing(BuildFailed, GOOD, bad)

    (image,) = oven.images()
    assert error.message.startswith("step try of document bad ended with code 3 in phase test")
    assert oven.said[-1] == (
        f"{image} stays to be looked at, and no event takes it; `./inv test-image --ami {image}` tests it again"
    )
    assert tags_of(oven.images()[image])["ramp-cloud:accepted"] == "no"


def test_the_tester_is_ended_while_it_boots(oven: Oven) -> None:
    oven.cloud.aws.arm(SuddenDeath(skip=1, stage=Stage.BOOT))

    error = oven.failing(ImageError)

    (image,) = oven.images()
    assert "the instance was ended from outside while it booted (Server.InternalError" in error.message
    assert tags_of(oven.images()[image])["ramp-cloud:accepted"] == "no"
    assert len(oven.cloud.instances()) == 2


def test_a_mark_that_cannot_be_taken_away(oven: Oven) -> None:
    oven.cloud.aws.arm(CallRefused(action="DeleteTags", code="UnauthorizedOperation", message="not you", status=403))

    error = oven.failing(ImageError)

    (image,) = oven.images()
    assert error.message.startswith(
        f"{image} passed its tests and is still marked as not accepted; run `./inv test-image"
    )


def test_ctrl_c_while_it_is_tested(oven: Oven) -> None:
    oven.on_line["tested"] = lambda: signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        oven.bake()

    assert oven.cloud.left() == []
    (image,) = oven.images()
    assert tags_of(oven.images()[image])["ramp-cloud:accepted"] == "no"


def test_names_are_as_image_builder_writes_them() -> None:
    assert image_name("iris {{ imagebuilder:buildDate }}", MOMENT) == NAME
