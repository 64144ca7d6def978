"""The one HTTP port of a rehearsal: the control API, and AWS's services behind our faults: moto's and our own."""

import contextlib
import io
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from runner.rehearsal.calls import CallLog, Limits
from runner.rehearsal.control import PREFIX, Control
from runner.rehearsal.faults import CallFault, CallRefused, ConnectionReset, SlowCall
from runner.rehearsal.hall import Hall
from runner.rehearsal.imagebuilder import ERROR_HEADER, ImageBuilder
from runner.rehearsal.imagebuilder_wire import SERVICE, Refused, operation_of
from runner.rehearsal.told import Teller

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# Signing names of the services that a rehearsal has; moto knows more, whose effect would not be an emulated one.
SERVICES = frozenset(
    {"ec2", "sts", "iam", "ssm", "servicequotas", "s3", "secretsmanager", "logs", "kms", "imagebuilder"}
    | {"budgets", "ecs"}
)
_QUERY = frozenset({"ec2", "sts", "iam"})  # speak XML
# What EC2 does in regions beside the one of the rehearsal, where images may be but nothing can be launched.
_ELSEWHERE = ("Describe*", "*Image", "*Snapshot*", "CreateTags", "DeleteTags")
_VERBS = {"GET": "Get", "HEAD": "Head", "PUT": "Put", "POST": "Post", "DELETE": "Delete"}
_SCOPE = re.compile(r"Credential=[^/,]*/\d*/([^/,]*)/([^/,]*)/")  # of the signature: region and service
_ERROR = re.compile(rb'<Code>([^<]*)</Code>|"__type": ?"([^"]*)"')


