"""What the services share: the clients of an account, and how a kind of resource is made, read, changed and ended."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from threading import Lock
from typing import Any, Protocol

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

Values = dict[str, Any]


class Account:
    """One account and region, reached through the AWS_* variables of this process or those given."""

    def __init__(self, region: str, environment: Mapping[str, str]) -> None:
        self.region = region
        self._endpoint = environment.get("AWS_ENDPOINT_URL")
        self._session = boto3.Session(
            aws_access_key_id=environment.get("AWS_ACCESS_KEY_ID"),
            aws_secret_access_key=environment.get("AWS_SECRET_ACCESS_KEY"),
            region_name=region,
        )
        self._clients: dict[str, Any] = {}
        self._lock = Lock()

    @cached_property
    def id(self) -> str:
        """The account's 12 digits."""
        return str(self.call("sts", "get_caller_identity")["Account"])

    def call(self, service: str, operation: str, **parameters: Any) -> Values:
        """Make a call; parameters that are None are left out.

        Raises:
            ClientError: AWS refuses it.
        """
        given = {name: value for name, value in parameters.items() if value is not None}
        return dict(getattr(self.client(service), operation)(**given))

    def client(self, service: str) -> Any:
        """Return the client of a service."""
        with self._lock:
            if service not in self._clients:
                # Nothing here gets better by waiting; S3 by path, since there are no names for buckets on loopback.
                config = Config(retries={"max_attempts": 0}, s3={"addressing_style": "path"}, parameter_validation=True)
                self._clients[service] = self._session.client(service, endpoint_url=self._endpoint, config=config)  # type: ignore[call-overload]  # the name is a variable
            return self._clients[service]


class Resource(Protocol):
    """One kind of resource. Its methods raise ClientError and Refused."""

    def create(self, account: Account, inputs: Values) -> str:
        """Make it and return its id."""

    def read(self, account: Account, name: str, state: Values) -> Values | None:
        """Return what AWS says of it, as properties (None for one that is not set); None when it is gone."""

    def update(self, account: Account, name: str, state: Values, inputs: Values, changed: Collection[str]) -> None:
        """Bring it from ``state`` to ``inputs``; ``changed`` says in which properties."""

    def delete(self, account: Account, name: str, state: Values) -> None:
        """End it; one that is gone already is fine."""


class Refused(Exception):
    """The provider itself refuses something, before it calls AWS or after."""


class HalfMade(Exception):
    """Something was made, but not all of it: it has an id, and the next `up` has to go on with it."""

    def __init__(self, name: str, why: Exception) -> None:
        super().__init__(f"{type(why).__name__}: {why}")
        self.name = name


@contextmanager
def half_made(name: str) -> Iterator[None]:
    """Let what fails from now on be known as a part of what was made."""
    try:
        yield
    except (ClientError, BotoCoreError) as error:
        raise HalfMade(name, error) from error


@contextmanager
def gone_is_fine(*codes: str) -> Iterator[None]:
    """Let AWS answer that something is not there."""
    try:
        yield
    except ClientError as error:
        if code_of(error) not in codes:
            raise


def code_of(error: ClientError) -> str:
    """Return AWS's code of an error."""
    return str(error.response.get("Error", {}).get("Code", ""))


def as_pairs(tags: Mapping[str, str] | None) -> list[dict[str, str]]:
    """Return tags as most services take them."""
    return [{"Key": name, "Value": value} for name, value in (tags or {}).items()]


def as_map(pairs: Collection[Mapping[str, str]] | None) -> dict[str, str]:
    """Return tags as Pulumi has them, without those of AWS itself."""
    return {each["Key"]: each["Value"] for each in pairs or () if not each["Key"].startswith("aws:")}


def tag_changes(state: Values, inputs: Values) -> tuple[list[str], dict[str, str]]:
    """Return the tags to take away, and those to set: the differences only, in this order, as the provider does it."""
    before, after = state.get("tagsAll") or {}, inputs.get("tagsAll") or {}
    return sorted(before.keys() - after.keys()), {k: v for k, v in after.items() if before.get(k) != v}


def pascal(values: Any) -> Any:
    """Return a structure with its keys as EC2, S3 and most others write them: volumeSize -> VolumeSize."""
    if isinstance(values, dict):
        return {key[:1].upper() + key[1:]: pascal(value) for key, value in values.items() if value is not None}
    return [pascal(each) for each in values] if isinstance(values, list) else values


def camel(values: Any) -> Any:
    """Return a structure with its keys as Pulumi writes them."""
    if isinstance(values, dict):
        return {key[:1].lower() + key[1:]: camel(value) for key, value in values.items() if value is not None}
    return [camel(each) for each in values] if isinstance(values, list) else values
