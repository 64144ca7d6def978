"""The way to AWS: one boto3 session and one client per service for all threads, and AWS's errors in our words."""

import re
import threading
from collections.abc import Callable
from typing import Any

import boto3
import botocore.exceptions
from botocore.config import Config

from runner.aws.advice import DEEDS, KEYS
from runner.errors import AwsError, ConfigError, LaunchStopped, NoCapacity, RampCloudError, Throttled

_CONNECT_TIMEOUT = 10  # seconds
_READ_TIMEOUT = 60  # seconds; a launch of a hundred instances takes AWS a while
_TRIES = 4
_CONNECTIONS = 25

_THROTTLED = {
    "BandwidthLimitExceeded",
    "CallRateLimitExceededException",
    "EC2ThrottledException",
    "PriorRequestNotComplete",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "SlowDown",
    "TooManyRequestsException",
}
_NO_CAPACITY = {
    "InsufficientCapacity",
    "InsufficientCapacityOnHost",
    "InsufficientFreeAddressesInSubnet",
    "InsufficientHostCapacity",
    "InsufficientInstanceCapacity",
    "InsufficientReservedInstanceCapacity",
    "MaxSpotInstanceCountExceeded",
    "SpotMaxPriceTooLow",
    "UnfulfillableCapacity",
    "Unsupported",  # this type is not to be had in that zone
}
QUOTA_CODES = frozenset({"VcpuLimitExceeded", "InstanceLimitExceeded", "MaxSpotInstanceCountExceeded"})
_UNANSWERED = {
    "InternalError",
    "InternalFailure",
    "InternalServerError",
    "InternalServiceError",
    "ServiceException",
    "ServiceUnavailable",
    "ServiceUnavailableException",
    "Unavailable",
}
_LOGIN = {
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "MissingAuthenticationToken",
    "OptInRequired",
    "PendingVerification",
    "RequestExpired",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
# What Image Builder calls forbidden, and S3 where an answer has no body.
_RIGHTS = {"UnauthorizedOperation", "AccessDenied", "AccessDeniedException", "UnauthorizedException"}
_RIGHTS |= {"ForbiddenException", "403"}
_SERVICE_ROLE = "AuthFailure.ServiceLinkedRoleCreationNotPermitted"
_LAUNCHES = {"runinstances", "createfleet", "createlaunchtemplate"}

_NO_LOGIN = (
    botocore.exceptions.NoCredentialsError,
    botocore.exceptions.PartialCredentialsError,
    botocore.exceptions.CredentialRetrievalError,
    botocore.exceptions.SSOError,
    botocore.exceptions.TokenRetrievalError,
    botocore.exceptions.NoAuthTokenError,
    botocore.exceptions.RefreshWithMFAUnsupportedError,
)
_NEVER_ARRIVED = (
    botocore.exceptions.EndpointConnectionError,
    botocore.exceptions.ConnectTimeoutError,
    botocore.exceptions.ProxyConnectionError,
    botocore.exceptions.SSLError,
)
_PERHAPS_ARRIVED = (botocore.exceptions.HTTPClientError,)  # timeouts while reading, connections that broke


class Unanswered(AwsError):
    """AWS did not say how a call went: it may or may not have been carried out."""


class Unreachable(Unanswered):
    """A call never came to AWS, so it was not carried out."""


class AwsSession:
    """Makes calls to AWS for any number of threads. Nothing is read or sent before the first call.

    Args:
        region_name, profile_name, access_key_id, secret_access_key: as in config.yml; what is None is boto3's to find.
        on_call: told the operation before each call, from any thread; for counting.
    """

    def __init__(
        self,
        *,
        region_name: str | None = None,
        profile_name: str | None = None,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        on_call: Callable[[str], None] | None = None,
    ) -> None:
        self._given = {
            "region_name": region_name,
            "profile_name": profile_name,
            "aws_access_key_id": access_key_id,
            "aws_secret_access_key": secret_access_key,
        }
        self._secrets = tuple(text for text in (secret_access_key, access_key_id) if text)
        self._on_call = on_call
        self._lock = threading.Lock()  # boto3's clients are thread-safe; making them is not
        self._session: boto3.Session | None = None
        self._clients: dict[tuple[str, bool], Any] = {}
        self._elsewhere: dict[str, AwsSession] = {}

    def call(self, service: str, operation: str, *, repeats: bool = True, **parameters: Any) -> dict[str, Any]:
        """Make a call and return AWS's answer.

        Args:
            service: boto3's name of it, such as ec2.
            operation: the client's method, such as describe_instances.
            repeats: whether botocore may repeat it by itself. Launches are repeated by the launcher alone, which
                knows what throttling means.
            parameters: of the operation.

        Raises:
            Throttled, NoCapacity, Unanswered, AwsError, LaunchStopped: see ``translated``.
        """
        if self._on_call is not None:
            self._on_call(operation)
        try:
            answer: dict[str, Any] = getattr(self.client(service, repeats=repeats), operation)(**parameters)
        except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
            raise self.translated(error, operation) from error
        return answer

    def client(self, service: str, *, repeats: bool = True) -> Any:
        """Return the one client of a service, made when it is first asked for."""
        with self._lock:
            if (service, repeats) not in self._clients:
                settings = Config(
                    connect_timeout=_CONNECT_TIMEOUT,
                    read_timeout=_READ_TIMEOUT,
                    max_pool_connections=_CONNECTIONS,
                    retries={"mode": "standard", "total_max_attempts": _TRIES if repeats else 1},
                    user_agent_extra="ramp-cloud",
                )
                make: Any = self._boto3().client  # typed per service name; ours is not known before it runs
                self._clients[service, repeats] = make(service, config=settings)
            return self._clients[service, repeats]

    def in_region(self, region: str) -> "AwsSession":
        """Return the way to another region of the same account, or this one for its own; nothing is asked yet."""
        if region == self.region():
            return self
        given = {
            "profile_name": self._given["profile_name"],
            "access_key_id": self._given["aws_access_key_id"],
            "secret_access_key": self._given["aws_secret_access_key"],
        }
        with self._lock:
            if region not in self._elsewhere:
                self._elsewhere[region] = AwsSession(region_name=region, on_call=self._on_call, **given)
            return self._elsewhere[region]

    def region(self) -> str:
        """Return the region that calls go to.

        Raises:
            ConfigError: neither config.yml nor boto3's own configuration names one.
            AwsError: the profile does not exist.
        """
        try:
            with self._lock:
                region = self._boto3().region_name
        except botocore.exceptions.BotoCoreError as error:
            raise self.translated(error, "region") from error
        if not region:
            msg = "region_name: no region is known; set it in config.yml, such as eu-west-1, or set AWS_DEFAULT_REGION"
            raise ConfigError(msg)
        return region

    def translated(self, error: Exception, operation: str) -> RampCloudError:
        """Return our error for one of boto3's; see the function of the same name. Keys never stand in it."""
        ours = translated(error, operation)
        for secret in self._secrets:
            ours.message = ours.message.replace(secret, "***")
            ours.detail = ours.detail.replace(secret, "***")
        ours.args = (ours.message,)
        return ours

    def _boto3(self) -> boto3.Session:
        if self._session is None:
            self._session = boto3.Session(**self._given)  # type: ignore[arg-type]  # the stubs want each key by itself
        return self._session


def translated(error: Exception, operation: str) -> RampCloudError:
    """Return our error for one of boto3's, with a message that says what to do next.

    Args:
        error: a ClientError or BotoCoreError.
        operation: the call, as run_instances or RunInstances. Only a launch can end in LaunchStopped: trouble that
            stops launches is an AwsError with the same message where it meets another call.
    """
    if isinstance(error, botocore.exceptions.ClientError):
        facts = error.response.get("Error", {})
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return classified(facts.get("Code", ""), facts.get("Message", ""), operation, status=status)
    name = type(error).__name__
    if isinstance(error, _NO_LOGIN):
        msg = (
            "AWS credentials are missing or have expired; log in (`aws sso login` or `aws configure`), or set "
            "profile_name in config.yml, and repeat"
        )
        return _stopping(msg, operation, detail=str(error), code=name)
    if isinstance(error, botocore.exceptions.ProfileNotFound):
        msg = f"profile_name: {error}; correct it in config.yml, or make the profile with `aws configure --profile`"
        return AwsError(msg, code=name, operation=operation)
    if isinstance(error, _NEVER_ARRIVED):
        msg = "AWS cannot be reached; check this machine's network and region_name in config.yml, and repeat"
        return Unreachable(msg, detail=str(error), code=name, operation=operation)
    if isinstance(error, _PERHAPS_ARRIVED):
        msg = f"AWS did not answer {operation}; look at this machine's network, it is safe to repeat"
        return Unanswered(msg, detail=str(error), code=name, operation=operation)
    if isinstance(error, botocore.exceptions.ParamValidationError):
        # Its text quotes the values, user data with the host key among them.
        detail = re.sub(r"value: .*?(, type: |, valid |$)", r"value: …\1", str(error), flags=re.DOTALL)
        msg = f"{operation} was called with something that it does not take; look at the keys named in config.yml"
        return _stopping(msg, operation, detail=detail, code=name)
    msg = f"AWS could not be asked ({operation}); check region_name and this machine's AWS configuration"
    return AwsError(msg, detail=str(error), code=name, operation=operation)


def classified(code: str, text: str, operation: str, *, status: int = 0) -> RampCloudError:
    """Return our error for one of AWS's codes. CreateFleet lists such codes in answers that succeed.

    Args:
        code, text: AWS's own.
        operation: the call.
        status: HTTP status of the answer, 0 where there is none.
    """
    if code in _THROTTLED or code.startswith("Throttl"):
        msg = f"AWS limits how often {operation} may be called; wait a moment and repeat"
        return Throttled(msg, detail=text, code=code, operation=operation)
    if code in _NO_CAPACITY or _is_of_one_zone(code, text):
        msg = f"AWS has no such instance now ({code}); name more instance types, subnets or zones, or wait"
        return NoCapacity(msg, detail=text, code=code, operation=operation)
    if code in _UNANSWERED or (status >= 500 and code not in QUOTA_CODES):
        msg = f"AWS had a fault of its own at {operation} ({code}); it is safe to repeat"
        return Unanswered(msg, detail=text, code=code, operation=operation)
    return _stopping(f"{_advice(code, text, operation)}", operation, detail=_readable(text), code=code)


def quota_reached(code: str, detail: str = "") -> LaunchStopped:
    """Return what stops launching when the account may run nothing more."""
    return LaunchStopped(_advice(code, detail, ""), detail=detail, code=code)


def _advice(code: str, text: str, operation: str) -> str:
    if QUOTA_CODES.intersection(code.split(", ")):
        return (
            f"the account's quota of running instances is reached ({code}); ask AWS for more under Service Quotas, "
            "Amazon EC2, or lower n_workers or choose a smaller instance_type"
        )
    if code == _SERVICE_ROLE:
        return (
            "the account has never used spot instances and these credentials may not prepare it; have somebody run "
            "`aws iam create-service-linked-role --aws-service-name spot.amazonaws.com` once"
        )
    if code in _LOGIN:
        return (
            f"AWS does not accept the credentials ({code}); log in again (`aws sso login`), correct profile_name or "
            "the keys, and check this machine's clock"
        )
    if code in _RIGHTS:
        return f"these credentials may not call {operation} ({code}); have the right added: {_readable(text)}"
    if code in DEEDS:
        return f"AWS refused {operation} ({code}): {_readable(text)}; {DEEDS[code]}"
    key = next((key for start, key in KEYS.items() if code.startswith(start)), "")
    if not key and "InstanceType" in text:
        key = "instance_type"
    return f"AWS refused {operation} ({code}): {_readable(text)}; correct {key or 'the keys of worker'} in config.yml"


def _readable(text: str) -> str:
    """Return AWS's text; of an encoded failure only how to decode it is shown, the rest is for machines."""
    said, mark, encoded = text.partition("Encoded authorization failure message:")
    if not mark:
        return text.strip().rstrip(".")
    code = encoded.strip().partition(" ")[0]
    return f"{said.strip().rstrip('.')} (why exactly: `aws sts decode-authorization-message --encoded-message {code}`)"


def _is_of_one_zone(code: str, text: str) -> bool:
    """Whether a type is only not offered in one zone: another pool may have it."""
    return code in {"InvalidFleetConfiguration", "InvalidParameterCombination"} and "Availability Zone" in text


def _stopping(message: str, operation: str, *, detail: str, code: str) -> RampCloudError:
    is_launch = operation.replace("_", "").lower() in _LAUNCHES
    kind: type[RampCloudError] = LaunchStopped if is_launch else AwsError
    return kind(message, detail=detail, code=code, operation=operation)
