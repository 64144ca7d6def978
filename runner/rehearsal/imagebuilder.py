"""The emulated service EC2 Image Builder: finds the operation of a request, carries it out, checks what it answers."""

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from botocore.model import OperationModel

from runner.rehearsal.hall import Hall
from runner.rehearsal.image_builds import ImageBuilds
from runner.rehearsal.imagebuilder_lists import LISTINGS, listed, paged
from runner.rehearsal.imagebuilder_rules import Rules, no
from runner.rehearsal.imagebuilder_store import (
    KINDS,
    UNFINISHED,
    Record,
    Store,
    arn_of,
    new_id,
    now_text,
    references,
    stands_for,
)
from runner.rehearsal.imagebuilder_wire import Refused, operation_of, pick, problems, read, status_of
from runner.rehearsal.launch import Launcher

ERROR_HEADER = "x-amzn-ErrorType"
_TAGS = 50
_SERVER_ERROR = 500
_ON_ONE = re.compile(
    r"(Create|Get|Update|Delete)(Component|ImageRecipe|\w+Configuration|ImagePipeline|LifecyclePolicy)"
)
# Whose being there keeps a resource from being deleted.
_USERS: Mapping[str, tuple[str, ...]] = {
    "Component": ("ImageRecipe",),
    "ImageRecipe": ("ImagePipeline",),
    "InfrastructureConfiguration": ("ImagePipeline",),
    "DistributionConfiguration": ("ImagePipeline",),
    "Image": ("ImageRecipe",),
}
# Stays of a resource that is updated; all else is replaced.
_LASTING = ("arn", "name", "tags", "dateCreated", "dateLastRun", "lastRunStatus", "consecutiveFailures")

Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a request gets."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class ImageBuilder:
    """The service of one account in the region of the rehearsal.

    ``answer`` is called by one thread at a time, which holds ``lock``.

    Attributes:
        defects: what the emulation itself did wrong; empty unless it has a fault of its own.
    """

    def __init__(self, hall: Hall, launcher: Launcher, lock: threading.RLock) -> None:
        self._hall = hall
        self.defects: list[str] = []
        self.store = Store()
        self.builds = ImageBuilds(hall, launcher, lock, self.store, self.defects)
        self._operations: dict[str, Callable[[OperationModel, Values], Values]] = {
            **dict.fromkeys(LISTINGS, lambda operation, given: listed(self.store, operation, given)),
            "GetImage": lambda _, given: self._get("Image", given),
            "DeleteImage": lambda _, given: self._delete("Image", given),
            "CreateImage": lambda _, given: self.builds.start(given),
            "StartImagePipelineExecution": lambda _, given: self.builds.start_pipeline(given),
            "CancelImageCreation": lambda _, given: self.builds.cancel(given["imageBuildVersionArn"]),
            "ListWorkflowExecutions": self._workflows,
            "ListWorkflowStepExecutions": self._steps,
            "TagResource": self._tag,
            "UntagResource": self._untag,
            "ListTagsForResource": lambda _, given: {
                "tags": self.store.get(given["resourceArn"]).values.get("tags", {})
            },
        }

    def answer(self, method: str, path: str, query: str, body: bytes) -> Answer:
        """Answer one request."""
        try:
            operation, in_path = operation_of(method, path)
            given = read(operation, in_path, query, body)
            values = self._once(operation, given)
        except Refused as error:
            return _refused(error.code, error.message)
        shape = operation.output_shape
        wrong = problems(shape, values) if shape else []
        if wrong:
            self.defects.append(f"{operation.name}: the answer does not fit the service model: {'; '.join(wrong)}")
            return _refused("ServiceException", f"a defect of the rehearsal: {self.defects[-1]}", _SERVER_ERROR)
        return Answer(status=200, body=json.dumps(values).encode())

    def forget(self) -> None:
        """Forget all resources; builds must have been stopped."""
        self.store.clear()
        self.defects.clear()

    # -- dispatch ------------------------------------------------------------------------------------------------

    def _once(self, operation: OperationModel, given: Values) -> Values:
        known = self.store.done_before(operation.name, given)
        if known is not None:
            return known
        values = self._do(operation, given)
        if operation.output_shape:
            more = {"requestId": new_id(), "clientToken": given.get("clientToken")}
            values |= {
                name: value
                for name, value in pick(operation.output_shape, more).items()
                if value and name not in values
            }
        self.store.remember(operation.name, given, values)
        return values

    def _do(self, operation: OperationModel, given: Values) -> Values:
        if operation.name in self._operations:
            return self._operations[operation.name](operation, given)
        found = _ON_ONE.fullmatch(operation.name)
        if not found or found[2] not in KINDS:
            no("ServiceUnavailableException", f"a rehearsal does not emulate {operation.name} of Image Builder")
        verb, kind = found.groups()
        if verb == "Create":
            return self._create(kind, given)
        return {"Get": self._get, "Update": self._update, "Delete": self._delete}[verb](kind, given)

    def _create(self, kind: str, given: Values) -> Values:
        region = self._hall.settings.region
        kept = {
            name: value for name, value in given.items() if name not in {"clientToken", "dryRun", "semanticVersion"}
        }
        version = given.get("semanticVersion", "")
        if "x" in version:
            version = self._next_version(arn_of(region, kind, given["name"]), version)
        arn = arn_of(region, kind, given["name"], version)
        if kind == "Component":
            if not self._hall.settings.component_builds and self.store.find(arn):
                no("ResourceAlreadyExistsException", f"The following resource already exists: '{arn}/1'.")
        elif self.store.find(arn):
            no("ResourceAlreadyExistsException", f"The following resource already exists: '{arn}'.")
        values = self._rules().of(kind)(kept)
        if given.get("dryRun"):
            no("DryRunOperationException", "Request would have succeeded, but the DryRun flag is set.")
        if kind == "Component":
            arn = f"{arn}/{self.store.next_build(arn)}"
        created = {"dateCreated": now_text()} if kind != "LifecyclePolicy" else {"dateCreated": _seconds()}
        self.store.add(
            Record(kind, arn, {**values, "arn": arn, **({"version": version} if version else {}), **created})
        )
        return {KINDS[kind][2]: arn}

    def _next_version(self, family: str, wanted: str) -> str:
        """Return the version that an ``x`` in a new recipe's stands for: one more than the highest there is."""
        nodes = wanted.split(".")
        place = nodes.index("x")
        if "x" in nodes[place + 1 :]:
            no("InvalidVersionNumberException", f"The version {wanted} has more than one x.")
        taken = [
            int(theirs[place])
            for record in self.store.of_kind("ImageRecipe")
            if record.arn.startswith(f"{family}/")
            and (theirs := record.values["version"].split("."))[:place] == nodes[:place]
        ]
        nodes[place] = str(max(taken) + 1 if taken else 0)
        return ".".join(nodes)

    def _get(self, kind: str, given: Values) -> Values:
        return {KINDS[kind][1]: dict(self._find(kind, given).values)}

    def _update(self, kind: str, given: Values) -> Values:
        record = self._find(kind, given)
        kept = {name: value for name, value in given.items() if name not in {"clientToken", KINDS[kind][2]}}
        values = self._rules().of(kind)({**kept, "name": record.name})
        updated = _seconds() if kind == "LifecyclePolicy" else now_text()
        lasting = {name: record.values[name] for name in _LASTING if name in record.values}
        record.values = {**values, **lasting, "dateUpdated": updated}
        return {KINDS[kind][2]: record.arn}

    def _delete(self, kind: str, given: Values) -> Values:
        record = self._find(kind, given)
        if kind == "Image" and record.values["state"]["status"] in UNFINISHED:
            no("ResourceDependencyException", f"The image '{record.arn}' is still being built; cancel it first.")
        is_free = kind == "Component" and self._hall.settings.component_in_use_deletable
        kinds = () if is_free else _USERS.get(kind, ())
        users = [user.arn for name in kinds for user in self.store.of_kind(name) if self._uses(user, record)]
        if kind == "ImageRecipe" and not self._hall.settings.recipe_with_images_deletable:
            images = self.store.of_kind("Image")
            users += [image.arn for image in images if image.values["imageRecipe"]["arn"] == record.arn]
        if users:
            message = (
                f"Resource dependency error: The resource ARN '{record.arn}' has other resources depending on it: "
            )
            no("ResourceDependencyException", message + ", ".join(users))
        self.store.remove(record)
        return {KINDS[kind][2]: record.arn}

    def _uses(self, user: Record, used: Record) -> bool:
        """Whether a resource names another, and nothing else would do in its place."""
        named = [arn for arn in references(user.values) if arn != user.arn and stands_for(arn, used.arn)]
        others = [other.arn for other in self.store.of_kind(used.kind) if other is not used]
        return any(arn == used.arn or not any(stands_for(arn, other) for other in others) for arn in named)

    def _find(self, kind: str, given: Values) -> Record:
        record = self.store.get(given[KINDS[kind][2]])
        if record.kind != kind:
            no("ResourceNotFoundException", f"The resource with ARN '{record.arn}' is no {kind}.")
        return record

    # -- workflows and tags --------------------------------------------------------------------------------------

    def _workflows(self, operation: OperationModel, given: Values) -> Values:
        image = self.store.get(given["imageBuildVersionArn"])
        page = paged(operation, image.hidden.get("workflows", []), given)
        return {**page, "imageBuildVersionArn": image.arn}

    def _steps(self, operation: OperationModel, given: Values) -> Values:
        wanted = given["workflowExecutionId"]
        found = [
            (image, workflow)
            for image in self.store.of_kind("Image")
            for workflow in image.hidden.get("workflows", [])
            if workflow["workflowExecutionId"] == wanted
        ]
        if not found:
            no("ResourceNotFoundException", f"There is no workflow execution '{wanted}'.")
        ((image, workflow),) = found
        page = paged(operation, workflow["steps"], given)
        arn = workflow["workflowBuildVersionArn"]
        return {
            **page,
            "workflowBuildVersionArn": arn,
            "workflowExecutionId": wanted,
            "imageBuildVersionArn": image.arn,
        }

    def _tag(self, _: OperationModel, given: Values) -> Values:
        record = self.store.get(given["resourceArn"])
        tags = {**record.values.get("tags", {}), **given["tags"]}
        if len(tags) > _TAGS:
            no("InvalidParameterException", f"A resource has at most {_TAGS} tags.")
        record.values["tags"] = tags
        return {}

    def _untag(self, _: OperationModel, given: Values) -> Values:
        record = self.store.get(given["resourceArn"])
        left = {key: value for key, value in record.values.get("tags", {}).items() if key not in given["tagKeys"]}
        record.values["tags"] = left
        return {}

    def _rules(self) -> Rules:
        return Rules(region=self._hall.settings.region, store=self.store)


def _refused(code: str, message: str, status: int = 0) -> Answer:
    body = json.dumps({"message": message}).encode()
    return Answer(status=status or status_of(code), body=body, headers=((ERROR_HEADER, code),))


def _seconds() -> int:
    """Return the time as lifecycle policies have it, which give a timestamp where all others give text."""
    return int(time.time())
