"""AWS's errors in our words: which reaction each brings, and what the reader is told to do."""

import threading
from typing import Any

import botocore.exceptions as boto
import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber

from runner.aws.session import AwsSession, Unanswered, Unreachable, classified, quota_reached, translated
from runner.errors import AwsError, ConfigError, LaunchStopped, NoCapacity, RampCloudError, Throttled

KEY_ID, KEY = "AKIAEXAMPLE", "s3cr3t/Key"


def client_error(code: str, message: str = "words of AWS", status: int = 400) -> ClientError:
    answer: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "RunInstances")


@pytest.mark.parametrize("code", ["RequestLimitExceeded", "Throttling", "ThrottlingException", "SlowDown"])
def test_throttling(code: str) -> None:
    error = translated(client_error(code, status=503), "run_instances")
    assert type(error) is Throttled
    assert error.fields == {"code": code, "operation": "run_instances"}


@pytest.mark.parametrize(
    "code",
    [
        "InsufficientInstanceCapacity",
        "InsufficientHostCapacity",
        "InsufficientReservedInstanceCapacity",
        "InsufficientFreeAddressesInSubnet",
        "MaxSpotInstanceCountExceeded",
        "SpotMaxPriceTooLow",
        "UnfulfillableCapacity",
        "Unsupported",
    ],
)
def test_no_capacity(code: str) -> None:
    assert type(translated(client_error(code, status=500), "create_fleet")) is NoCapacity


def test_a_type_that_one_zone_lacks_is_no_capacity_of_that_pool() -> None:
    text = (
        "Your requested instance type (p3.2xlarge) is not supported in your requested Availability Zone (eu-west-1c)."
    )
    assert type(classified("InvalidFleetConfiguration", text, "create_fleet")) is NoCapacity
    assert type(classified("InvalidFleetConfiguration", "No overrides.", "create_fleet")) is LaunchStopped


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("VcpuLimitExceeded", "Service Quotas"),
        ("InstanceLimitExceeded", "lower n_workers"),
        ("UnauthorizedOperation", "may not call run_instances"),
        ("AuthFailure", "log in again"),
        ("AuthFailure.ServiceLinkedRoleCreationNotPermitted", "create-service-linked-role"),
        ("ExpiredToken", "aws sso login"),
        ("InvalidClientTokenId", "profile_name"),
        ("RequestExpired", "clock"),
        ("OptInRequired", "log in again"),
        ("InvalidAMIID.NotFound", "correct ami_image_name"),
        ("InvalidAMIID.Unavailable", "correct ami_image_name"),
        ("InvalidKeyPair.NotFound", "correct key_name"),
        ("InvalidGroup.NotFound", "correct security_group"),
        ("InvalidSubnetID.NotFound", "correct subnets"),
        ("InvalidIamInstanceProfileArn", "correct instance_profile"),
        ("InvalidLaunchTemplateName.NotFoundException", "correct launch_template"),
        ("VPCIdNotSpecified", "no default VPC"),
        ("InvalidZone.NotFound", "correct zones"),
        ("IdempotentParameterMismatch", "correct the keys of worker"),
    ],
)
def test_what_can_never_work_stops_launches_and_says_what_to_do(code: str, says: str) -> None:
    error = translated(client_error(code), "run_instances")
    assert type(error) is LaunchStopped
    assert says in error.message
    assert error.fields["code"] == code
    elsewhere = translated(client_error(code), "describe_instances")
    assert type(elsewhere) is AwsError
    assert elsewhere.message == error.message.replace("run_instances", "describe_instances")


def test_an_unknown_type_names_its_key() -> None:
    text = "Invalid value 't9.huge' for InstanceType."
    error = translated(client_error("InvalidParameterValue", text), "RunInstances")
    assert type(error) is LaunchStopped
    assert "t9.huge" in error.message
    assert "correct instance_type" in error.message


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("ResourceNotFoundException", "was deleted"),
        ("ResourceDependencyException", "what uses it has to go first"),
        ("ResourceAlreadyExistsException", "pulumi import"),
        ("ResourceInUseException", "wait until what is under way has ended"),
        ("InvalidParameterCombinationException", "pulumi up"),
        ("InvalidRequestException", "console of EC2 Image Builder"),
        ("ServiceQuotaExceededException", "prune-images"),
        ("InvalidAMIName.Duplicate", "remove the image of that name"),
        ("InvalidSnapshot.InUse", "deregister the image"),
        ("NoSuchBucket", "makes the bucket"),
        ("404", "was deleted"),
        ("ParameterNotFound", "another name"),
        ("ForbiddenException", "may not call get_image"),
        ("403", "may not call get_image"),
    ],
)
def test_trouble_around_images_blames_no_key_of_the_worker(code: str, says: str) -> None:
    error = translated(client_error(code, "Words of AWS."), "get_image")
    assert type(error) is AwsError
    assert says in error.message
    assert "Words of AWS" in error.message
    assert "config.yml" not in error.message
    assert error.fields == {"code": code, "operation": "get_image"}


def test_image_builders_own_words_for_throttling_and_faults_of_aws() -> None:
    assert type(translated(client_error("CallRateLimitExceededException", status=429), "get_image")) is Throttled
    assert type(translated(client_error("ServiceUnavailableException", status=503), "get_image")) is Unanswered
    assert type(translated(client_error("ServiceException", status=500), "get_image")) is Unanswered


def test_an_encoded_refusal_comes_with_the_way_to_decode_it() -> None:
    text = (
        "You are not authorized to perform this operation. User: arn:aws:iam::1:user/x is not authorized to perform: "
        "ec2:RunInstances. Encoded authorization failure message: AbCd123 "
    )
    error = translated(client_error("UnauthorizedOperation", text), "run_instances")
    assert "ec2:RunInstances" in error.message
    assert "`aws sts decode-authorization-message --encoded-message AbCd123`" in error.message


