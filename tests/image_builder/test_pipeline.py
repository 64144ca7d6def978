"""A pipeline on the emulated AWS: started, followed through every kind of trouble, cancelled, found again."""

import re
from pathlib import Path
from typing import Any

import pytest
from botocore.stub import Stubber

from image_builder.acceptance import Acceptance, record
from image_builder.build_log import BuildLog, LogPlace
from image_builder.kit import folder_kit
from image_builder.kit_upload import upload_kit
from image_builder.pipeline import Builder, up_to_date
from image_builder.recipe import ImagePlan
from runner.aws.ec2 import Ec2
from runner.aws.session import AwsSession
from runner.aws.tags import ACCEPTED, CONTENT, IMAGE, REJECTED
from runner.errors import AwsError, BuildFailed, ImageError
from tests.image_builder.building import BUCKET, WORKS, Account, Notes, small_plan

MARKED = re.compile(r"ramp-cloud: (\w+ \w+ \w+ \w+)$")


@pytest.fixture
def plan(account: Account) -> ImagePlan:
    return small_plan(account.cloud)


@pytest.fixture
def builder(account: Account, plan: ImagePlan) -> Builder:
    return account.up(plan)


@pytest.fixture
def heard() -> Notes:
    return Notes()


def marks(lines: list[str]) -> list[str]:
    return [found[1] for line in lines if (found := MARKED.search(line))]


ALL_MARKS = ["begin system build update", "done system build update", "begin tests test kit", "done tests test kit"]


def test_a_build_is_followed_to_its_image(account: Account, builder: Builder, plan: ImagePlan, heard: Notes) -> None:
    account.arm("image-build-slow", phase="distributing", seconds=0.3)
    builder.check(plan)
    build = builder.start()
    built = builder.follow(build, heard)
    (image,) = Ec2(account.session).images(plan.name)
    assert built.images == {"eu-west-3": image.id}
    assert built.seconds is not None
    assert (image.state, image.tags[IMAGE], image.tags[CONTENT]) == ("available", "iris", plan.content)
    assert heard.phases[-2:] == ["DISTRIBUTING", "AVAILABLE"]
    assert marks(heard.lines) == ALL_MARKS
    assert sum("transitioned to AVAILABLE" in line for line in heard.lines) == 1
    assert heard.notes == []
    assert str(build) == f"iris {plan.version.replace('x', '0')}/1"


def test_a_build_that_is_over_is_found_again_with_its_whole_log(builder: Builder, plan: ImagePlan) -> None:
    assert builder.newest_build() is None
    first, second = Notes(), Notes()
    build = builder.start()
    built = builder.follow(build, first)
    found = builder.newest_build()
    assert found is not None
    assert (found.arn, found.log_place) == (build.arn, build.log_place)
    assert builder.follow(found, second).images == built.images
    assert second.lines == first.lines
    assert builder.follow(builder.start(), second).build.number == 2
    assert "number=2" in repr(builder.newest_build()) or builder.newest_build().number == 2  # type: ignore[union-attr]


def test_no_second_build_is_started_beside_one_that_is_under_way(account: Account, builder: Builder) -> None:
    account.arm("image-build-slow", phase="building", seconds=1.0)
    build = builder.start()
    with pytest.raises(ImageError, match=r"is under way already: iris .*/1, \w+; `\./inv follow-build` shows it"):
        builder.start()
    builder.cancel(build)


def test_an_older_pipeline_is_refused_before_anything_is_started(account: Account, builder: Builder) -> None:
    changed = small_plan(account.cloud, content="1" * 16)
    with pytest.raises(ImageError) as caught:
        builder.check(changed)
    assert re.fullmatch(
        r"the pipeline in AWS is not that of the config: it builds version 1\.\d+\.\d+, the config asks for "
        rf"{re.escape(changed.version)}; run `pulumi up` first, then build again",
        caught.value.message,
    )
    further = small_plan(account.cloud, regions=("eu-west-3", "us-east-1"))
    with pytest.raises(ImageError, match="its images go to eu-west-3, they should go to eu-west-3, us-east-1"):
        builder.check(further)
    account.up(changed).check(changed)


