"""What the emulated Image Builder holds: records by ARN, their versions and calls that were made once."""

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from runner.rehearsal.account import ACCOUNT
from runner.rehearsal.imagebuilder_wire import Refused

UNFINISHED = frozenset({"PENDING", "CREATING", "BUILDING", "TESTING", "DISTRIBUTING", "INTEGRATING"})
ENDED = "The rehearsal ended before the build did."
_VERSION = re.compile(r"/((?:x|\d+)\.(?:x|\d+)\.(?:x|\d+))(?:/(\d+))?$")


@dataclass
class Record:
    """One resource. ``values`` are the members that its Get operation gives, ``hidden`` what only we know of it."""

    kind: str  # as in the operations: Component, ImageRecipe, ...
    arn: str
    values: dict[str, Any]
    hidden: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name that it was given."""
        return str(self.values["name"])


# In an ARN, in the member of the Get operation, and what its own ARN is called among parameters.
KINDS: Mapping[str, tuple[str, str, str]] = {
    "Component": ("component", "component", "componentBuildVersionArn"),
    "ImageRecipe": ("image-recipe", "imageRecipe", "imageRecipeArn"),
    "InfrastructureConfiguration": (
        "infrastructure-configuration",
        "infrastructureConfiguration",
        "infrastructureConfigurationArn",
    ),
    "DistributionConfiguration": (
        "distribution-configuration",
        "distributionConfiguration",
        "distributionConfigurationArn",
    ),
    "ImagePipeline": ("image-pipeline", "imagePipeline", "imagePipelineArn"),
    "LifecyclePolicy": ("lifecycle-policy", "lifecyclePolicy", "lifecyclePolicyArn"),
    "Image": ("image", "image", "imageBuildVersionArn"),
}


@dataclass(frozen=True, kw_only=True)
class Version:
    """The version in an ARN; a node is None where the ARN has an ``x``, the build None where it names none."""

    nodes: tuple[int | None, ...]
    build: int | None

    @classmethod
    def of(cls, arn: str) -> Self | None:
        """Read it from an ARN, None when there is none in it."""
        found = _VERSION.search(arn)
        if not found:
            return None
        nodes = tuple(None if node == "x" else int(node) for node in found[1].split("."))
        return cls(nodes=nodes, build=int(found[2]) if found[2] else None)

    def fits(self, other: "Version") -> bool:
        """Whether an exact version is one of those that this one stands for."""
        nodes = all(mine in {None, theirs} for mine, theirs in zip(self.nodes, other.nodes, strict=True))
        return nodes and self.build in {None, other.build}

    @property
    def order(self) -> tuple[int, ...]:
        """The key to sort exact versions by."""
        return (*(node or 0 for node in self.nodes), self.build or 0)


class Store:
    """All records of one region. Not for several threads at once."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._calls: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
        self._builds: dict[str, int] = {}  # ARN without a build -> the highest build number ever given

    # -- records -------------------------------------------------------------------------------------------------

    def add(self, record: Record) -> None:
        """Keep a record.

        Raises:
            Refused: there is one with its ARN.
        """
        if record.arn in self._records:
            code, message = "ResourceAlreadyExistsException", f"The following resource already exists: '{record.arn}'."
            raise Refused(code, message)
        self._records[record.arn] = record

    def get(self, arn: str) -> Record:
        """Return the record that an ARN stands for: the newest when it leaves the build or, with ``x``, more open.

        Raises:
            Refused: there is none.
        """
        found = self.find(arn)
        if found is None:
            code, message = "ResourceNotFoundException", f"The resource with ARN '{arn}' could not be found."
            raise Refused(code, message)
        return found

    def find(self, arn: str) -> Record | None:
        """Return the record that an ARN stands for, None when there is none."""
        if arn in self._records:
            return self._records[arn]
        fitting = [record for record in self._records.values() if stands_for(arn, record.arn)]
        return max(fitting, key=_order, default=None)

    def of_kind(self, kind: str) -> list[Record]:
        """Return all records of a kind, in the order of their making."""
        return [record for record in self._records.values() if record.kind == kind]

    def remove(self, record: Record) -> None:
        """Forget a record."""
        self._records.pop(record.arn, None)

    def next_build(self, version_arn: str) -> int:
        """Return the next build number of a version; numbers are not used again."""
        self._builds[version_arn] = self._builds.get(version_arn, 0) + 1
        return self._builds[version_arn]

    # -- calls that were made once -------------------------------------------------------------------------------

    def done_before(self, operation: str, parameters: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what a call with the same clientToken gave, None for the first of its kind.

        Raises:
            Refused: the token was used with other parameters.
        """
        known = self._calls.get((operation, str(parameters.get("clientToken", ""))))
        if known is None:
            return None
        if known[0] != _digest(parameters):
            code = "IdempotentParameterMismatchException"
            message = "You have specified a client token for an operation using parameter values that differ from a "
            raise Refused(code, message + "previous request that used the same client token.")
        return known[1]

    def remember(self, operation: str, parameters: Mapping[str, Any], answer: dict[str, Any]) -> None:
        """Keep what a call gave for the next one with its token."""
        if parameters.get("clientToken"):
            self._calls[operation, parameters["clientToken"]] = (_digest(parameters), answer)

    # -- lasting -------------------------------------------------------------------------------------------------

    def dump(self) -> dict[str, Any]:
        """Return everything as JSON."""
        return {
            "records": [asdict(record) for record in self._records.values()],
            "calls": [[*key, *value] for key, value in self._calls.items()],
            "builds": dict(self._builds),
        }

    def load(self, values: Mapping[str, Any]) -> None:
        """Take back what ``dump`` gave. A build that was under way has failed: nobody goes on with it."""
        self.clear()
        for each in values.get("records", ()):
            record = Record(**each)
            self._records[record.arn] = record
            if record.kind == "Image" and record.values["state"]["status"] in UNFINISHED:
                record.values["state"] = {"status": "FAILED", "reason": ENDED}
        self._calls = {
            (operation, token): (digest, answer) for operation, token, digest, answer in values.get("calls", ())
        }
        self._builds = dict(values.get("builds", {}))

    def clear(self) -> None:
        """Forget everything."""
        self._records.clear()
        self._calls.clear()
        self._builds.clear()


def arn_of(region: str, kind: str, name: str, version: str = "") -> str:
    """Return an ARN: names that differ only in case, or in a space for a hyphen, have the same."""
    slug = re.sub(r"[^a-z0-9_-]", "-", name.lower())
    return f"arn:aws:imagebuilder:{region}:{ACCOUNT}:{KINDS[kind][0]}/{slug}" + (f"/{version}" if version else "")


def stands_for(reference: str, arn: str) -> bool:
    """Whether an ARN with an open version, or an exact one, means a resource."""
    if reference == arn:
        return True
    wanted, exact = Version.of(reference), Version.of(arn)
    if wanted is None or exact is None:
        return False
    return _VERSION.sub("", reference) == _VERSION.sub("", arn) and wanted.fits(exact)


def without_build(arn: str) -> str:
    """Return the ARN of a version without its build number."""
    return re.sub(r"(/\d+\.\d+\.\d+)/\d+$", r"\1", arn)


def is_amazons(arn: str) -> bool:
    """Whether it is one of Amazon's own resources, which exist without being here."""
    return arn.split(":")[4:5] == ["aws"]


def references(value: Any) -> Iterable[str]:
    """Yield every ARN of the service in a value."""
    if isinstance(value, str) and value.startswith("arn:aws:imagebuilder:"):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def now_text() -> str:
    """Return the time as the service writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def new_id(kind: str = "") -> str:
    """Return a new id, such as ``wf-...``."""
    return f"{kind}-{uuid.uuid4()}" if kind else str(uuid.uuid4())


def _order(record: Record) -> tuple[int, ...]:
    version = Version.of(record.arn)
    return version.order if version else ()


def _digest(parameters: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in parameters.items() if name != "clientToken"}, sort_keys=True)
