"""The List operations of the emulated Image Builder: rows, filters, owners, pages."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from botocore.model import ListShape, OperationModel, StructureShape

from runner.rehearsal.imagebuilder_rules import no
from runner.rehearsal.imagebuilder_store import Record, Store, stands_for, without_build
from runner.rehearsal.imagebuilder_wire import pick

_PAGE = 25

Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Listing:
    """How one List operation comes to its rows."""

    kind: str
    filters: frozenset[str]
    row: Callable[[Record], Values] = lambda record: record.values
    per_version: bool = False  # one row for all builds of a version
    only: tuple[str, Callable[[Record, str], bool]] | None = None  # parameter that narrows it, and how


def _component_version(record: Record) -> Values:
    return {**record.values, "arn": without_build(record.arn), "status": record.values["state"]["status"]}


def _image_version(record: Record) -> Values:
    version = record.values["version"].partition("/")[0]
    owner = record.values["imageRecipe"]["owner"]
    return {**record.values, "arn": without_build(record.arn), "version": version, "owner": owner}


def _image_build(record: Record) -> Values:
    return {**record.values, "owner": record.values["imageRecipe"]["owner"]}


def _distribution(record: Record) -> Values:
    return {**record.values, "regions": [each["region"] for each in record.values["distributions"]]}


def _of_version(record: Record, arn: str) -> bool:
    return stands_for(arn, record.arn)


def _of_pipeline(record: Record, arn: str) -> bool:
    return bool(record.values.get("sourcePipelineArn") == arn)


_COMPONENTS = frozenset({"description", "name", "platform", "status", "supportedOsVersion", "type", "version"})
_IMAGES = frozenset({"name", "osVersion", "platform", "type", "version"})
LISTINGS: Mapping[str, Listing] = {
    "ListComponents": Listing(kind="Component", filters=_COMPONENTS, row=_component_version, per_version=True),
    "ListComponentBuildVersions": Listing(
        kind="Component", filters=frozenset(), only=("componentVersionArn", _of_version)
    ),
    "ListImageRecipes": Listing(kind="ImageRecipe", filters=frozenset({"name", "parentImage", "platform"})),
    "ListInfrastructureConfigurations": Listing(kind="InfrastructureConfiguration", filters=frozenset({"name"})),
    "ListDistributionConfigurations": Listing(
        kind="DistributionConfiguration", filters=frozenset({"name"}), row=_distribution
    ),
    "ListImagePipelines": Listing(
        kind="ImagePipeline",
        filters=frozenset(
            {
                "description",
                "distributionConfigurationArn",
                "imageRecipeArn",
                "infrastructureConfigurationArn",
                "name",
                "status",
            }
        ),
    ),
    "ListLifecyclePolicies": Listing(kind="LifecyclePolicy", filters=frozenset({"name", "status", "resourceType"})),
    "ListImages": Listing(kind="Image", filters=_IMAGES, row=_image_version, per_version=True),
    "ListImageBuildVersions": Listing(
        kind="Image", filters=_IMAGES, row=_image_build, only=("imageVersionArn", _of_version)
    ),
    "ListImagePipelineImages": Listing(
        kind="Image",
        filters=frozenset({"name", "version"}),
        row=_image_build,
        only=("imagePipelineArn", _of_pipeline),
    ),
}


def listed(store: Store, operation: OperationModel, parameters: Mapping[str, Any]) -> Values:
    """Answer a List operation.

    Raises:
        Refused: a filter that the operation does not have, or a token that none of its pages gave.
    """
    listing = LISTINGS[operation.name]
    rows: Iterable[Values] = []
    if parameters.get("owner", "Self") == "Self":  # nobody else has anything here
        records = store.of_kind(listing.kind)
        if listing.only and listing.only[0] in parameters:
            name, fits = listing.only
            records = [record for record in records if fits(record, parameters[name])]
        rows = [listing.row(record) for record in records]
        rows = list({row["arn"]: row for row in rows}.values()) if listing.per_version else rows
    if parameters.get("byName"):
        rows = _by_name(rows, parameters)
    for each in parameters.get("filters", ()):
        rows = _filtered(rows, each, listing.filters)
    return paged(operation, list(rows), parameters)


def paged(operation: OperationModel, rows: list[Values], parameters: Mapping[str, Any]) -> Values:
    """Return one page of rows as the operation's answer; of each row what its shape in the model has.

    Raises:
        Refused: the token is none that a page gave.
    """
    assert isinstance(operation.output_shape, StructureShape)  # noqa: S101 - every List operation gives one
    name, shape = next(_lists(operation.output_shape))
    token = str(parameters.get("nextToken", "0"))
    if not token.isdigit() or int(token) > len(rows):
        no("InvalidPaginationTokenException", "The pagination token is not valid.")
    start, size = int(token), int(parameters.get("maxResults", _PAGE))
    page = {name: [pick(shape.member, row) for row in rows[start : start + size]]}
    more = {"nextToken": str(start + size)} if len(rows) > start + size else {}
    return {**page, **more}


def _lists(shape: StructureShape) -> Iterator[tuple[str, ListShape]]:
    for name, each in shape.members.items():
        if isinstance(each, ListShape):
            yield name, each


def _by_name(rows: Iterable[Values], parameters: Mapping[str, Any]) -> list[Values]:
    if any(each.get("name") == "version" for each in parameters.get("filters", ())):
        no("InvalidParameterCombinationException", "byName and the filter version cannot be combined.")
    newest = {row["name"]: row for row in rows}
    return [
        {key: value for key, value in row.items() if key != "version"}
        | {"arn": row["arn"].rpartition("/")[0] + "/x.x.x"}
        for row in newest.values()
    ]


def _filtered(rows: Iterable[Values], wanted: Mapping[str, Any], known: frozenset[str]) -> list[Values]:
    name, values = wanted.get("name", ""), wanted.get("values", [])
    if name not in known:
        no("InvalidRequestException", f"The filter '{name}' is not valid; choose from {', '.join(sorted(known))}.")

    def passes(row: Values) -> bool:
        value = row.get("supportedOsVersions" if name == "supportedOsVersion" else name)
        found = value if isinstance(value, list) else [value]
        if name == "version":
            found = [*found, str(value).partition("/")[0]]
        return any(each in values for each in found)

    return [row for row in rows if passes(row)]
