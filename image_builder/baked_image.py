"""An AMI made from an instance: named as Image Builder names it, tagged in the call that makes it, waited for."""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from image_builder.recipe import ImagePlan
from runner.aws.session import AwsSession, Unanswered
from runner.aws.tags import ACCEPTED, NAME, REJECTED, as_list
from runner.errors import AwsError, BuildFailed, ImageError, Throttled

BUILD_DATE = "{{ imagebuilder:buildDate }}"

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 15.0  # seconds between two looks at an image that is being made
_LONGEST = 3600.0  # seconds until it must be available: a large volume takes long
_DUPLICATE = "InvalidAMIName.Duplicate"


class ImageMaker:
    """Makes images from instances.

    Args:
        session: the way to the account.
        tags: of image and snapshots.
        say: told what is done.
        clock: the present moment, UTC.
        sleep: waits so many seconds.
        now: seconds that only grow.
    """

    def __init__(
        self,
        session: AwsSession,
        tags: Mapping[str, str],
        *,
        say: Callable[[str], None],
        clock: Callable[[], datetime],
        sleep: Callable[[float], object],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._tags = tags
        self._say = say
        self._clock = clock
        self._sleep = sleep
        self._now = now

    def make(self, instance: str, plan: ImagePlan) -> str:
        """Make an image of an instance, which restarts meanwhile, and return its id once it is available.

        It is marked as rejected until ``release``.

        Raises:
            BuildFailed: AWS did not make it.
            AwsError: AWS does not answer, or does not allow it.
        """
        name = image_name(plan.ami_name, self._clock())
        self._say(f"making the image {name!r}")
        image = self._create(instance, name)
        self._say(f"{image} is being made; this takes some minutes")
        try:
            self._await(image, name)
        except KeyboardInterrupt:
            self._say(f"{image} may still become available; no event takes it, and `./inv prune-images` removes it")
            raise
        return image

    def release(self, image: str) -> None:
        """Take the mark of a rejected image away.

        Raises:
            ImageError: AWS does not answer, or does not allow it.
        """
        try:
            self._session.call("ec2", "delete_tags", Resources=[image], Tags=as_list({ACCEPTED: REJECTED}))
        except AwsError as error:
            msg = f"{image} passed its tests and is still marked as not accepted; run `./inv test-image --ami {image}`"
            raise ImageError(msg, detail=error.for_organiser(), image=image) from error

    def _create(self, instance: str, name: str) -> str:
        tags = {**self._tags, NAME: name}
        tagged = [
            {"ResourceType": "image", "Tags": as_list({**tags, ACCEPTED: REJECTED})},
            {"ResourceType": "snapshot", "Tags": as_list(tags)},
        ]
        try:
            answer = self._session.call(
                "ec2", "create_image", InstanceId=instance, Name=name, TagSpecifications=tagged, NoReboot=False
            )
        except AwsError as error:
            # The name is ours alone: where it is taken, a call was carried out whose answer was lost.
            if error.fields.get("code") != _DUPLICATE and not isinstance(error, Unanswered):
                msg = f"AWS makes no image of {instance}: {error.message}"
                raise BuildFailed(msg, detail=error.detail, phase="image") from error
            found = self._session.call(
                "ec2", "describe_images", Owners=["self"], Filters=[{"Name": "name", "Values": [name]}]
            )["Images"]
            if not found:
                raise
            return str(found[0]["ImageId"])
        return str(answer["ImageId"])

    def _await(self, image: str, name: str) -> None:
        deadline, pause = self._now() + _LONGEST, _FIRST_PAUSE
        while True:
            found = self._look(image)
            state = found.get("State", "pending")  # AWS may not know its own image yet
            if state == "available":
                return
            if state not in {"pending", "transient"}:
                reason = (found.get("StateReason") or {}).get("Message") or "AWS gives no reason"
                self._remove(image)
                msg = f"AWS could not make the image {name!r}, {image} is {state}: {reason}; build it again"
                raise BuildFailed(msg, phase="image", image=image)
            if self._now() >= deadline:
                msg = (
                    f"the image {name!r} ({image}) is still {state} after {_LONGEST / 60:g} minutes; look at it with "
                    f"`./inv images`, and when it is available test it with `./inv test-image --ami {image}`"
                )
                raise BuildFailed(msg, phase="image", image=image)
            self._sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE)

    def _look(self, image: str) -> dict[str, Any]:
        try:
            # As a filter: an unknown id would be an error, and a new one may not be known everywhere at once.
            answer = self._session.call("ec2", "describe_images", Filters=[{"Name": "image-id", "Values": [image]}])
        except (Throttled, Unanswered):  # the next look tells
            return {}
        return dict(answer["Images"][0]) if answer["Images"] else {}

    def _remove(self, image: str) -> None:
        """Take back an image that failed; what cannot be removed now is found by its tags later."""
        try:
            self._session.call("ec2", "deregister_image", ImageId=image)
        except AwsError as error:
            self._say(f"{image} could not be removed, `./inv prune-images` does it: {error.message}")


def image_name(pattern: str, moment: datetime) -> str:
    """Return the name of an image made at a moment as Image Builder writes it: ``iris 2026-11-23T10-15-30.123Z``."""
    utc = moment.astimezone(UTC)
    return pattern.replace(BUILD_DATE, f"{utc:%Y-%m-%dT%H-%M-%S}.{utc.microsecond // 1000:03d}Z")
