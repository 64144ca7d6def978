"""What an event's policies are about, by name, and the statements that they are made of."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.aws.tags import EVENT, OWNER

Document = dict[str, Any]
"""A policy as IAM takes it, not yet JSON text."""

_VERSION = "2012-10-17"


@dataclass(frozen=True, kw_only=True)
class Names:
    """What the documents are about.

    Args:
        event, owner: values of the tags that everything of the event has.
        bucket: the stack's bucket.
        prefix: what the names of the roles begin with.
        image: base name of the event's image, and of all in Image Builder that makes it; None: there is none.
        image_regions: regions besides the stack's own that get the image.
        base: what the image starts from, as in config.yml.
        data_secret: as in config.yml.
        data_source: the bucket's folder, as in config.yml; other sources need no right.
    """

    partition: str
    region: str
    account: str
    event: str
    owner: str
    bucket: str
    prefix: str
    image: str | None = None
    image_regions: tuple[str, ...] = ()
    base: str = "ubuntu-24.04"
    data_secret: str | None = None
    data_source: str | None = None

    @property
    def worker_role(self) -> str:
        """The instances' role and profile."""
        return f"{self.prefix}-worker"

    @property
    def build_role(self) -> str:
        """Role and profile of the instances that build the image."""
        return f"{self.prefix}-build"

    @property
    def ci_role(self) -> str:
        """The role of CI on the main branch."""
        return f"{self.prefix}-ci"

    @property
    def preview_role(self) -> str:
        """The role of CI on pull requests."""
        return f"{self.prefix}-preview"

    @property
    def lifecycle_role(self) -> str:
        """The role by which Image Builder removes old images."""
        return f"{self.prefix}-lifecycle"

    @property
    def regions(self) -> tuple[str, ...]:
        """Every region that has something of the event."""
        return tuple(sorted({self.region, *self.image_regions}))

    def role(self, name: str) -> str:
        """Return the ARN of a role of the account."""
        return f"arn:{self.partition}:iam::{self.account}:role/{name}"

    def ec2(self, *kinds: str) -> list[str]:
        """Return what stands for all resources of these kinds in the account and region."""
        return [f"arn:{self.partition}:ec2:{self.region}:{self.account}:{kind}/*" for kind in kinds]

    def images(self, *kinds: str, everywhere: bool = False) -> list[str]:
        """Return what stands for all images or snapshots, whose ARNs name no account.

        Args:
            everywhere: in all regions, where tags tell whose they are; a list of regions would make policies too long.
        """
        region = "*" if everywhere and self.image_regions else self.region
        return [f"arn:{self.partition}:ec2:{region}::{kind}/*" for kind in kinds]

    def builder(self, kind: str, rest: str = "") -> str:
        """Return the ARN of what the event's image has of a kind in Image Builder."""
        slug = re.sub(r"[^a-z0-9_-]", "-", (self.image or "").lower())  # as AWS makes it of a name
        return f"arn:{self.partition}:imagebuilder:{self.region}:{self.account}:{kind}/{slug}{rest}"


def merged(*documents: Document) -> Document:
    """Return one document that allows what several do."""
    return policy(*(statement for document in documents for statement in document["Statement"]))


def policy(*statements: Document) -> Document:
    """Return a policy of these statements."""
    return {"Version": _VERSION, "Statement": list(statements)}


def allow(
    sid: str, actions: str | list[str], resources: str | list[str], conditions: Mapping[str, Any] | None = None
) -> Document:
    """Return a statement that allows actions on resources under conditions."""
    statement: Document = {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resources}
    return statement | ({"Condition": dict(conditions)} if conditions else {})


def look(sid: str, actions: str | list[str], regions: Sequence[str]) -> Document:
    """Return a statement that lets look, in these regions, at what knows no resource."""
    return allow(sid, actions, "*", {"StringEquals": {"aws:RequestedRegion": list(regions)}})


def giving(sid: str, role: str, service: str) -> Document:
    """Return a statement that lets give a role to a service."""
    return allow(sid, "iam:PassRole", role, {"StringEquals": {"iam:PassedToService": service}})


def requested(names: Names, more: Mapping[str, Any] | None = None) -> Document:
    """Return the condition that what is made gets the tags of the event, in the call that makes it."""
    tags = {f"aws:RequestTag/{OWNER}": names.owner, f"aws:RequestTag/{EVENT}": names.event}
    return {"StringEquals": {**tags, **(more or {})}}


def own(names: Names) -> Document:
    """Return the condition that something has the owner tag of the event."""
    return {"StringEquals": {f"aws:ResourceTag/{OWNER}": names.owner}}
