"""Makes an image by hand, for accounts without EC2 Image Builder: an instance of the base, the documents over SSH,
CreateImage, and the documents' tests on an instance of what came out.
"""

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from image_builder.baked_image import ImageMaker
from image_builder.borrowed import Borrowed, borrow
from image_builder.documents import ARCHIVE, BEGIN, Document
from image_builder.kit import FolderKit
from image_builder.recipe import ImagePlan
from image_builder.ssh_shell import SshShell
from image_builder.steps import refuse_others, run_documents
from runner.archive import Entry, pack
from runner.aws.ec2 import Ec2
from runner.aws.event import filled, open_session
from runner.aws.images import Image
from runner.aws.machines import Patience
from runner.aws.session import AwsSession
from runner.aws.tags import belonging_tags
from runner.errors import AwsError, BuildFailed, ConfigError, ImageError, TransportError
from runner.stack import read

PURPOSE = "bake-image"
BUILD_HOURS = 5  # from its boot until the building instance ends itself, whatever has become of us
TEST_HOURS = 2  # the same for the instance that tests

_PHASES = ("build", "validate", "test")
_FIRST_BOOT = 900.0  # seconds for cloud-init, whose package updates would get in the way of ours
_CLEAN_UP = 600.0  # seconds
_KIT = 1800.0  # seconds for bringing the kit there
_LINES = 40  # of what was printed last, in a message

_WAIT = """
until [ -e "${RAMP_CLOUD_ROOT:-}/var/lib/cloud/instances/$instance/boot-finished" ]; do sleep 0.3; done
"""
# What must not be in an image: whoever starts from it would share its identity, or let in who built it. The check comes
# first: a machine that is not the one that was launched for this is never cleaned.
_CLEAN = """
set -euo pipefail
root="${RAMP_CLOUD_ROOT:-}"
if [ ! -e "$root/var/lib/cloud/instances/$instance/boot-finished" ]; then
    echo "this is not $instance, which was launched to be made an image of" >&2
    exit 3
fi
home="${RAMP_CLOUD_HOME:-$(getent passwd "$user" | cut -d: -f6)}"
test -d "$home"
echo "removing keys, host keys, histories, logs and cloud-init's memory"
for folder in "$home" "$root/root"; do
    rm -f "$folder/.ssh/authorized_keys" "$folder/.ssh/known_hosts"
    rm -f "$folder/.bash_history" "$folder/.python_history" "$folder/.lesshst" "$folder/.wget-hsts" "$folder/.viminfo"
    rm -f "$folder/.sudo_as_admin_successful"
done
rm -rf "$home/.ramp-cloud/build" "$home/.ramp-cloud/runs"
rm -f "$root"/etc/ssh/ssh_host_*_key "$root"/etc/ssh/ssh_host_*_key.pub
rm -f "$root/var/lib/systemd/random-seed"
rm -f "$root"/var/log/cloud-init.log "$root"/var/log/cloud-init-output.log
for folder in "$root/tmp" "$root/var/tmp"; do
    if [ -d "$folder" ]; then
        find "$folder" -mindepth 1 -maxdepth 1 ! -name 'systemd-private-*' -exec rm -rf -- {} +
    fi
done
if [ -e "$root/etc/machine-id" ]; then : > "$root/etc/machine-id"; fi
for name in instance instances data sem; do rm -rf "$root/var/lib/cloud/$name"; done
sync
"""


def bake(
    plan: ImagePlan,
    config: Mapping[str, Any],
    *,
    say: Callable[[str], None],
    heard: Callable[[str], None],
    patience: Patience | None = None,
    session: AwsSession | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    sleep: Callable[[float], object] = time.sleep,
) -> str:
    """Build and test an image, and return its id. Every instance is ended, however it goes.

    The image is marked as not accepted from its first moment on; the mark goes when the tests have passed. So one that
    fails its tests, or whose maker dies, is there to be looked at and no event takes it.

    Args:
        plan: what to build; made without a bucket, since the kit comes over SSH.
        config: what workers get; with ``event_uid`` where the event has a store.
        say: told what is done.
        heard: gets what the documents print, line by line.
        patience: how long instances may take.
        session: the way to the account, where there is one already.
        clock: the present moment, UTC, for the image's name.
        sleep: waits between two looks at the image.

    Raises:
        BuildFailed: a step failed, the connection broke under it, or AWS made no image.
        ImageError: a document cannot be run over SSH, or an instance did not boot or was taken away.
        ConfigError, LaunchStopped, AwsError: nothing can be launched, or AWS refuses.
    """
    refuse_others(plan.documents, _PHASES)
    whole = filled(config)
    session = session or open_session(whole)
    parent = _parent(session, plan)
    whole |= {"instance_type": plan.instance_type, "ami_user_name": plan.user}
    maker = ImageMaker(session, _tags(plan, whole), say=say, clock=clock, sleep=sleep)
    launch = partial(borrow, purpose=PURPOSE, patience=patience, session=session)
    say(f"building {plan.name} from {parent.id} ({parent.name}) on a {plan.instance_type}")
    with launch(
        whole | {"instance_profile": _profile(whole)},
        image_id=parent.id,
        minutes=BUILD_HOURS * 60,
        volume_gb=plan.volume_gb,
    ) as machine:
        _build(plan, machine, say, heard)
        image = maker.make(machine.machine.instance.id, plan)
    say(f"testing {image}")
    try:
        with launch(whole, image_id=image, minutes=TEST_HOURS * 60) as machine:
            say(f"{machine.machine.instance.id} answers")
            _run(plan.documents, _PHASES[2:], machine, heard)
    except BaseException:
        say(f"{image} stays to be looked at, and no event takes it; `./inv test-image --ami {image}` tests it again")
        raise
    maker.release(image)
    if others := [region for region in plan.regions if region != session.region()]:
        say(f"{image} is in {session.region()} only; nothing is copied to {', '.join(others)} when an image is baked")
    return image