def test_images_that_would_bear_another_content_are_refused(account: Account, plan: ImagePlan) -> None:
    old = small_plan(account.cloud, ami_tags={IMAGE: "iris", CONTENT: "f" * 16})
    with pytest.raises(
        ImageError, match="it tags images with content ffffffffffffffff, the config's is 0000000000000000"
    ):
        account.up(old).check(plan)


def test_a_pipeline_that_is_gone_names_pulumi(account: Account, builder: Builder, plan: ImagePlan) -> None:
    arn = "arn:aws:imagebuilder:eu-west-3:123456789012:image-pipeline/gone"
    with pytest.raises(ImageError, match=r"image-pipeline/gone of the stack's outputs is not in AWS; run `pulumi up`"):
        account.builder(arn).check(plan)


def test_an_image_of_several_regions_is_told_with_each(account: Account, heard: Notes) -> None:
    plan = small_plan(account.cloud, regions=("eu-west-3", "us-east-1"))
    builder = account.up(plan)
    builder.check(plan)
    built = builder.follow(builder.start(), heard)
    there = Ec2(account.session.in_region("us-east-1")).images("iris")
    assert set(built.images) == {"eu-west-3", "us-east-1"}
    assert built.images["us-east-1"] == there[0].id


# -- nothing to build -------------------------------------------------------------------------------------------------


def test_what_is_built_already_is_found_unless_a_newer_one_hides_it(
    account: Account, builder: Builder, plan: ImagePlan, heard: Notes
) -> None:
    ec2 = Ec2(account.session)
    who = ec2.account()
    assert up_to_date(plan, ec2.images("iris"), account=who) is None
    first = builder.follow(builder.start(), heard).images["eu-west-3"]
    found = up_to_date(plan, ec2.images("iris"), account=who)
    assert found is not None
    assert found.id == first
    changed = small_plan(account.cloud, content="1" * 16)
    assert up_to_date(changed, ec2.images("iris"), account=who) is None
    ec2.tag([first], {ACCEPTED: REJECTED})
    assert up_to_date(plan, ec2.images("iris"), account=who) is None
    ec2.tag([first], {ACCEPTED: "2026-11-23T10:15:30Z"})
    newer = account.up(changed)
    newer.follow(newer.start(), heard)
    assert up_to_date(plan, ec2.images("iris"), account=who) is None, "events are launched from the newer one"


# -- the kit ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def kit_plan(account: Account, tmp_path: Path) -> ImagePlan:
    folder = tmp_path / "kit"
    folder.mkdir()
    (folder / "problem.py").write_text("# a kit")
    return small_plan(account.cloud, kit=folder_kit(folder))


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where temporary files come."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_a_kit_that_is_a_folder_is_brought_once(account: Account, kit_plan: ImagePlan, scratch: Path) -> None:
    notes: list[str] = []
    assert upload_kit(account.session, kit_plan, BUCKET, notes.append)
    assert not upload_kit(account.session, kit_plan, BUCKET, notes.append)
    assert len(notes) == 1
    assert f"s3://{BUCKET}/{kit_plan.kit.key}" in notes[0]  # type: ignore[union-attr]
    body = account.session.call("s3", "get_object", Bucket=BUCKET, Key=kit_plan.kit.key)["Body"].read()  # type: ignore[union-attr]
    archive = kit_plan.kit.archive()  # type: ignore[union-attr]
    assert body == archive.read_bytes()
    archive.unlink()
    assert list(scratch.iterdir()) == [], "no archive is left here"