def test_of_two_quotas_the_message_is_the_same() -> None:
    assert "Service Quotas" in quota_reached("MaxSpotInstanceCountExceeded, VcpuLimitExceeded").message


@pytest.mark.parametrize(("code", "status"), [("InternalError", 500), ("Unavailable", 503), ("Whatever", 502)])
def test_a_fault_of_aws_leaves_the_outcome_open(code: str, status: int) -> None:
    assert type(translated(client_error(code, status=status), "run_instances")) is Unanswered


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (boto.ReadTimeoutError(endpoint_url="https://ec2"), Unanswered, "safe to repeat"),
        (boto.ConnectionClosedError(endpoint_url="https://ec2"), Unanswered, "safe to repeat"),
        (boto.ConnectTimeoutError(endpoint_url="https://ec2"), Unreachable, "network and region_name"),
        (boto.EndpointConnectionError(endpoint_url="https://ec2"), Unreachable, "network and region_name"),
        (boto.NoCredentialsError(), LaunchStopped, "aws sso login"),
        (boto.UnauthorizedSSOTokenError(), LaunchStopped, "aws sso login"),
        (boto.SSOTokenLoadError(error_msg="expired"), LaunchStopped, "aws sso login"),
        (boto.TokenRetrievalError(provider="sso", error_msg="x"), LaunchStopped, "aws sso login"),
        (boto.PartialCredentialsError(provider="env", cred_var="secret_key"), LaunchStopped, "missing"),
        (boto.ProfileNotFound(profile="mine"), AwsError, "profile_name"),
        (boto.NoRegionError(), AwsError, "region_name"),
    ],
)
def test_what_never_came_to_aws_or_back(error: Exception, kind: type[RampCloudError], says: str) -> None:
    ours = translated(error, "run_instances")
    assert type(ours) is kind
    assert says in ours.message


def test_wrong_parameters_are_told_without_their_values() -> None:
    report = "Invalid type for parameter UserData, value: PRIVATE\nKEY, type: <class 'int'>, valid types: <class 'str'>"
    ours = translated(boto.ParamValidationError(report=report), "run_instances")
    assert type(ours) is LaunchStopped
    assert "UserData" in ours.detail
    assert "PRIVATE" not in ours.for_organiser()
    assert "KEY" not in ours.for_organiser()


def test_keys_never_stand_in_an_error() -> None:
    session = AwsSession(region_name="eu-west-1", access_key_id=KEY_ID, secret_access_key=KEY)
    text = f"signature made with {KEY} of {KEY_ID} does not match"
    ours = session.translated(client_error("SignatureDoesNotMatch", text), "run_instances")
    assert KEY not in ours.for_organiser()
    assert KEY_ID not in ours.for_organiser()
    assert KEY not in str(ours)
    assert KEY not in repr(session)


def test_calls_are_told_before_they_are_made_and_errors_keep_their_origin() -> None:
    told: list[str] = []
    session = AwsSession(region_name="eu-west-1", access_key_id=KEY_ID, secret_access_key=KEY, on_call=told.append)
    with Stubber(session.client("sts")) as stub:
        stub.add_response("get_caller_identity", {"Account": "1"})
        stub.add_client_error("get_caller_identity", "ExpiredToken")
        assert session.call("sts", "get_caller_identity")["Account"] == "1"
        with pytest.raises(AwsError, match="ExpiredToken") as caught:
            session.call("sts", "get_caller_identity")
    assert isinstance(caught.value.__cause__, ClientError)
    assert told == ["get_caller_identity"] * 2


def test_all_threads_share_one_client_per_service() -> None:
    session = AwsSession(region_name="eu-west-1", access_key_id=KEY_ID, secret_access_key=KEY)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(session.client("sts"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({id(client) for client in found}) == 1
    assert session.client("sts", repeats=False) is not found[0]


def test_only_launches_are_not_repeated_behind_our_back() -> None:
    session = AwsSession(region_name="eu-west-1", access_key_id=KEY_ID, secret_access_key=KEY)
    assert session.client("sts").meta.config.retries["total_max_attempts"] > 1
    assert session.client("sts", repeats=False).meta.config.retries["total_max_attempts"] == 1


def test_a_missing_region_or_profile_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="region_name"):
        AwsSession().region()
    assert AwsSession(region_name="eu-west-3").region() == "eu-west-3"
    with pytest.raises(AwsError, match=r"profile_name: .*nobody"):
        AwsSession(profile_name="nobody").region()
    with pytest.raises(AwsError, match=r"profile_name: .*nobody"):
        AwsSession(profile_name="nobody", region_name="eu-west-1").call("sts", "get_caller_identity")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(AwsError, match="credentials are missing"):
        AwsSession(region_name="eu-west-1").call("sts", "get_caller_identity")


def test_another_region_is_the_same_account_with_the_same_secrets() -> None:
    told: list[str] = []
    session = AwsSession(region_name="eu-west-1", access_key_id=KEY_ID, secret_access_key=KEY, on_call=told.append)
    there = session.in_region("us-east-1")
    assert there.region() == "us-east-1"
    assert session.in_region("eu-west-1") is session
    assert session.in_region("us-east-1") is there, "its clients are made once"
    assert there.client("sts").meta.region_name == "us-east-1"
    ours = there.translated(client_error("SignatureDoesNotMatch", f"made with {KEY}"), "get_image")
    assert KEY not in ours.for_organiser()
    with Stubber(there.client("sts")) as stub:
        stub.add_response("get_caller_identity", {"Account": "1"})
        there.call("sts", "get_caller_identity")
    assert told == ["get_caller_identity"]