# -- the parts -------------------------------------------------------------------------------------------------------


def _parent(session: AwsSession, plan: ImagePlan) -> Image:
    """Return the image to start from, as it is now.

    Raises:
        ConfigError, AwsError: it cannot be found.
        ImageError: the volume would be too small for it.
    """
    found = plan.parent
    if found.startswith("ssm:"):
        name = found.removeprefix("ssm:")
        try:
            found = str(session.call("ssm", "get_parameter", Name=name)["Parameter"]["Value"])
        except AwsError as error:
            if error.fields.get("code") != "ParameterNotFound":
                raise
            msg = f"base: {name} leads to no image in {session.region()}; set base to the id of an image, ami-…"
            raise ImageError(msg, detail=error.detail) from error
    image = Ec2(session).image(image_id=found, types=[plan.instance_type])
    if image.root_gib and image.root_gib > plan.volume_gb:
        msg = f"volume_gb: {plan.volume_gb} GiB are less than {image.id} has; set it to {image.root_gib} or more"
        raise ConfigError(msg)
    return image


def _profile(config: Mapping[str, Any]) -> str | None:
    """Return the instance profile of the build: the stack's own for that, otherwise the event's."""
    outputs = read(Path(config["stack_outputs"]))
    if outputs is not None and outputs.region == config["region_name"] and outputs.image_profile:
        return outputs.image_profile
    profile: str | None = config["instance_profile"]
    return profile


def _tags(plan: ImagePlan, config: Mapping[str, Any]) -> dict[str, str]:
    event = config["event_name"]
    whose = belonging_tags(event=event, event_id=str(config.get("event_uid") or event), owner=config["owner"])
    return {**whose, **plan.ami_tags}


def _build(plan: ImagePlan, machine: Borrowed, say: Callable[[str], None], heard: Callable[[str], None]) -> None:
    """Do on the building instance everything that comes before its image is made."""
    instance = machine.machine.instance.id
    say(f"{instance} answers; waiting for its first boot to end")
    _script(machine, _with_values(_WAIT, instance=instance), "its first boot", timeout=_FIRST_BOOT)
    if isinstance(plan.kit, FolderKit):
        say(f"bringing the kit {plan.kit.folder}")
        with _telling(machine, "the upload of the kit"):
            _bring(plan.kit, machine)
    _run(plan.documents, _PHASES[:2], machine, heard)
    say("cleaning up what must not be in the image")
    _script(machine, _with_values(_CLEAN, instance=instance, user=plan.user), "the clean-up", timeout=_CLEAN_UP)


def _script(machine: Borrowed, script: str, what: str, *, timeout: float) -> None:
    """Run a script of ours, which must succeed."""
    said: list[str] = []
    with _telling(machine, what):
        try:
            code = SshShell(machine.transport).run(script, timeout=timeout, heard=said.append)
        except TimeoutError:
            how = f"did not end within {timeout:g} s"
        else:
            how = f"failed with code {code}"
            if code == 0:
                return
    msg = f"{what} {how} on {machine.machine.instance.id}; look at the base image and the documents, then try again"
    raise BuildFailed(msg, detail="\n".join(said[-_LINES:]), phase="build", step=what)


def _bring(kit: FolderKit, machine: Borrowed) -> None:
    """Put the kit's archive where its document looks for it."""
    transport = machine.transport
    folder, _, name = ARCHIVE.rpartition("/")
    found = transport.run(["sh", "-c", f'printf %s "${{RAMP_CLOUD_ROOT:-}}{folder}"'])
    archive = kit.archive()
    try:
        with archive.open("rb") as content:
            entry = Entry(name=name, content=content, size=archive.stat().st_size)
            with pack([entry]) as parcel:
                transport.put(parcel, found.out.decode(), timeout=_KIT)
    finally:
        archive.unlink()


def _run(documents: Sequence[Document], phases: Sequence[str], machine: Borrowed, heard: Callable[[str], None]) -> None:
    """Run phases of the documents, and tell a connection that breaks as what it is."""
    watch = _Watch(heard)
    with _telling(machine, watch):
        run_documents(documents, phases, SshShell(machine.transport), watch)


@dataclass
class _Watch:
    """Hears what the documents print and remembers which step began last."""

    heard: Callable[[str], None]
    step: tuple[str, str, str] = ("", "", "")

    def __call__(self, line: str) -> None:
        words = line.removeprefix(BEGIN).split(maxsplit=2)
        if line.startswith(BEGIN) and len(words) == len(self.step):
            self.step = (words[0], words[1], words[2])
        self.heard(line)

    def __str__(self) -> str:
        document, phase, step = self.step
        return f"step {step} of document {document} ({phase})" if document else "the first document"

    def fields(self) -> dict[str, str]:
        return dict(zip(("document", "phase", "step"), self.step, strict=True))


@contextmanager
def _telling(machine: Borrowed, what: "_Watch | str") -> Iterator[None]:
    """Say during what the connection broke, and whether the instance is gone."""
    try:
        yield
    except TransportError as error:
        instance = machine.machine.instance.id
        fields = what.fields() if isinstance(what, _Watch) else {"phase": "build", "step": what}
        gone = machine.loss()
        if gone:
            msg = f"{instance} was ended from outside during {what} ({gone}); try again"
        elif machine.transport.is_open:
            msg = f"{what} failed on {instance}: {error.message}"
        else:
            msg = f"the connection to {instance} broke during {what}; look at this machine's network, and try again"
        raise BuildFailed(msg, detail=error.for_organiser(), instance=instance, **fields) from error


def _with_values(script: str, **values: str) -> str:
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items()) + script
