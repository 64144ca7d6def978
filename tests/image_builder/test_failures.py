"""What a reader is told of a build that ended without an image: AWS's words in, ours out."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from image_builder.build_log import LogPlace
from image_builder.failures import TAIL, Ending, explain, failing_step
from runner.errors import BuildFailed

PLACE = LogPlace(group="/aws/imagebuilder/iris", stream="1.2.3/1", region="eu-west-3")
_EXECUTION = "Workflow Execution ID: 'wf-0b1c' failed with reason: SSM execution '8930028b' failed with status = "
DOCUMENT_FAILED = (
    f"{_EXECUTION}'Failed' in state = 'BUILDING' and failure message = 'Document arn:aws:imagebuilder:eu-west-3:"
    "123456789012:component/iris-environment/1.4.5/1 failed!'"
)
TIMED_OUT = f"{_EXECUTION}'TimedOut' in state = 'BUILDING' and failure message = 'Step timed out while step is Poll'"


def log(*steps: str, last: tuple[str, ...] = ()) -> list[str]:
    """Return the log of steps that are done but for the last one, as CloudWatch has it."""
    lines = ["Image transitioned to BUILDING state", "Started step ApplyBuildComponents with action ExecuteComponents"]
    for step in steps:
        lines += [f"Stdout: ramp-cloud: begin {step}", f"Stdout: working at {step}", f"Stdout: ramp-cloud: done {step}"]
    return [*lines[:-1], *(f"Stderr: {line}" for line in last)]


def told(
    reason: str = "",
    *,
    status: str = "FAILED",
    phase: str = "BUILDING",
    lines: list[str] | None = None,
    said: tuple[str, ...] = (),
    context: dict[str, Any] | None = None,
) -> BuildFailed:
    state: dict[str, Any] = {"status": status} | ({"reason": reason} if reason else {})
    ending = Ending.of({"state": state | ({"failureContext": context} if context else {})}, last_phase=phase)
    return explain(ending, build="iris 1.2.3/1", name="iris", place=PLACE, said=said, lines=lines or [])


def test_a_failing_step_reads_well() -> None:
    lines = log(
        "system build update",
        "environment build install",
        last=("Solving environment", "ResolvePackageNotFound:", "  - numpy=9"),
    )
    error = told(DOCUMENT_FAILED, lines=lines)
    assert error.message == (
        "the build iris 1.2.3/1 failed in phase BUILDING: step 'install' of the build phase of document 'environment' "
        "failed. The packages that the kit asks for cannot be installed together, or do not exist. Mend the kit's "
        "environment file (`./inv bake-image --local DIR` tries it on this machine for nothing), run `pulumi up`, then "
        "run `./inv build-image` again."
    )
    assert error.detail.splitlines() == [
        "The last lines of step 'install':",
        "  working at environment build install",
        "  Solving environment",
        "  ResolvePackageNotFound:",
        "    - numpy=9",
        "AWS says:",
        f"  {DOCUMENT_FAILED}",
        "The whole log: CloudWatch log group /aws/imagebuilder/iris, stream 1.2.3/1, in eu-west-3.",
    ]
    assert error.fields == {"phase": "BUILDING", "document": "environment", "step": "install"}


# Words that AWS was seen to use, with what a reader has to find in our message.
AWS_SAYS = [
    (
        "LaunchBuildInstance: An error occurred (InsufficientInstanceCapacity) when calling RunInstances",
        "another instance_type",
    ),
    ("You have requested more vCPU capacity (VcpuLimitExceeded)", "Service Quotas"),
    ("The value supplied for parameter 'instanceProfileName' is not valid.", "some minutes"),
    ("Invalid IAM Instance Profile name", "some minutes"),
    (
        f"{_EXECUTION}'Failed' in state = 'BUILDING' and failure message = 'SSM Agent verification failed'",
        "AmazonSSMManagedInstanceCore",
    ),
    (f"{_EXECUTION}'TimedOut' in state = 'BUILDING' and failure message = 'SSM Agent verification failed'", "port 443"),
    (
        "ExpectationNotMet. ssm:*CommandInvocations returned terminal status Failed in LaunchBuildInstance step",
        "never reported",
    ),
    (
        "(InvalidInstanceID) when calling SendCommand: Instances [[i-0abc]] not in a valid state for account 1",
        "never reported",
    ),
    (TIMED_OUT, "waited in vain"),
    (
        "AMI name iris 2026-11-23T10-15-30.123Z is already in use by AMI ami-0abc (InvalidAMIName.Duplicate)",
        "of that very name",
    ),
    ("Your account has reached the AMI quota of 50000 (AMI quota exceeded)", "prune-images"),
    ("ResourceLimitExceeded: Too many concurrent snapshot copies", "prune-images"),
    ("The parent image ssm:/aws/service/x could not be resolved: ParameterNotFound", "another base"),
    ("User: arn:aws:sts::1:assumed-role/x is not authorized to perform: ec2:CopyImage (AccessDenied)", "`pulumi up`"),
    ("KMSKeyNotAccessibleFault: the kms: key cannot be used", "key"),
    ("EC2 Image Builder was unable to assume EC2ImageBuilderDistributionCrossAccountRole", "another account"),
    ("The AMI that was made of the instance is in state 'failed', not 'available'", "could not make an image"),
    ("An internal error has occurred.", "fault of its own"),
    ("An internal error occurred (InternalError)", "fault of its own"),
    ("Rate exceeded (Throttling)", "Wait some minutes"),
    ("Something that nobody has seen before", "AWS's words below"),
    ("", "does not say why"),
]


@pytest.mark.parametrize(("reason", "says"), AWS_SAYS)
@pytest.mark.parametrize("phase", ["PENDING", "BUILDING", "TESTING", "DISTRIBUTING", "INTEGRATING"])
def test_each_of_awss_words_comes_with_what_to_try(reason: str, says: str, phase: str) -> None:
    error = told(reason, phase=phase)
    assert says in error.message
    assert "./inv build-image" in error.message
    assert error.message.startswith("the build iris 1.2.3/1 failed in phase ")
    assert reason in error.detail
    assert error.detail.endswith("stream 1.2.3/1, in eu-west-3.")
    assert "step" not in error.fields


@pytest.mark.parametrize(
    ("last", "says"),
    [
        ("OSError: [Errno 28] No space left on device", "volume_gb"),
        ("E: Could not get lock /var/lib/dpkg/lock-frontend", "lock"),
        ("curl: (6) Could not resolve host: github.com", "NAT gateway"),
        ("ERROR: No matching distribution found for nunpy", "environment file"),
        ("botocore AccessDeniedException when calling GetSecretValue: not authorized to perform", "data_secret"),
        ("An error occurred (404) when calling the HeadObject operation: Not Found", "is not there"),
        ("git@github.com: Permission denied (publickey).", "anybody can read"),
        ("NVIDIA-SMI has failed because it couldn't communicate with the driver", "NVIDIA GPU"),
        ("/bin/bash: line 1:  1234 Killed   python", "larger instance_type"),
        ("Command timed out after 3600 seconds", "timeoutSeconds"),
        ("line 3: frobnicate: command not found", "the lines below say why"),
    ],
)
def test_the_last_lines_of_a_step_tell_what_to_try(last: str, says: str) -> None:
    error = told(DOCUMENT_FAILED, lines=log("environment build install", last=(last,)))
    assert says in error.message.replace("The lines", "the lines")
    assert last in error.detail


def test_a_step_at_its_time_limit_is_named_though_aws_only_says_timed_out() -> None:
    error = told(TIMED_OUT, lines=log("system build update", "data build download", last=("Retrying ...",)))
    assert "step 'download' of the build phase of document 'data' failed" in error.message
    assert "longer than its time limit" in error.message


def test_a_failing_test_says_that_the_image_was_not_given_out() -> None:
    reason = DOCUMENT_FAILED.replace("BUILDING", "TESTING").replace("environment", "tests")
    error = told(reason, phase="TESTING", lines=log("tests test quick-test", last=("AssertionError",)))
    assert "failed in phase TESTING: step 'quick-test' of the test phase of document 'tests' failed" in error.message
    assert "was not given out" in error.message


def test_a_document_without_markers_is_named_by_aws_alone() -> None:
    lines = [*log("system build update"), "Stdout: ramp-cloud: done system build update", "an own document's words"]
    error = told(DOCUMENT_FAILED, lines=lines)
    assert ": document 'environment' failed." in error.message
    assert "The last lines of the log:" in error.detail
    assert "  an own document's words" in error.detail


def test_awss_own_word_for_the_step_counts_where_the_log_has_none() -> None:
    arn = "arn:aws:imagebuilder:eu-west-3:1:component/iris-kit/1.0.0/1"
    failed = {
        "componentArn": arn,
        "phaseName": "build",
        "stepName": "fetch",
        "action": "S3Download",
        "errorMessage": "NoSuchKey: not found",
    }
    error = told("failed", context={"imageStatus": "BUILDING", "componentFailure": failed}, lines=["something"])
    assert "step 'fetch' of the build phase of document 'kit' failed" in error.message
    assert "is not there" in error.message


def test_the_regions_where_distributing_failed_are_told() -> None:
    failures = [{"region": "us-east-1", "errorMessage": "ResourceLimitExceeded: too many copies"}]
    context = {
        "imageStatus": "DISTRIBUTING",
        "distributionFailure": {"errorMessage": "1 failed", "regionFailures": failures},
    }
    error = told("1 of 2 regions failed", context=context, phase="BUILDING", lines=log("tests test quick-test"))
    assert "failed in phase DISTRIBUTING. A quota of the account" in error.message
    assert "us-east-1: ResourceLimitExceeded" in error.detail
    assert "document" not in error.fields, "no document is to blame for what comes after the tests"


@pytest.mark.parametrize("lines", [[], log("kit build clone")])
def test_a_cancelled_build_says_so_and_nothing_else(lines: list[str]) -> None:
    error = told("Cancelled by user", status="CANCELLED", lines=lines)
    assert error.message.startswith("the build iris 1.2.3/1 was cancelled in phase BUILDING")
    assert "nothing is wrong with it" in error.message
    assert ("step 'clone'" in error.message) == bool(lines)


def test_an_image_that_is_gone_says_so() -> None:
    assert told(status="DELETED").message.startswith("the build iris 1.2.3/1 is deleted. Its images were removed")


# -- the step that failed ---------------------------------------------------------------------------------------------


def test_of_a_step_that_is_tried_again_the_last_try_is_shown() -> None:
    step = "kit build clone"
    lines = [f"ramp-cloud: begin {step}", "first", f"ramp-cloud: begin {step}", "second"]
    assert failing_step(lines).lines == ("second",)
    assert failing_step([*lines, f"ramp-cloud: done {step}"]).step is None


def test_a_step_that_may_fail_does_not_take_the_blame_of_a_later_one() -> None:
    lines = ["ramp-cloud: begin a build may-fail", "no", "ramp-cloud: begin b build must-not", "yes"]
    found = failing_step(lines)
    assert (found.document, found.step, found.lines) == ("b", "must-not", ("yes",))
    blamed = failing_step([*lines, "ramp-cloud: done b build must-not"], document="a")
    assert (blamed.step, blamed.lines) == ("may-fail", ("no",))


def test_a_script_that_is_only_shown_is_no_marker() -> None:
    assert failing_step(["+ echo 'ramp-cloud: begin kit build clone'"]).step is None


def test_the_last_forty_lines_are_shown() -> None:
    lines = ["ramp-cloud: begin kit build clone", *map(str, range(100))]
    assert failing_step(lines).lines == tuple(map(str, range(100 - TAIL, 100)))


WORDS = st.sampled_from(["kit", "data", "system"])


@given(st.lists(st.tuples(st.sampled_from(["begin", "done"]), WORDS, WORDS)), st.text())
@settings(deadline=None)  # other work on this machine is no defect
def test_whatever_a_log_holds_something_is_said(marks: list[tuple[str, str, str]], noise: str) -> None:
    lines = [line for mark in marks for line in (f"ramp-cloud: {mark[0]} {mark[1]} build {mark[2]}", noise)]
    error = told(TIMED_OUT, lines=lines)
    assert error.message.endswith(".")
    assert "./inv build-image" in error.message or "under image" in error.message
    if (step := failing_step(lines).step) is not None:
        assert f"step {step!r}" in error.message