def test_a_kit_that_is_too_large_is_refused_before_it_is_sent(
    account: Account, kit_plan: ImagePlan, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("image_builder.kit_upload._MOST_BYTES", 10)
    with pytest.raises(ImageError, match=r"too many to upload; leave the data out and have them fetched: data: s3"):
        upload_kit(account.session, kit_plan, BUCKET, lambda _text: None)
    assert list(scratch.iterdir()) == []


def test_without_the_right_to_look_the_kit_is_brought_all_the_same(account: Account, kit_plan: ImagePlan) -> None:
    account.arm("call-refused", action="HeadObject", code="AccessDenied", status=403, times=1)
    assert upload_kit(account.session, kit_plan, BUCKET, lambda _text: None)


def test_a_kit_without_a_bucket_is_refused(account: Account, plan: ImagePlan, kit_plan: ImagePlan) -> None:
    with pytest.raises(ImageError, match=r"through a bucket, and the stack's outputs name none; run `pulumi up`"):
        upload_kit(account.session, kit_plan, None, lambda _text: None)
    with pytest.raises(AwsError, match=r"NoSuchBucket.*`pulumi up`, which makes the bucket"):
        upload_kit(account.session, kit_plan, "no-such-bucket", lambda _text: None)
    assert not upload_kit(account.session, plan, None, lambda _text: None), "a kit from git needs none"


# -- trouble on the way -----------------------------------------------------------------------------------------------


def test_a_log_that_comes_late_is_told_all_the_same(account: Account, builder: Builder, heard: Notes) -> None:
    account.arm("build-log-late", seconds=0.5)
    builder = account.builder(builder.arn, late=10.0)
    account.arm("image-build-slow", phase="distributing", seconds=0.8)
    builder.follow(builder.start(), heard)
    assert marks(heard.lines) == ALL_MARKS


def test_a_log_that_never_comes_keeps_no_image_back(account: Account, builder: Builder, heard: Notes) -> None:
    account.arm("build-log-late")
    assert builder.follow(builder.start(), heard).images
    assert (heard.lines, heard.notes) == ([], [])


def test_a_log_that_may_not_be_read_is_noted_once(account: Account, builder: Builder, heard: Notes) -> None:
    account.arm("call-refused", action="GetLogEvents", code="AccessDeniedException", message="no right")
    account.arm("image-build-slow", phase="distributing", seconds=0.3)
    assert builder.follow(builder.start(), heard).images
    (note,) = heard.notes
    assert note.startswith("the log cannot be read: these credentials may not call get_log_events")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("CallRateLimitExceededException", 429),
        ("ServiceUnavailableException", 503),
        ("ResourceNotFoundException", 404),  # AWS does not know yet what it has just started
    ],
)
def test_throttling_and_faults_of_aws_are_waited_out(
    account: Account, builder: Builder, heard: Notes, code: str, status: int
) -> None:
    account.arm("image-build-slow", phase="building", seconds=0.5)
    build = builder.start()
    account.arm("call-refused", action="GetImage", code=code, status=status, times=3)
    account.arm("call-refused", action="GetLogEvents", code="ThrottlingException", times=3)
    assert builder.follow(build, heard).images
    assert marks(heard.lines) == ALL_MARKS
    assert len(heard.notes) == 1
    assert heard.notes[0].endswith("; trying on")


def test_aws_away_for_long_ends_following_and_says_how_to_go_on(
    account: Account, builder: Builder, heard: Notes
) -> None:
    build = builder.start()
    account.arm("call-refused", action="GetImage", code="InternalFailure", status=500)
    impatient = account.builder(builder.arn, away=0.3)
    with pytest.raises(AwsError) as caught:
        impatient.follow(build, heard)
    assert caught.value.message.endswith(
        "it is safe to repeat; the build itself goes on in AWS; `./inv follow-build` shows it again"
    )
    account.cloud.aws.disarm()
    assert builder.follow(build, heard).images


