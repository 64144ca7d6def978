"""Runs the whole program in this process: nothing is made, everything that would be is remembered."""

import base64
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pulumi
import yaml
from pulumi.runtime import mocks, rpc, settings

from image_builder.recipe import BASES
from infra.program import declare
from infra.settings import Settings
from tests.image_builder.planning import IrisEvent
from tests.rehearsing import Cloud

ACCOUNT = "123456789012"
VPC = "vpc-0123456789abcdef0"
SUBNETS = {"subnet-aaaaaaaa": "eu-west-1a", "subnet-bbbbbbbb": "eu-west-1b"}
_BODY = struct.pack(">I", 11) + b"ssh-ed25519" + struct.pack(">I", 32) + bytes(32)
PUBLIC_KEY = f"ssh-ed25519 {base64.b64encode(_BODY).decode()} me@here"


@dataclass(frozen=True, kw_only=True)
class Made:
    """One resource that the program asked for: its inputs as the provider gets them, and the engine's options."""

    kind: str
    name: str
    inputs: Mapping[str, Any]
    parent: str
    provider: str
    protected: bool
    retained: bool

    def __getitem__(self, key: str) -> Any:
        """Return an input."""
        return self.inputs[key]


@dataclass(kw_only=True)
class Declared:
    """What a run asked for."""

    made: list[Made] = field(default_factory=list)
    calls: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)

    def all(self, kind: str) -> list[Made]:
        """Return the resources of a kind such as `s3/bucket:Bucket`."""
        return [each for each in self.made if each.kind == f"aws:{kind}"]

    def one(self, kind: str, name: str = "") -> Made:
        """Return the only resource of a kind, or the only one whose name has ``name`` in it."""
        (found,) = [each for each in self.all(kind) if name in each.name]
        return found

    def of_aws(self) -> Iterator[Made]:
        """Yield what would be in AWS."""
        return (each for each in self.made if each.kind.startswith("aws:"))


class StackEvent(IrisEvent):
    """The bundled event with a section `infra` and a public key."""

    def __init__(self, folder: Path, **infra: Any) -> None:
        super().__init__(folder)
        (folder / "login.pub").write_text(PUBLIC_KEY)
        for key in ("key_name", "security_group"):
            del self.keys[key]
        self.keys |= {"key_path": str(folder / "login"), "event_name": "iris"}
        self.infra: dict[str, Any] = {"runner_cidr": ["203.0.113.7/32"], **infra}
        self.has_image = True

    def write(self, **keys: Any) -> Path:
        """Write config.yml, keys of the event's own changed, and return its path."""
        file = self.folder / "config.yml"
        image = {"image": self.image} if self.has_image else {"image": None}
        content = {**self.keys, **image, "infra": self.infra, **keys}
        if not self.has_image:
            del content["image"]
        file.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
        return file

    def settings(self, **keys: Any) -> Settings:
        """Return the settings of the file."""
        return Settings.load(self.write(**keys))

    def declare(self, **keys: Any) -> Declared:
        """Return what `pulumi up` would ask for."""
        return run(self.settings(**keys))


class _Answers(mocks.Mocks):
    """Answers as AWS would."""

    def __init__(self, seen: Declared) -> None:
        self._seen = seen
        self.subnets = SUBNETS

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        """Return the id and what the provider would add."""
        arn = f"arn:aws:{args.typ}:{args.name}"
        named = {"name": args.name} if "name" not in args.inputs else {}
        key = {"keyName": args.name} if args.typ.endswith(":KeyPair") and "keyName" not in args.inputs else {}
        return f"{args.name}-id", {"arn": arn, **named, **key, **args.inputs}

    def call(self, args: mocks.MockCallArgs) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """Return the answer of an invoke."""
        self._seen.calls.append((args.token, args.args))
        answers: dict[str, dict[str, Any]] = {
            "aws:index/getCallerIdentity:getCallerIdentity": {
                "accountId": ACCOUNT,
                "arn": f"arn:aws:iam::{ACCOUNT}:user/me",
                "userId": "me",
            },
            "aws:ec2/getVpcs:getVpcs": {"ids": self._networks(args.args.get("filters", []))},
            "aws:imagebuilder/getComponents:getComponents": {"arns": []},
            "aws:imagebuilder/getInfrastructureConfigurations:getInfrastructureConfigurations": {"arns": []},
            "aws:ec2/getSubnets:getSubnets": {"ids": list(self.subnets)},
            "aws:ec2/getSubnet:getSubnet": {"availabilityZone": self.subnets.get(args.args.get("id", ""))},
            "aws:ec2/getAmi:getAmi": {"rootDeviceName": "/dev/xvdz"},
        }
        return answers[args.token], []

    @staticmethod
    def _networks(filters: Any) -> list[str]:
        """Return the network that was asked for by its id, or the default one."""
        named = [each["values"][0] for each in filters if each["name"] == "vpc-id"]
        return named or [VPC]


class _Monitor(mocks.MockMonitor):
    def __init__(self, answers: mocks.Mocks, seen: Declared) -> None:
        super().__init__(answers)
        self._seen = seen

    def RegisterResource(self, request: Any) -> Any:  # noqa: N802 - gRPC's name
        self._seen.made.append(
            Made(
                kind=request.type,
                name=request.name,
                inputs=rpc.deserialize_properties(request.object),
                parent=request.parent,
                provider=request.provider,
                protected=request.protect,
                retained=request.retainOnDelete,
            )
        )
        return super().RegisterResource(request)  # type: ignore[no-untyped-call] # pulumi has no types there


def run(wanted: Settings, *, subnets: Mapping[str, str] = SUBNETS) -> Declared:
    """Run the program and return what it asked for."""
    seen = Declared()
    answers = _Answers(seen)
    answers.subnets = dict(subnets)

    def program() -> pulumi.Output[Any]:
        return pulumi.Output.all(**declare(wanted)).apply(seen.outputs.update)

    in_a_stack(program, answers=answers, monitor=_Monitor(answers, seen))
    return seen


def in_a_stack(
    program: Callable[[], pulumi.Output[Any]],
    *,
    answers: mocks.Mocks | None = None,
    monitor: mocks.MockMonitor | None = None,
) -> None:
    """Run a program as the program of a stack, and wait for what it returns."""
    answers = answers or _Answers(Declared())
    _forget_root()
    mocks.set_mocks(answers, project="ramp-cloud", stack="iris", preview=False, monitor=monitor)
    try:
        pulumi.runtime.test(program)()  # type: ignore[no-untyped-call] # pulumi has no types there
    finally:
        _forget_root()


def _forget_root() -> None:
    """Forget the stack of the run before, with the checks that it has."""
    settings.set_root_resource(None)  # type: ignore[arg-type] # as it is before the first run


def seed_base(cloud: Cloud) -> None:
    """Let the emulated account have the base that images start from, where AWS and Canonical publish it."""
    base = BASES["ubuntu-24.04"].removeprefix("ssm:")
    cloud.aws.seed(
        images=[{"name": "ubuntu", "created": "2026-01-01T00:00:00Z", "owner": "099720109477", "parameters": [base]}]
    )
