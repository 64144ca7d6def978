"""Which image an event runs on: the newest of our own account that bears exactly the event's name. Pure; no calls."""

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from runner.errors import ConfigError

# Image Builder's {{ imagebuilder:buildDate }}: 2026-11-23T10-15-30.123Z, with or without fractions. Names of images
# cannot hold a colon; a dot in its place and a missing Z were seen in names made by hand.
_BUILD_DATE = r"\d{4}-\d{2}-\d{2}T\d{2}[-.]\d{2}[-.]\d{2}(?:\.\d{1,9})?Z?"
_SHOWN = 8  # near misses in a message


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image as EC2 describes it.

    ``root_device`` is the name of its root volume, such as /dev/sda1; ``root_gib`` that volume's size in GiB, None
    where EC2 does not say.
    """

    id: str
    name: str
    created: datetime
    state: str
    owner: str
    root_device: str
    architecture: str
    root_gib: int | None = None


def is_named(name: str, base: str) -> bool:
    """Whether an image's name is ``base``, or ``base`` and a build date: iris2 is not iris."""
    return name == base or re.fullmatch(re.escape(base) + " " + _BUILD_DATE, name) is not None


def newest(images: Collection[Image], base: str, *, account: str) -> Image | None:
    """Return the newest available image of ours that bears the name, None when there is none.

    Args:
        images: what DescribeImages found, in any order.
        base: ``ami_image_name``.
        account: id of our account; images of another one never match. EC2's answer to ``Owners=["self"]`` is checked
            once more, because a foreign image would run with everything that the event has.
    """
    ours = [image for image in images if not _refusal(image, base, account)]
    return max(ours, key=lambda image: (image.created, image.id), default=None)


def no_image(near: Collection[Image], base: str, *, account: str, region: str) -> ConfigError:
    """Return the error that lists what came near and why each was refused."""
    refused = [(image, _refusal(image, base, account)) for image in _nearest(near, base)]
    lines = [f"  {image.id} {image.name!r} of {image.created:%Y-%m-%d}: {why}" for image, why in refused if why]
    msg = (
        f"ami_image_name: account {account} has no available image named {base!r} or {base!r} with a build date in "
        f"{region}"
    )
    if lines:
        msg += "; near it are\n" + "\n".join(lines) + "\n"
    else:
        msg += ", and none with a similar name; "
    return ConfigError(msg + "correct ami_image_name or region_name, or make an image of that name")


def check_given(image: Image) -> None:
    """Refuse an image given by id (of whatever owner) that cannot be launched.

    Raises:
        ConfigError: it is not available.
    """
    if image.state != "available":
        msg = f"ami_image_id: {image.id} {image.name!r} is {image.state}; wait until it is available, or name another"
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


def _refusal(image: Image, base: str, account: str) -> str:
    """Return why an image is not the event's, "" when it can be."""
    if image.owner != account:
        return f"it belongs to account {image.owner}; name it with ami_image_id if you trust it"
    if not is_named(image.name, base):
        return f"its name is neither {base!r} nor {base!r} and a build date"
    if image.state != "available":
        return f"it is {image.state}"
    return ""


def _nearest(images: Collection[Image], base: str) -> Sequence[Image]:
    """Return the images whose names are most like ``base``, best first, each id once."""

    def likeness(image: Image) -> float:
        name = image.name.lower()
        return 1.0 if name.startswith(base.lower()) else difflib.SequenceMatcher(None, name, base.lower()).ratio()

    unique = {image.id: image for image in images}.values()
    near = [image for image in unique if likeness(image) > 0.6]
    return sorted(near, key=lambda image: (-likeness(image), -image.created.timestamp(), image.id))[:_SHOWN]