def test_missing_rights_end_following_at_once(account: Account, builder: Builder, heard: Notes) -> None:
    build = builder.start()
    account.arm("call-refused", action="GetImage", code="ForbiddenException", message="no right", status=403)
    with pytest.raises(AwsError, match=r"may not call get_image .*the build itself goes on"):
        builder.follow(build, heard)


class _Interrupts(Notes):
    def phase(self, name: str, seconds: float) -> None:
        raise KeyboardInterrupt


def test_ctrl_c_passes_and_the_build_can_then_be_cancelled(account: Account, builder: Builder, heard: Notes) -> None:
    account.arm("image-build-slow", phase="building", seconds=30.0)
    build = builder.start()
    with pytest.raises(KeyboardInterrupt):
        builder.follow(build, _Interrupts())
    builder.cancel(build)
    with pytest.raises(BuildFailed) as caught:
        builder.follow(build, heard)
    assert caught.value.message.startswith(f"the build {build} was cancelled in phase BUILDING")
    assert "nothing is wrong with it" in caught.value.message
    assert account.cloud.left() == []
    builder.cancel(build)


def test_cancelling_what_has_ended_is_fine_and_what_is_not_there_is_told(builder: Builder, heard: Notes) -> None:
    build = builder.start()
    builder.follow(build, heard)
    builder.cancel(build)


# -- how builds fail --------------------------------------------------------------------------------------------------

FAILURES = [
    ("building", "no-capacity", "AWS has no instance of the build's type in that zone now. Wait some minutes"),
    ("building", "profile-invalid", "AWS does not know the instance profile of the build instance."),
    ("building", "ssm-agent", "never reported to AWS Systems Manager"),
    ("building", "internal-error", "AWS had a fault of its own. Run `./inv build-image` again."),
    ("building", "image-fails", "AWS could not make an image of the build instance. Run `./inv build-image` again"),
    ("building", "cancelled", "Somebody cancelled it here, in the console or by a call of the API"),
    ("building", "step-fails", "step 'update' of the build phase of document 'system' failed. A command of it failed."),
    ("building", "step-hangs", "step 'update' of the build phase of document 'system' failed. The step took longer"),
    ("testing", "no-capacity", "AWS has no instance of the build's type in that zone now. Wait some minutes"),
    ("testing", "profile-invalid", "AWS does not know the instance profile of the build instance."),
    ("testing", "ssm-agent", "never reported to AWS Systems Manager"),
    ("testing", "internal-error", "AWS had a fault of its own. Run `./inv build-image` again."),
    ("testing", "cancelled", "Somebody cancelled it here, in the console or by a call of the API"),
    ("testing", "step-fails", "step 'kit' of the test phase of document 'tests' failed. The new image was made, but"),
    ("testing", "step-hangs", "step 'kit' of the test phase of document 'tests' failed. The step took longer"),
    ("distributing", "name-duplicate", "An image of that very name is there already. Run `./inv build-image` again"),
    ("distributing", "quota", "A quota of the account is reached: of images, snapshots, or copies under way."),
    ("distributing", "internal-error", "AWS had a fault of its own. Run `./inv build-image` again."),
    ("distributing", "cancelled", "Somebody cancelled it here, in the console or by a call of the API"),
]


@pytest.mark.parametrize(("phase", "how", "says"), FAILURES)
def test_each_way_to_fail_names_phase_step_and_what_to_try(
    account: Account, builder: Builder, heard: Notes, phase: str, how: str, says: str
) -> None:
    account.arm("image-build-fails", phase=phase, how=how)
    build = builder.start()
    with pytest.raises(BuildFailed) as caught:
        builder.follow(build, heard)
    error = caught.value
    verb = "was cancelled" if how == "cancelled" else "failed"
    assert error.message.startswith(f"the build {build} {verb} in phase {phase.upper()}")
    assert says in error.message
    assert error.fields["phase"] == phase.upper()
    assert f"The whole log: {build.log_place}." in error.detail
    if how in ("step-fails", "step-hangs"):
        assert f"The last lines of step '{error.fields['step']}':\n  rehearsal: " in error.detail
        assert f"this step {'fails' if how == 'step-fails' else 'hangs'}" in error.detail
    else:
        assert "AWS says:" in error.detail or how == "cancelled"
    assert account.cloud.left() == []


