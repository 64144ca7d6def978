"""What EC2 Image Builder tells of builds and recipes, as our own types."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from image_builder.build_log import LogPlace
from runner.aws.session import AwsSession
from runner.errors import AwsError

PHASES = ("PENDING", "CREATING", "BUILDING", "TESTING", "DISTRIBUTING", "INTEGRATING", "AVAILABLE")
DONE = frozenset({"AVAILABLE", "DEPRECATED"})
OVER = DONE | {"CANCELLED", "FAILED", "DELETED", "DISABLED"}


@dataclass(frozen=True, kw_only=True)
class Build:
    """One build of a pipeline. ``started`` is when, aware, None where AWS does not say.

    Its ARN ends with name, version and number: ``arn:aws:imagebuilder:…:image/iris/1.2.3/1``.
    """

    arn: str
    started: datetime | None = None
    log_group: str | None = None

    @property
    def name(self) -> str:
        """Name of the recipe as ARNs write it, in lower case."""
        return self.arn.split("/")[-3]

    @property
    def version(self) -> str:
        """Version of the recipe, such as 1.2.3."""
        return self.arn.split("/")[-2]

    @property
    def number(self) -> int:
        """How many builds that version has had, this one included."""
        return int(self.arn.split("/")[-1])

    @property
    def region(self) -> str:
        """Region that it runs in."""
        return self.arn.split(":")[3]

    @property
    def log_place(self) -> LogPlace:
        """Where its log is, or will be."""
        group = self.log_group or f"/aws/imagebuilder/{self.name}"
        return LogPlace(group=group, stream=f"{self.version}/{self.number}", region=self.region)

    def __str__(self) -> str:
        """Return how a reader calls it."""
        return f"{self.name} {self.version}/{self.number}"


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a build made: the id of its image in each region, and how many seconds it took, None if not known."""

    build: Build
    images: Mapping[str, str]
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a pipeline builds: version, ARNs of the components, and tags and regions of the images that come of it."""

    arn: str
    name: str
    version: str
    components: tuple[str, ...]
    ami_tags: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by region
    parameters: tuple[str, ...] = ()  # SSM parameters that get the id of the newest image


def pages(session: AwsSession, operation: str, key: str, **parameters: Any) -> Iterator[dict[str, Any]]:
    """Yield what all pages of an answer of Image Builder hold under ``key``."""
    token: dict[str, Any] = {}
    while True:
        answer = session.call("imagebuilder", operation, **parameters, **token)
        yield from answer.get(key, [])
        if not answer.get("nextToken"):
            return
        token = {"nextToken": answer["nextToken"]}


def moment(text: str | None) -> datetime | None:
    """Return a date of Image Builder, None where it gives none that can be read."""
    try:
        found = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def is_unknown(error: AwsError) -> bool:
    """Whether AWS says that what was asked for is not there."""
    return error.fields.get("code") == "ResourceNotFoundException"
