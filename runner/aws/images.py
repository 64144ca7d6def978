"""Which image an event runs on: the newest of our own account that bears exactly the event's name. Pure; no calls."""

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from runner.aws.tags import ACCEPTED, CONTENT, REJECTED
from runner.errors import ConfigError

# Image Builder's {{ imagebuilder:buildDate }}: 2026-11-23T10-15-30.123Z, with or without fractions. Names of images
# cannot hold a colon; a dot in its place and a missing Z were seen in names made by hand.
_BUILD_DATE = r"\d{4}-\d{2}-\d{2}T\d{2}[-.]\d{2}[-.]\d{2}(?:\.\d{1,9})?Z?"
_SHOWN = 8  # near misses in a message


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image as EC2 describes it.

    Attributes:
        root_device: name of its root volume, such as /dev/sda1.
        root_gib: that volume's size in GiB, None where EC2 does not say.
        tags: those that our account gave it.
        snapshots: ids of the snapshots that it is made of.
    """

    id: str
    name: str
    created: datetime
    state: str
    owner: str
    root_device: str
    architecture: str
    root_gib: int | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    snapshots: tuple[str, ...] = ()

    @property
    def content(self) -> str | None:
        """Content version that it was built from, None for an image that we did not build."""
        return self.tags.get(CONTENT)

    @property
    def accepted(self) -> datetime | None:
        """When it passed its acceptance, None while it has not."""
        try:
            when = datetime.fromisoformat(self.tags.get(ACCEPTED, ""))
        except ValueError:
            return None
        return when if when.tzinfo else when.replace(tzinfo=UTC)

    @property
    def rejected(self) -> bool:
        """Whether it failed its acceptance."""
        return self.tags.get(ACCEPTED) == REJECTED


def is_named(name: str, base: str) -> bool:
    """Whether an image's name is ``base``, or ``base`` and a build date: iris2 is not iris."""
    return name == base or re.fullmatch(re.escape(base) + " " + _BUILD_DATE, name) is not None


def newest(images: Collection[Image], base: str, *, account: str, accepted_only: bool = False) -> Image | None:
    """Return the newest available image of ours that bears the name, None when there is none.

    One that failed its acceptance is never taken: an older one is.

    Args:
        images: what DescribeImages found, in any order.
        base: ``ami_image_name``.
        account: id of our account; images of another one never match. EC2's answer to ``Owners=["self"]`` is checked
            once more, because a foreign image would run with everything that the event has.
        accepted_only: ``require_accepted``; without it an image that was never tested will do.
    """
    ours = [image for image in images if not _refusal(image, base, account, accepted_only=accepted_only)]
    return max(ours, key=lambda image: (image.created, image.id), default=None)


def no_image(
    near: Collection[Image], base: str, *, account: str, region: str, accepted_only: bool = False
) -> ConfigError:
    """Return the error that lists what came near and why each was refused."""
    nearest = [(image, _refusal(image, base, account, accepted_only=accepted_only)) for image in _nearest(near, base)]
    refused = [(image, why) for image, why in nearest if why]
    lines = [f"  {image.id} {image.name!r} of {image.created:%Y-%m-%d}: {why}" for image, why in refused]
    msg = (
        f"ami_image_name: account {account} has no {'accepted' if accepted_only else 'available'} image named {base!r} "
        f"or {base!r} with a build date in {region}"
    )
    if lines:
        msg += "; near it are\n" + "\n".join(lines) + "\n"
    else:
        msg += ", and none with a similar name; "
    # All but the acceptance is right with these, so testing one may be all that is missing.
    testable = [image for image, _ in refused if not _refusal(image, base, account, judged=False)]
    if testable:
        latest = max(testable, key=lambda image: (image.created, image.id))
        msg += f"test one with `./inv test-image --ami {latest.id}`, or make a new one with `./inv build-image`"
    else:
        msg += "correct ami_image_name or region_name, or make an image of that name with `./inv build-image`"
    return ConfigError(msg)


def check_given(image: Image, *, accepted_only: bool = False) -> None:
    """Refuse an image given by id (of whatever owner) that cannot be launched.

    One that failed its acceptance can: whoever names it by id wants just that one, perhaps to test it again.

    Args:
        image: the image.
        accepted_only: ``require_accepted``.

    Raises:
        ConfigError: it is not available, or not accepted where that is required.
    """
    if image.state != "available":
        msg = f"ami_image_id: {image.id} {image.name!r} is {image.state}; wait until it is available, or name another"
        raise ConfigError(msg, image=image.id)
    if accepted_only and image.accepted is None:
        msg = (
            f"ami_image_id: {image.id} {image.name!r} cannot be used with require_accepted: {_unaccepted(image)}; test "
            f"it with `./inv test-image --ami {image.id}`, or set require_accepted: false"
        )
        raise ConfigError(msg, image=image.id)


def check_architecture(image: Image, supported: Mapping[str, Collection[str]]) -> None:
    """Refuse instance types that cannot run the image.

    Args:
        image: what is to be launched; when EC2 does not say of which architecture it is, the launch will.
        supported: architectures by instance type.

    Raises:
        ConfigError: naming every type that does not fit.
    """
    wrong = [f"{name} ({', '.join(sorted(can))})" for name, can in supported.items() if image.architecture not in can]
    if wrong and image.architecture:
        msg = (
            f"instance_type: {', '.join(wrong)} cannot run {image.id} {image.name!r}, which is {image.architecture}; "
            "choose types of that architecture, or another image"
        )
        raise ConfigError(msg, image=image.id)


def _refusal(image: Image, base: str, account: str, *, accepted_only: bool = False, judged: bool = True) -> str:
    """Return why an image is not the event's, "" when it can be; not ``judged``, its acceptance does not count."""
    if image.owner != account:
        return f"it belongs to account {image.owner}; name it with ami_image_id if you trust it"
    if not is_named(image.name, base):
        return f"its name is neither {base!r} nor {base!r} and a build date"
    if image.state != "available":
        return f"it is {image.state}"
    if judged and (image.rejected or (accepted_only and image.accepted is None)):
        return _unaccepted(image)
    return ""


def _unaccepted(image: Image) -> str:
    return "it failed its acceptance" if image.rejected else "it was not tested, and require_accepted is set"


def _nearest(images: Collection[Image], base: str) -> Sequence[Image]:
    """Return the images whose names are most like ``base``, best first, each id once."""

    def likeness(image: Image) -> float:
        name = image.name.lower()
        return 1.0 if name.startswith(base.lower()) else difflib.SequenceMatcher(None, name, base.lower()).ratio()

    unique = {image.id: image for image in images}.values()
    near = [image for image in unique if likeness(image) > 0.6]
    return sorted(near, key=lambda image: (-likeness(image), -image.created.timestamp(), image.id))[:_SHOWN]
