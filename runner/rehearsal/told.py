"""What a call to the emulated API says of itself beside its name: who makes it, and what it is about.

Names, ids and tags only, never a content: for tests that hold the rights of roles against the calls that are made.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from moto.ec2.models import ec2_backends

from runner.rehearsal.account import ACCOUNT
from runner.rehearsal.imagebuilder import ImageBuilder
from runner.rehearsal.imagebuilder_wire import SERVICE, Refused, operation_of, read

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_CALLER = re.compile(r"Credential=([^/,]*)/")
# Leaves of EC2's flat parameters that name something; Value is of a tag or filter.
_EC2_LEAVES = re.compile(
    r"(?:.*\.)?(?:[A-Za-z]+Id|KeyName|LaunchTemplateName|Name|Arn|ResourceType|Key|Value)(?:\.\d+)*"
)
_JSON_KEYS = {"Name", "SecretId", "QuotaCode", "ServiceCode", "logGroupName", "logStreamName"}
_BUILDER_KEYS = {"name", "semanticVersion", "tags", "instanceProfileName"}
_EC2_ID = re.compile(r"[a-z]+-[0-9a-f]{8,17}")


class Teller:
    """Tells of calls.

    Args:
        builder: knows the tags of what Image Builder has.
        lock: held while the account is looked at.
    """

    def __init__(self, builder: ImageBuilder, lock: threading.RLock) -> None:
        self._builder = builder
        self._lock = lock

    def tell(
        self, environ: "WSGIEnvironment", body: bytes, *, service: str, region: str, action: str
    ) -> dict[str, Any]:
        """Return ``service``, ``region``, ``caller`` (id of the access key), ``parameters``, ``found``.

        ``found`` has what the call names and the account has at that moment: ids with their tags and, for images and
        snapshots, their owner; launch templates and key pairs with their name.
        """
        signed = _CALLER.search(environ.get("HTTP_AUTHORIZATION", ""))
        parameters = _READERS.get(service, _nothing)(environ, body)
        looks = action.startswith(("Describe", "List"))
        with self._lock:
            found = {} if looks else dict(self._found(service, region, parameters))
        caller = signed[1] if signed else ""
        return {"service": service, "region": region, "caller": caller, "parameters": parameters, "found": found}

    def _found(self, service: str, region: str, parameters: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        texts = {value for value in parameters.values() if isinstance(value, str)}
        if service == SERVICE:
            for arn in texts:
                record = self._builder.store.find(arn)
                if record:
                    yield arn, {"tags": dict(record.values.get("tags", {}))}
        if service == "ec2" and region in ec2_backends[ACCOUNT].regions:
            backend = ec2_backends[ACCOUNT][region]
            pairs = {value: pair.id for value, pair in backend.key_pairs.items() if value in texts}
            for name, identity in [*pairs.items(), *((text, text) for text in texts if _EC2_ID.fullmatch(text))]:
                facts: dict[str, Any] = {"tags": dict(backend.tags.get(identity, {}))}
                ami, template = backend.amis.get(identity), backend.launch_templates.get(identity)
                if ami:
                    facts |= {"owner": ami.owner_id, "snapshot": ami.ebs_snapshot.id}
                if template:
                    facts["name"] = template.name
                yield name, facts


def _ec2(_: "WSGIEnvironment", body: bytes) -> dict[str, Any]:
    values = {name: each[0] for name, each in parse_qs(body.decode("latin-1")).items()}
    return {name: value for name, value in values.items() if _EC2_LEAVES.fullmatch(name)}


def _json(_: "WSGIEnvironment", body: bytes) -> dict[str, Any]:
    try:
        values = json.loads(body) if body else {}
    except ValueError:
        return {}
    return {name: values[name] for name in _JSON_KEYS & values.keys()} if isinstance(values, dict) else {}


def _s3(environ: "WSGIEnvironment", _: bytes) -> dict[str, Any]:
    bucket, _, key = environ["PATH_INFO"].lstrip("/").partition("/")
    prefix = parse_qs(environ.get("QUERY_STRING", "")).get("prefix", [""])[0]
    return {"Bucket": bucket, "Key": key, "Prefix": prefix}


def _builder(environ: "WSGIEnvironment", body: bytes) -> dict[str, Any]:
    try:
        operation, in_path = operation_of(environ["REQUEST_METHOD"], environ["PATH_INFO"])
        values = read(operation, in_path, environ["QUERY_STRING"], body)
    except Refused:
        return {}
    return {name: value for name, value in values.items() if name in _BUILDER_KEYS or name.endswith(("Arn", "Id"))}


def _nothing(_: "WSGIEnvironment", __: bytes) -> dict[str, Any]:
    return {}


_READERS: dict[str, Callable[["WSGIEnvironment", bytes], dict[str, Any]]] = {
    "ec2": _ec2,
    "s3": _s3,
    SERVICE: _builder,
    **dict.fromkeys(("ssm", "secretsmanager", "servicequotas", "logs"), _json),
}
