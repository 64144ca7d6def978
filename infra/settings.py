"""What an event's stack is made from: config.yml, the login's public key and the plan of its image, checked as a whole.

Nothing here asks AWS. What needs to know the account is in ``Place``.
"""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from image_builder.kit import FolderKit
from image_builder.recipe import ImagePlan
from image_builder.recipe import plan as plan_image
from runner.config import AwsSection, EventConfig, load_config
from runner.config_image import ImageSection
from runner.config_infra import InfraSection
from runner.errors import ConfigError

_MAX_KEY_BYTES = 20_000
_KEY_KINDS = ("ssh-ed25519", "ssh-rsa")  # those that EC2 imports
_BUCKET_EVENT, _PREFIX_EVENT = 40, 30  # characters; a bucket's name has 63, a role's 64


@dataclass(frozen=True, kw_only=True)
class Place:
    """Whose the stack is and where, with the names that must be known before anything is made.

    Args:
        owner: tag on everything; `run-event` and `sweep` know by it what is theirs.
        partition: aws, aws-cn, aws-us-gov.
        bucket: the stack's bucket.
        prefix: what the names of roles, and of all that AWS lets us name freely, begin with.
    """

    event: str
    owner: str
    region: str
    account: str
    partition: str
    bucket: str
    prefix: str


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One event's settings. Read them with ``load``.

    Args:
        worker: its keys for EC2.
        infra: see runner/config_infra.py.
        image: None where no image is to be built.
        event: its name.
        region: where everything is made.
        public_key: the text of the public key.
        expires: until when it is all needed.
        first_plan: the plan of an image, made without a bucket's name.
    """

    config: EventConfig
    worker: AwsSection
    infra: InfraSection
    image: ImageSection | None
    event: str
    region: str
    public_key: str
    expires: date
    first_plan: ImagePlan | None

    @classmethod
    def load(cls, path: Path, *, today: date | None = None) -> "Settings":
        """Read an event's config.yml and all that it leads to.

        Args:
            path: of config.yml.
            today: in UTC.

        Raises:
            ConfigError: with all problems at once.
            ImageError: the kit's repository cannot be asked.
        """
        config = load_config(path)
        worker, infra = config.worker, config.infra
        if not isinstance(worker, AwsSection):
            msg = (
                f"{path}: worker_type {worker.worker_type} needs nothing in AWS; give the config.yml of an event on aws"
            )
            raise ConfigError(msg)
        if infra is None:
            msg = (
                f"{path}: there is no section infra:, so nothing says who may reach the instances; add `infra:` with "
                "`runner_cidr: [YOUR.ADDRESS/32]` under it"
            )
            raise ConfigError(msg)
        problems = []
        if worker.region_name is None:
            problems.append("region_name: is missing; set it to the region that all of this is made in")
        today = today or datetime.now(UTC).date()
        # Once a year, so that not every `pulumi up` changes every tag.
        expires = infra.expires or date(today.year + 1, 12, 31)
        if expires < today:
            problems.append(f"infra.expires: {expires} is over; set a later day")
        public_key = _public_key(worker, infra, problems)
        plan = _plan(config, problems)
        if problems:
            listed = "\n".join(f"  {problem}" for problem in problems)
            msg = f"{path}: the stack cannot be made, {len(problems)} to mend:\n{listed}"
            raise ConfigError(msg)
        return cls(
            config=config,
            worker=worker,
            infra=infra,
            image=config.image,
            event=config.event_name,
            region=str(worker.region_name),
            public_key=public_key,
            expires=expires,
            first_plan=plan,
        )

    def place(self, *, account: str, partition: str) -> Place:
        """Return the names that depend on the account."""
        owner = owner_of(self.config, account)
        digest = _digest(account, owner, self.event)
        return Place(
            event=self.event,
            owner=owner,
            region=self.region,
            account=account,
            partition=partition,
            bucket=bucket_name(account, owner, self.event),
            prefix=f"ramp-{_plain(self.event)[:_PREFIX_EVENT].strip('-')}-{digest[:6]}",
        )

    def plan(self, place: Place) -> ImagePlan | None:
        """Return the plan of the image, None when config.yml asks for none; a folder's kit comes by the bucket.

        Raises:
            ConfigError: a document is too long to stand in the stack.
        """
        plan = self.first_plan
        if plan is not None and isinstance(plan.kit, FolderKit):
            plan = plan_image(self.config, bucket=place.bucket)
        for document in plan.documents if plan else ():
            if document.is_long:
                msg = (
                    f"{document.origin}: {len(document.text):,} characters when filled in, and AWS takes 16,000; "
                    "split the document in two"
                )
                raise ConfigError(msg)
        return plan


def owner_of(config: EventConfig, account: str) -> str:
    """Return whom an event's stack belongs to: what config.yml says, or else the event in its account."""
    return getattr(config.worker, "owner", None) or f"{config.event_name[:80]}/{account}"


def bucket_name(account: str, owner: str, event: str) -> str:
    """Return the name of an event's bucket, which nobody else in the world may have."""
    return f"ramp-{_plain(event)[:_BUCKET_EVENT].strip('-')}-{_digest(account, owner, event)[:10]}"


def _plain(event: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", event.lower()).strip("-")


def _digest(*parts: str) -> str:
    return hashlib.sha256("/".join(parts).encode()).hexdigest()


def _public_key(worker: AwsSection, infra: InfraSection, problems: list[str]) -> str:
    path = infra.public_key or (worker.key_path and worker.key_path.with_name(f"{worker.key_path.name}.pub"))
    if path is None:
        problems.append("key_path: is missing; set it, or infra.public_key to a file with the login's public key")
        return ""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_KEY_BYTES + 1).decode("ascii", errors="replace").strip()
    except OSError as error:
        what = f"{path} cannot be read: {error.strerror}"
        problems.append(f"infra.public_key: {what}; make it with `ssh-keygen -y -f KEY > KEY.pub`, or name another")
        return ""
    if "PRIVATE KEY" in text:
        problems.append(
            f"infra.public_key: {path} holds a private key, which must not get into the stack; name the .pub"
        )
    elif not _is_public_key(text):
        known = " or ".join(_KEY_KINDS)
        problems.append(f"infra.public_key: {path} is no public key that EC2 takes; name one that begins with {known}")
    return text


def _is_public_key(text: str) -> bool:
    kind, _, rest = text.partition(" ")
    words = rest.split()
    if "\n" in text or kind not in _KEY_KINDS or not words:
        return False
    try:
        raw = base64.b64decode(words[0], validate=True)
    except binascii.Error:
        return False
    return raw[4 : 4 + len(kind)] == kind.encode()


def _plan(config: EventConfig, problems: list[str]) -> ImagePlan | None:
    if config.image is None:
        return None
    try:
        return plan_image(config, bucket=None)
    except ConfigError as error:
        problems.append(error.message.replace("\n", "\n  "))
        return None