class Api:
    """A WSGI application. Called from many threads; moto's part of it by one at a time.

    Args:
        moto: answers AWS's calls.
        builder: answers those of Image Builder.
        lock: held while one of them does.
    """

    def __init__(
        self,
        moto: "WSGIApplication",
        builder: ImageBuilder,
        control: Control,
        hall: Hall,
        calls: CallLog,
        lock: threading.RLock,
    ) -> None:
        self._moto = moto
        self._builder = builder
        self._control = control
        self._hall = hall
        self._calls = calls
        self._lock = lock
        self.limits = Limits()
        self._teller = Teller(builder, lock)

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer one request."""
        size = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(size) if size else b""
        environ["wsgi.input"] = io.BytesIO(body)
        if environ["PATH_INFO"].startswith(PREFIX):
            status, answer = self._control.answer(environ["REQUEST_METHOD"], environ["PATH_INFO"], body)
            reply = _Reply(status=status, body=json.dumps(answer).encode(), kind="application/json")
        else:
            request = _Request.read(environ, body)
            with self._calls.call(request.action) as call:
                about = {"service": request.service, "region": request.region, "action": request.action}
                call.told = self._teller.tell(environ, body, **about)
                reply = self._answer(request, environ)
                call.error = reply.error
        # Of what is not sent, HEAD tells the length, which moto knows.
        length = [] if environ["REQUEST_METHOD"] == "HEAD" else [("Content-Length", str(len(reply.body)))]
        start_response(f"{reply.status} {reply.reason}", [*reply.headers, *length])
        return [reply.body] if length else []

    def _answer(self, request: "_Request", environ: "WSGIEnvironment") -> "_Reply":
        strike = self._hall.faults.strike
        for slow in strike(SlowCall, request.is_meant_by):
            time.sleep(slow.seconds)
        resets = strike(ConnectionReset, request.is_meant_by)
        if any(not reset.done for reset in resets):
            _hang_up(environ)
        refused = self._refusal(request)
        if refused:
            return refused
        for refusal in strike(CallRefused, request.is_meant_by):
            return request.error(refusal.status, refusal.code, refusal.message)
        with self._lock:
            reply = self._ask_builder(environ) if request.service == SERVICE else self._ask_moto(environ)
        if resets:
            _hang_up(environ)
        return reply

    def _refusal(self, request: "_Request") -> "_Reply | None":
        settings = self._hall.settings
        if request.service not in SERVICES:
            return request.error(400, "UnsupportedOperation", f"a rehearsal has no service {request.service}")
        is_elsewhere = request.region != settings.region
        if request.service == SERVICE and is_elsewhere:
            message = f"Image Builder is emulated in {settings.region}, not in {request.region}"
            return request.error(403, "ForbiddenException", message)
        is_possible = any(fnmatchcase(request.action, each) for each in _ELSEWHERE)
        if request.service == "ec2" and is_elsewhere and not is_possible:
            message = f"the region of this rehearsal is {settings.region}, not {request.region}"
            return request.error(401, "AuthFailure", message)
        if settings.request_limits and not self.limits.allow(request.action, request.instances):
            return request.error(503, "RequestLimitExceeded", "Request limit exceeded.")
        return None

    def _ask_builder(self, environ: "WSGIEnvironment") -> "_Reply":
        body = environ["wsgi.input"].read()
        answer = self._builder.answer(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"], body)
        headers = [("Content-Type", "application/json"), *answer.headers]
        return _Reply(status=answer.status, body=answer.body, given_headers=headers)

    def _ask_moto(self, environ: "WSGIEnvironment") -> "_Reply":
        status, headers = "", list[tuple[str, str]]()

        def start(given: str, given_headers: list[tuple[str, str]], _: object = None) -> Callable[[bytes], object]:
            nonlocal status, headers
            status, headers = given, given_headers
            return lambda _: None

        chunks = self._moto(environ, start)
        try:
            body = b"".join(chunks)
        finally:
            close = getattr(chunks, "close", None)
            if close:
                close()
        is_head = environ["REQUEST_METHOD"] == "HEAD"
        kept = [(name, value) for name, value in headers if is_head or name.lower() != "content-length"]
        return _Reply(status=int(status.split()[0]), body=body, given_headers=kept)


def _hang_up(environ: "WSGIEnvironment") -> NoReturn:
    """Break the connection without an answer."""
    with contextlib.suppress(OSError):
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError  # the HTTP server takes it for a client that left


@dataclass(frozen=True, kw_only=True)
class _Reply:
    status: int
    body: bytes
    kind: str = "text/xml"
    given_headers: Sequence[tuple[str, str]] = ()

    @property
    def reason(self) -> str:
        return HTTPStatus(self.status).phrase

    @property
    def headers(self) -> list[tuple[str, str]]:
        return list(self.given_headers) or [("Content-Type", self.kind)]

    @property
    def error(self) -> str:
        """AWS's code of the error that this is, "" when it is none."""
        if self.status < HTTPStatus.BAD_REQUEST:
            return ""
        for name, value in self.given_headers:
            if name == ERROR_HEADER:
                return value
        found = _ERROR.search(self.body)
        return (found[1] or found[2]).decode() if found else str(self.status)


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What a call is about, as far as its faults need to know."""

    service: str
    region: str
    action: str
    instances: int  # how many new ones are asked for

    @classmethod
    def read(cls, environ: "WSGIEnvironment", body: bytes) -> "_Request":
        query = parse_qs(environ.get("QUERY_STRING", ""))
        signed = environ.get("HTTP_AUTHORIZATION") or f"Credential={query.get('X-Amz-Credential', [''])[0]}"
        scope = _SCOPE.search(signed)
        region, service = scope.groups() if scope else ("", "ec2")
        if service in _BY_PATH:
            return cls(service=service, region=region, action=_BY_PATH[service](environ), instances=0)
        target = environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2]
        # As moto does, a call without a signature is taken by what it says.
        parameters = {} if target else {name: values[0] for name, values in parse_qs(body.decode("latin-1")).items()}
        asked = parameters.get("MaxCount") or parameters.get("TargetCapacitySpecification.TotalTargetCapacity") or "0"
        return cls(
            service=service,
            region=region,
            action=parameters.get("Action") or target or environ["REQUEST_METHOD"],
            instances=int(asked) if asked.isdigit() else 0,
        )

    def is_meant_by(self, fault: CallFault) -> bool:
        return fnmatchcase(self.action, fault.action)

    def error(self, status: int, code: str, message: str) -> _Reply:
        if self.service == SERVICE:
            headers = [("Content-Type", "application/json"), (ERROR_HEADER, code)]
            return _Reply(status=status, body=json.dumps({"message": message}).encode(), given_headers=headers)
        if self.service == "s3":
            text = f"<Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message></Error>"
            return _Reply(status=status, body=text.encode())
        if self.service not in _QUERY:
            text = json.dumps({"__type": code, "message": message})
            return _Reply(status=status, body=text.encode(), kind="application/x-amz-json-1.1")
        error = f"<Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message></Error>"
        text = f"<Response><Errors>{error}</Errors><RequestID>rehearsal</RequestID></Response>"
        if self.service != "ec2":
            text = f"<ErrorResponse>{error}<RequestId>rehearsal</RequestId></ErrorResponse>"
        return _Reply(status=status, body=text.encode())


def _image_builder_action(environ: "WSGIEnvironment") -> str:
    """Return the name of the operation that a request to Image Builder is for."""
    try:
        operation, _ = operation_of(environ["REQUEST_METHOD"], environ["PATH_INFO"])
    except Refused:
        return str(environ["REQUEST_METHOD"])
    return str(operation.name)


def _s3_action(environ: "WSGIEnvironment") -> str:
    """Return about the name of the operation that a request to S3 is for, by its method: PutObject, GetBucket, ..."""
    _, _, key = environ["PATH_INFO"].lstrip("/").partition("/")
    method = environ["REQUEST_METHOD"]
    return f"{_VERBS.get(method, method)}{'Object' if key else 'Bucket'}"


_BY_PATH: dict[str, Callable[["WSGIEnvironment"], str]] = {SERVICE: _image_builder_action, "s3": _s3_action}
