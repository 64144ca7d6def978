"""EC2 Image Builder's wire as botocore's service model describes it: routes, parameters, answers and errors.

botocore's validator knows types, names and what is required; patterns, longest lengths and enumerations are checked
here, since boto3 leaves those to the service.
"""

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sized
from typing import Any
from urllib.parse import parse_qs

from botocore.model import ListShape, MapShape, OperationModel, ServiceModel, Shape, StructureShape
from botocore.session import get_session
from botocore.validate import ParamValidator

SERVICE = "imagebuilder"
_CLIENT_ERROR = 400


class Refused(Exception):
    """An error that the service answers with. The code is one of the service's own."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


@functools.cache
def model() -> ServiceModel:
    """Return the service model."""
    return get_session().get_service_model(SERVICE)


def operation_of(method: str, path: str) -> tuple[OperationModel, dict[str, str]]:
    """Return the operation that a request is for, and the parameters in its path.

    Raises:
        Refused: there is none.
    """
    for verb, pattern, operation in _routes():
        found = pattern.fullmatch(path) if verb == method else None
        if found:
            return operation, found.groupdict()
    code, message = "InvalidRequestException", f"there is no operation {method} {path}"
    raise Refused(code, message)


def read(operation: OperationModel, in_path: Mapping[str, str], query: str, body: bytes) -> dict[str, Any]:
    """Return the parameters of a request by their names in the API.

    Raises:
        Refused: they are not JSON, or do not fit the model; the message names all that is wrong.
    """
    try:
        parameters = json.loads(body) if body else {}
    except json.JSONDecodeError as error:
        code, message = "InvalidRequestException", f"the body is not JSON: {error}"
        raise Refused(code, message) from error
    asked = parse_qs(query, keep_blank_values=True)
    for name, shape in _members(operation.input_shape).items():
        wire = shape.serialization.get("name", name)
        place = shape.serialization.get("location")
        if place == "uri":
            parameters[name] = in_path[wire]
        elif place == "querystring" and wire in asked:
            parameters[name] = asked[wire] if isinstance(shape, ListShape) else asked[wire][0]
    wrong = problems(operation.input_shape, parameters)
    if wrong:
        code = "InvalidParameterException"
        raise Refused(code, "; ".join(wrong))
    return dict(parameters)


def problems(shape: Shape | None, value: Any) -> list[str]:
    """Return everything in which a value does not fit its shape."""
    if shape is None:
        return []
    report = ParamValidator().validate(value, shape)
    return [report.generate_report()] if report.has_errors() else list(_finer(shape, value, ""))


def pick(shape: Shape, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those values that are members of a structure."""
    return {name: values[name] for name in _members(shape) if name in values}


def status_of(code: str) -> int:
    """Return the HTTP status of an error; 400 for one that the model does not know."""
    if code not in model().shape_names:
        return _CLIENT_ERROR
    return int(model().shape_for(code).metadata.get("error", {}).get("httpStatusCode", _CLIENT_ERROR))


@functools.cache
def _routes() -> list[tuple[str, re.Pattern[str], OperationModel]]:
    found = []
    for name in model().operation_names:
        operation = model().operation_model(name)
        pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+)", re.escape(operation.http["requestUri"]))
        found.append((operation.http["method"], re.compile(pattern), operation))
    return found


def _members(shape: Shape | None) -> Mapping[str, Shape]:
    return shape.members if isinstance(shape, StructureShape) else {}


def _finer(shape: Shape, value: Any, where: str) -> Iterator[str]:
    """Yield what is wrong with a value, and with what is in it, that has the right types already."""
    if isinstance(shape, StructureShape):
        for name, each in value.items():
            yield from _finer(shape.members[name], each, f"{where}.{name}".lstrip("."))
    elif isinstance(shape, ListShape):
        for number, each in enumerate(value):
            yield from _finer(shape.member, each, f"{where}[{number}]")
    elif isinstance(shape, MapShape):
        for key, each in value.items():
            yield from _finer(shape.key, key, f"{where} (key)")
            yield from _finer(shape.value, each, f"{where}.{key}")
    for problem in _in_itself(shape.metadata, value):
        yield f"The value supplied for parameter '{where}' is not valid. {problem}"


def _in_itself(rules: Mapping[str, Any], value: Any) -> Iterator[str]:
    most, pattern, enum = rules.get("max"), rules.get("pattern"), rules.get("enum")
    size = value if isinstance(value, int | float) else len(value) if isinstance(value, Sized) else 0
    if most is not None and size > most:
        yield f"It is longer or greater than {most}."
    if isinstance(value, str):
        if pattern and not re.search(pattern, value):
            yield f"{value[:200]!r} does not match {pattern}."
        if enum and value not in enum:
            yield f"{value!r} is none of {', '.join(enum)}."
