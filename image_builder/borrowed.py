"""One instance of an image for a while: launched as the event launches its own, ended whatever happens meanwhile."""

import logging
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from runner.aws.event import Ec2Event, open_event
from runner.aws.machines import OVER, Machine, Patience
from runner.aws.session import AwsSession
from runner.aws.tags import KEEP, Request, runs_of
from runner.errors import AwsError, ImageError, Interrupted, NoRoom, RampCloudError, TransportError, WorkerError
from runner.transport.base import Reason, Transport

logger = logging.getLogger(__name__)
_BY_ITSELF = "Client.InstanceInitiatedShutdown"


class NotAnswering(ImageError):
    """An instance of an image was launched, and nobody could log in to it: the image, its login user or the way there
    is to blame."""


@dataclass(frozen=True, kw_only=True)
class Borrowed:
    """An instance that answers. ``stop`` ends every wait for it."""

    event: Ec2Event
    machine: Machine
    run: str
    stop: threading.Event

    @property
    def transport(self) -> Transport:
        """The connection to it."""
        return self.machine.transport

    def loss(self) -> str | None:
        """Return why the instance does not run any more, asked anew; None while it does."""
        return self.event.machines.lost(self.machine)

    def reconnect(self) -> None:
        """Make the connection anew after it broke.

        Raises:
            ImageError: the instance is gone or out of reach.
        """
        try:
            self.event.machines.reconnect(self.machine, self.stop)
        except Interrupted as error:
            raise lost(self, error.detail) from error


@contextmanager
def borrow(
    config: Mapping[str, Any],
    *,
    image_id: str,
    purpose: str,
    minutes: int,
    volume_gb: int | None = None,
    patience: Patience | None = None,
    session: AwsSession | None = None,
) -> Iterator[Borrowed]:
    """Launch an instance on demand, wait until it answers, and end it at the end of the block, however that ends.

    It is the event's own by its tags and in its ledger, and is marked as kept, so that a dispatcher of the event leaves
    it alone. If this process dies it ends itself.

    Args:
        config: what workers get, completed by the stack's outputs; what it says of image and market does not count.
        image_id: the image.
        purpose: a word for the ledger and the tags.
        minutes: from its boot until it ends itself.
        volume_gb: size of the root volume in GiB; None: the image's own.
        patience: how long things may take.
        session: the way to the account, where there is one already.

    Raises:
        NotAnswering: it could not be logged in to.
        ImageError: AWS has no such machine now, or the instance was ended from outside.
        ConfigError, LaunchStopped, AwsError: nothing can be launched.
    """
    until = datetime.now(UTC) + timedelta(minutes=minutes)
    event = open_event(
        _alone(config, image_id),
        patience=patience,
        session=session,
        minutes=minutes,
        volume_gb=volume_gb,
        tags={KEEP: until.isoformat(timespec="seconds")},
    )
    run, stop = uuid.uuid4().hex, threading.Event()
    try:
        machine = _acquired(event, Request(run=run, submission=purpose, attempt=1), stop, image_id, config)
        try:
            yield Borrowed(event=event, machine=machine, run=run, stop=stop)
        finally:
            event.machines.release(machine)
    finally:
        stop.set()  # an instance that comes only now is ended by the launcher
        event.machines.close()
        _end_what_is_left(event, run)


def lost(borrowed: Borrowed, reason: str) -> ImageError:
    """Return the error for an instance that is gone, or out of reach, in the middle of its work."""
    gone = borrowed.loss()
    if gone:
        msg = f"the instance was ended from outside ({gone}); that says nothing about the image: try again"
    else:
        msg = "the connection to the instance broke for good; look at this machine's network, and try again"
    return ImageError(msg, detail=reason, instance=borrowed.machine.instance.id)


def _alone(config: Mapping[str, Any], image_id: str) -> dict[str, Any]:
    """Return the config for one instance of one image that nobody takes back."""
    return {
        **config,
        "ami_image_name": None,
        "ami_image_id": image_id,
        "require_accepted": False,
        "use_spot_instance": False,  # an interruption would cost the work and say nothing about the image
        "instances_reused": 1,
        "keep_failed_minutes": 0,
    }


def _acquired(
    event: Ec2Event, request: Request, stop: threading.Event, image_id: str, config: Mapping[str, Any]
) -> Machine:
    try:
        return event.machines.acquire(request, stop)
    except NoRoom as error:
        msg = f"AWS has no machine of type {_types(config)} free now; wait, or choose another instance_type"
        raise ImageError(msg, detail=error.for_organiser()) from error
    except WorkerError as error:
        raise _not_up(event, error, image_id, config) from error


def _not_up(event: Ec2Event, error: WorkerError, image_id: str, config: Mapping[str, Any]) -> ImageError:
    """Say why an instance did not get to where it could be used. Messages of the runner speak of submissions."""
    cause = error.__cause__
    instance = str(error.fields.get("instance", ""))
    gone = event.machines.gone(instance) if instance else None
    if gone and _BY_ITSELF not in gone:
        msg = f"the instance was ended from outside while it booted ({gone}); try again"
        return ImageError(msg, detail=error.detail, instance=instance)
    user = config["ami_user_name"]
    if gone:
        msg = f"an instance of {image_id} shuts itself down while it boots; look at what the image starts"
    elif isinstance(cause, TransportError) and cause.fields.get("reason") is Reason.AUTH:
        msg = (
            f"nobody can log in to {image_id} as {user!r} with the key pair; correct the user (ubuntu on Ubuntu, "
            "ec2-user on Amazon Linux: ami_user_name, and user of the image section), or look at the image's cloud-init"
        )
    else:
        msg = (
            f"an instance of {image_id} did not answer on SSH within {event.patience.boot:g} s; look at the end of its "
            "console below, and whether security_group lets this machine in"
        )
    return NotAnswering(msg, detail=error.detail, instance=instance)


def _end_what_is_left(event: Ec2Event, run: str) -> None:
    """End what was launched for a run and has no holder, after an interruption at the very moment of its launch."""
    try:
        there = event.ec2.describe(owner=event.owner, event_id=event.event_id)
        left = [each.id for each in there if each.state not in OVER and run in runs_of(each.tags)]
        if left:
            event.ec2.terminate(left)
    except AwsError as error:
        logger.warning(
            "whether the instance of run %s has ended is not known; it ends itself, or by `./inv sweep --all`: %s",
            run,
            _brief(error),
        )


def _types(config: Mapping[str, Any]) -> str:
    types = config["instance_type"]
    return types if isinstance(types, str) else ", ".join(types)


def _brief(error: RampCloudError) -> str:
    return error.message
