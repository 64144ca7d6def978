"""The emulated provider over gRPC, as Pulumi's engine talks to it, and what its tests make."""

import json
from typing import Any

import grpc
from google.protobuf import struct_pb2
from pulumi.runtime.proto import provider_pb2, provider_pb2_grpc

from tests.infra.provider.server import values
from tests.infra.provider.services.base import Account
from tests.rehearsing import Cloud

DEFAULT_TAGS = {"ramp-cloud:event": "iris"}
BASE = "ami-0123456789abcdef0"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB8eHRwbGhkYFxYVFBMSERAPDg0MCwoJCAcGBQQDAgEA"
TRUST = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "ec2.amazonaws.com"}}],
    }
)


def document(word: str) -> str:
    """Return a component's document."""
    return json.dumps(
        {
            "schemaVersion": 1.0,
            "phases": [
                {
                    "name": "build",
                    "steps": [{"name": "say", "action": "ExecuteBash", "inputs": {"commands": [f"echo {word}"]}}],
                }
            ],
        }
    )


def policy(action: str) -> str:
    """Return a policy's document."""
    statement = {"Effect": "Allow", "Action": action, "Resource": "*"}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


class Wire:
    """The provider over gRPC, as the engine talks to it."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = provider_pb2_grpc.ResourceProviderStub(channel)  # type: ignore[no-untyped-call]  # pulumi's stubs have no types here

    def configure(self, **settings: str) -> None:
        """Configure it."""
        self._stub.Configure(provider_pb2.ConfigureRequest(args=struct(settings)))

    def checked(self, kind: str, given: dict[str, Any], known: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return checked inputs; ValueError with the reasons if they are refused."""
        answer = self._stub.Check(
            provider_pb2.CheckRequest(
                urn=urn(kind), news=struct(given), olds=struct(known or {}), randomSeed=b"seed of chance"
            )
        )
        if answer.failures:
            raise ValueError("; ".join(f"{each.property}: {each.reason}" for each in answer.failures))
        return values(answer.inputs)

    def diff(self, kind: str, old: dict[str, Any], new: dict[str, Any]) -> Any:
        """Return what would change."""
        return self._stub.Diff(
            provider_pb2.DiffRequest(urn=urn(kind), id="x", old_inputs=struct(old), olds=struct(old), news=struct(new))
        )

    def create(self, kind: str, inputs: dict[str, Any], *, preview: bool = False) -> tuple[str, dict[str, Any]]:
        """Make it; return id and state."""
        request = provider_pb2.CreateRequest(urn=urn(kind), properties=struct(inputs), preview=preview)
        answer = self._stub.Create(request)
        return answer.id, values(answer.properties)

    def read(
        self, kind: str, name: str, inputs: dict[str, Any], state: dict[str, Any]
    ) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Return id ("" when it is gone), inputs and state."""
        answer = self._stub.Read(
            provider_pb2.ReadRequest(urn=urn(kind), id=name, inputs=struct(inputs), properties=struct(state))
        )
        return answer.id, values(answer.inputs), values(answer.properties)

    def update(
        self, kind: str, name: str, old: dict[str, Any], state: dict[str, Any], new: dict[str, Any]
    ) -> dict[str, Any]:
        """Change it; return its state."""
        answer = self._stub.Update(
            provider_pb2.UpdateRequest(
                urn=urn(kind), id=name, olds=struct(state), old_inputs=struct(old), news=struct(new)
            )
        )
        return values(answer.properties)

    def delete(self, kind: str, name: str, state: dict[str, Any]) -> None:
        """End it."""
        self._stub.Delete(provider_pb2.DeleteRequest(urn=urn(kind), id=name, properties=struct(state)))

    def invoke(self, token: str, given: dict[str, Any]) -> dict[str, Any]:
        """Look something up."""
        answer = self._stub.Invoke(provider_pb2.InvokeRequest(tok=token, args=struct(given)))
        if answer.failures:
            raise ValueError("; ".join(f"{each.property}: {each.reason}" for each in answer.failures))
        return values(getattr(answer, "return"))

    def made(self, kind: str, **given: Any) -> tuple[str, dict[str, Any]]:
        """Check and make; return id and state."""
        return self.create(kind, self.checked(kind, given))


def urn(kind: str) -> str:
    """Return the name of a resource in a stack."""
    return f"urn:pulumi:test::ramp-cloud::{kind}::thing"


def struct(given: dict[str, Any]) -> struct_pb2.Struct:
    """Return values as they are sent."""
    made = struct_pb2.Struct()
    made.update(given)
    return made


def client(cloud: Cloud, service: str) -> Any:
    """Return a client of the emulated AWS."""
    return Account("eu-west-3", cloud.aws.environment).client(service)


def put_object(cloud: Cloud, bucket: str) -> None:
    """Put something into a bucket."""
    client(cloud, "s3").put_object(Bucket=bucket, Key="kits/iris", Body=b"x")