def test_of_a_step_that_really_fails_the_last_lines_are_shown(account: Account, heard: Notes) -> None:
    script = "for number in $(seq 100); do echo line $number; done; ls /no/such/folder"
    builder = account.up(small_plan(account.cloud, WORKS | {"kit": {"build": {"first": "true", "fetch": script}}}))
    with pytest.raises(BuildFailed) as caught:
        builder.follow(builder.start(), heard)
    assert caught.value.fields == {"phase": "BUILDING", "document": "kit", "step": "fetch"}
    shown = [line for line in caught.value.detail.splitlines() if line.startswith("  line ")]
    assert shown[-1] == "  line 100"
    assert "No such file or directory" in caught.value.detail
    assert "line 50\n" not in caught.value.detail


def test_why_it_failed_is_told_though_the_workflows_may_not_be_asked(
    account: Account, builder: Builder, heard: Notes
) -> None:
    account.arm("image-build-fails", how="step-fails")
    account.arm("call-refused", action="ListWorkflowExecutions", code="ForbiddenException", status=403)
    with pytest.raises(BuildFailed, match="step 'update' of the build phase of document 'system' failed"):
        builder.follow(builder.start(), heard)
    assert heard.notes[0].startswith("why exactly it failed could not be asked")


# -- the log ----------------------------------------------------------------------------------------------------------


def test_a_log_is_read_to_its_end_through_empty_pages_and_never_twice() -> None:
    session = AwsSession(region_name="eu-west-3", access_key_id="AKIA", secret_access_key="no secret")  # noqa: S106 - of nobody
    log = BuildLog(session, LogPlace(group="/aws/imagebuilder/iris", stream="1.2.3/1", region="eu-west-3"))
    usual: dict[str, Any] = {
        "logGroupName": "/aws/imagebuilder/iris",
        "logStreamName": "1.2.3/1",
        "startFromHead": True,
        "limit": 1000,
    }

    def page(token: str | None, then: str, *messages: str) -> None:
        expected = usual | ({"nextToken": token} if token else {})
        answer: Any = {"events": [{"message": text} for text in messages], "nextForwardToken": then}
        stub.add_response("get_log_events", answer, expected)

    with Stubber(session.client("logs", repeats=False)) as stub:
        stub.add_client_error("get_log_events", "ResourceNotFoundException")
        assert list(log.fresh()) == []
        page(None, "a", "one", "two\nthree")
        page("a", "b")
        page("b", "c", "four", " ")
        page("c", "c")
        assert list(log.fresh()) == ["one", "two", "three", "four", " "]
        page("c", "c")
        assert list(log.fresh()) == []
        page("c", "d", "late")
        page("d", "d")
        assert list(log.fresh()) == ["late"]
        stub.assert_no_pending_responses()


def test_the_verdict_on_an_image_holds_for_its_copies(account: Account, heard: Notes, tmp_path: Path) -> None:
    plan = small_plan(account.cloud, regions=("eu-west-3", "us-east-1"))
    builder = account.up(plan)
    built = builder.follow(builder.start(), heard)
    here = built.images["eu-west-3"]
    found = Acceptance(image=here, ok=True, reason="", versions={"python": "3.12.3"}, seconds=1.0)

    record(account.session, found, tmp_path, copies=built.images)

    for region, image in built.images.items():
        (seen,) = Ec2(account.session.in_region(region)).images("iris")
        assert seen.id == image
        assert seen.accepted
        assert seen.tags["ramp-cloud:versions"] == "python 3.12.3"
