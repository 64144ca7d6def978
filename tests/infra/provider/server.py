"""The provider as Pulumi's engine talks to it: a gRPC server on a free loopback port, which is printed."""

import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
from botocore.exceptions import BotoCoreError, ClientError
from google.protobuf import empty_pb2, struct_pb2
from pulumi.runtime.proto import plugin_pb2, provider_pb2, provider_pb2_grpc, status_pb2

from tests.infra.provider.checking import Change, Failure
from tests.infra.provider.emulated import EmulatedProvider, configured
from tests.infra.provider.services.base import HalfMade, Refused

VERSION = "7.51.1"  # of pulumi-aws, whose rules these are
_THREADS = 8
_ANSWERED = provider_pb2.DiffResponse


class Provider(provider_pb2_grpc.ResourceProviderServicer):
    """Answers the engine.

    Args:
        environment: AWS_* variables that lead to the emulated AWS.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._provider: EmulatedProvider | None = None

    # -- itself --------------------------------------------------------------------------------------------------

    def GetPluginInfo(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name, as all below
        """Say who this is."""
        return plugin_pb2.PluginInfo(version=VERSION)

    def GetSchema(self, request: Any, context: Any) -> Any:  # noqa: N802 - see above
        """Say as little as the engine needs."""
        return provider_pb2.GetSchemaResponse(schema=json.dumps({"name": "aws", "version": VERSION}))

    def Handshake(self, request: Any, context: Any) -> Any:  # noqa: N802 - see above
        """Promise nothing beyond the first version of the protocol."""
        return provider_pb2.ProviderHandshakeResponse(accept_secrets=False, accept_resources=False)

    def CheckConfig(self, request: Any, context: Any) -> Any:  # noqa: N802 - see above
        """Refuse settings that are not known."""
        given = values(request.news)
        _, failures = configured(_nested(given), self._region)
        return provider_pb2.CheckResponse(inputs=_struct(given), failures=_failures(failures))

    def DiffConfig(self, request: Any, context: Any) -> Any:  # noqa: N802 - see above
        """Tell whether the provider is another one now."""
        old, new = values(request.old_inputs) or values(request.olds), values(request.news)
        changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        return _diff(Change(updates=tuple(changed)))

    def Configure(self, request: Any, context: Any) -> Any:  # noqa: N802 - see above
        """Begin. Secrets and unknown values as the engine itself can keep them."""
        given = values(request.args)
        for name, value in request.variables.items():
            given.setdefault(name.removeprefix("aws:config:"), value)
        settings = _nested(given)
        config, failures = configured(settings, self._region)
        with _told(context):
            if failures:
                raise Refused("; ".join(f"{each.property}: {each.reason}" for each in failures))
            self._provider = EmulatedProvider(config, self._environment)
            self._provider.check_account(settings.get("allowedAccountIds"))
        return provider_pb2.ConfigureResponse(acceptSecrets=False, supportsPreview=True, acceptResources=False)

    def Cancel(self, request: Any, context: Any) -> Any:  # noqa: N802 - see above
        """Nothing here takes long enough to be cut short."""
        return empty_pb2.Empty()

    # -- resources -----------------------------------------------------------------------------------------------

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - see above
        """Fill in and refuse."""
        with _told(context):
            inputs, failures = self._own.check(
                _kind(request.urn),
                values(request.news),
                values(request.olds),
                name=request.urn.rpartition("::")[2],
                chance=request.randomSeed or request.urn.encode(),
            )
        return provider_pb2.CheckResponse(inputs=_struct(inputs), failures=_failures(failures))

    def Diff(self, request: Any, context: Any) -> Any:  # noqa: N802 - see above
        """Tell what changes."""
        old, new = values(request.old_inputs) or values(request.olds), values(request.news)
        for path in request.ignoreChanges:
            new.pop(path, None)
            if path in old:
                new[path] = old[path]
        with _told(context):
            return _diff(self._own.diff(_kind(request.urn), old, new))

    def Create(self, request: Any, context: Any) -> Any:  # noqa: N802 - see above
        """Make one."""
        kind, given = _kind(request.urn), values(request.properties)
        with _told(context):
            try:
                name, state = self._own.create(kind, given, preview=request.preview)
            except HalfMade as error:
                self._tell_half(context, kind, error, given)
        return provider_pb2.CreateResponse(id=name, properties=_struct(state))

    def Read(self, request: Any, context: Any) -> Any:  # noqa: N802 - see above
        """Look at one; an empty answer says that it is gone."""
        with _told(context):
            found = self._own.read(_kind(request.urn), request.id, values(request.inputs), values(request.properties))
        if found is None:
            return provider_pb2.ReadResponse()
        inputs, state = found
        return provider_pb2.ReadResponse(id=request.id, inputs=_struct(inputs), properties=_struct(state))

    def Update(self, request: Any, context: Any) -> Any:  # noqa: N802 - see above
        """Change one."""
        state = values(request.olds)
        old = values(request.old_inputs) or state
        with _told(context):
            after = self._own.update(
                _kind(request.urn), request.id, old, state, values(request.news), preview=request.preview
            )
        return provider_pb2.UpdateResponse(properties=_struct(after))

    def Delete(self, request: Any, context: Any) -> Any:  # noqa: N802 - see above
        """End one."""
        with _told(context):
            self._own.delete(_kind(request.urn), request.id, values(request.properties))
        return empty_pb2.Empty()

    def Invoke(self, request: Any, context: Any) -> Any:  # noqa: N802 - see above
        """Look something up."""
        with _told(context):
            found, failures = self._own.invoke(request.tok, values(request.args))
        return provider_pb2.InvokeResponse(**{"return": _struct(found), "failures": _failures(failures)})

    def _tell_half(self, context: Any, kind: str, error: HalfMade, given: dict[str, Any]) -> NoReturn:
        """Let the engine note what there is, so that its next update goes on from there."""
        inputs, state = self._own.read(kind, error.name, given, given) or (given, given)
        detail = provider_pb2.ErrorResourceInitFailed(
            id=error.name, properties=_struct(state), inputs=_struct(inputs), reasons=[str(error)]
        )
        status = status_pb2.Status(code=grpc.StatusCode.UNKNOWN.value[0], message=str(error))
        status.details.add().Pack(detail)
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(grpc.StatusCode.UNKNOWN, str(error))
        raise error  # abort does not return

    @property
    def _region(self) -> str:
        return self._environment.get("AWS_REGION") or self._environment.get("AWS_DEFAULT_REGION") or ""

    @property
    def _own(self) -> EmulatedProvider:
        if self._provider is None:
            msg = "the provider is not configured"
            raise Refused(msg)
        return self._provider


def server(provider: Provider) -> tuple[grpc.Server, int]:
    """Start to serve a provider; return the server and its port."""
    made = grpc.server(ThreadPoolExecutor(_THREADS), options=[("grpc.max_receive_message_length", -1)])
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(provider, made)
    port = made.add_insecure_port("127.0.0.1:0")
    made.start()
    return made, port


def serve() -> None:
    """Serve until the engine ends this process or leaves."""
    running, port = server(Provider(dict(os.environ)))
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    parent = os.getppid()
    pause = threading.Event()
    while os.getppid() == parent:
        pause.wait(1.0)  # the engine kills us; this is for an engine that was killed itself
    running.stop(None)


def values(struct: Any) -> dict[str, Any]:
    """Return what the engine sent as values; whole numbers as such."""
    return {key: _value(value) for key, value in struct.fields.items()}


@contextmanager
def _told(context: Any) -> Iterator[None]:
    """Let the engine hear why something failed."""
    try:
        yield
    except Refused as error:
        context.abort(grpc.StatusCode.UNKNOWN, str(error))
    except (ClientError, BotoCoreError) as error:
        context.abort(grpc.StatusCode.UNKNOWN, f"{type(error).__name__}: {error}")


def _diff(change: Change) -> Any:
    kinds = provider_pb2.PropertyDiff.Kind
    details = dict.fromkeys(change.updates, kinds.UPDATE) | dict.fromkeys(change.replaces, kinds.UPDATE_REPLACE)
    return _ANSWERED(
        changes=_ANSWERED.DIFF_SOME if change else _ANSWERED.DIFF_NONE,
        replaces=list(change.replaces),
        diffs=[*change.updates, *change.replaces],
        deleteBeforeReplace=change.delete_before_replace,
        detailedDiff={key: provider_pb2.PropertyDiff(kind=kind, inputDiff=True) for key, kind in details.items()},
        hasDetailedDiff=True,
    )


def _kind(urn: str) -> str:
    return urn.split("::")[2].rpartition("$")[2]


def _failures(failures: list[Failure]) -> list[Any]:
    return [provider_pb2.CheckFailure(property=each.property, reason=each.reason) for each in failures]


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a provider's settings, of which nested ones come as JSON."""
    return {
        key: json.loads(value) if isinstance(value, str) and value[:1] in ("{", "[") else value
        for key, value in settings.items()
    }


def _value(value: Any) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return values(value.struct_value)
    if kind == "list_value":
        return [_value(each) for each in value.list_value.values]
    if kind == "number_value":
        number = value.number_value
        return int(number) if number == int(number) else number
    return getattr(value, kind) if kind not in (None, "null_value") else None


def _struct(values: Mapping[str, Any]) -> Any:
    struct = struct_pb2.Struct()
    struct.update(json.loads(json.dumps(values, default=str)))  # times as text
    return struct
