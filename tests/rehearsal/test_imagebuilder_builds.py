"""Builds of the emulated Image Builder: real documents on real machines, and every way to fail."""

import itertools
import re
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import boto3
import pytest

from runner.rehearsal.client import Rehearsal, RehearsalFailed
from tests.rehearsal.bench import PROFILE, Bench, document, until
from tests.rehearsal.conftest import CREDENTIALS, World, run
from tests.rehearsal.test_calls import code_of

COMPONENT = "arn:aws:imagebuilder:eu-west-3:123456789012:component"
GROUP = "/aws/imagebuilder/iris"


@pytest.fixture
def make_bench(make_world: Callable[..., World], clients: Callable[[str], Any]) -> Callable[..., Bench]:
    def make(**settings: Any) -> Bench:
        return Bench.of(make_world(**settings), clients)

    return make


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()


def amis(bench: Bench) -> list[dict[str, Any]]:
    """Return the AMIs that builds made."""
    made = [{"Name": "tag:CreatedBy", "Values": ["EC2 Image Builder"]}]
    return list(bench.world.ec2.describe_images(Owners=["self"], Filters=made)["Images"])


def on(bench: Bench) -> list[str]:
    """Return the instances of builds that are not ended or ending."""
    return [each["id"] for each in bench.world.rehearsal.state(processes=False)["instances"] if is_on(each)]


def is_on(instance: dict[str, Any]) -> bool:
    return instance["state"] in {"pending", "running"}


def tags_of(described: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in described["Tags"]}


def wait_for_line(bench: Bench, text: str) -> None:
    def look() -> list[str]:
        groups = bench.logs.describe_log_groups()["logGroups"]
        return bench.log() if groups else []

    until(look, lambda lines: any(text in line for line in lines))


# -- what succeeds ---------------------------------------------------------------------------------------------------


def test_an_image_is_what_its_documents_made_of_a_machine(bench: Bench) -> None:
    install = document(
        'echo "as $(whoami) in $RAMP_CLOUD_ROOT"\necho installed > "$RAMP_CLOUD_HOME/marker"\n'
        'mkdir -p "$RAMP_CLOUD_ROOT/etc"; echo set > "$RAMP_CLOUD_ROOT/etc/marker"',
        validate='grep installed "$RAMP_CLOUD_HOME/marker"',
        test='grep set "$RAMP_CLOUD_ROOT/etc/marker"',
    )
    infrastructure = bench.infrastructure(
        "own", resourceTags={"team": "ramp"}, subnetId=bench.world.subnets["eu-west-3b"]
    )
    image = bench.build(install, document("echo second"), infrastructureConfigurationArn=infrastructure)
    assert image["state"] == {"status": "AVAILABLE"}
    (ami,) = image["outputResources"]["amis"]
    assert re.fullmatch(r"iris \d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3}Z", ami["name"])
    assert (ami["region"], ami["accountId"]) == ("eu-west-3", "123456789012")
    (made,) = amis(bench)
    assert (made["ImageId"], made["Name"], made["State"]) == (ami["image"], ami["name"], "available")
    assert tags_of(made)["made-by"] == "bench"
    assert made["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"].startswith("snap-")

    built, tested = [bench.world.describe(each["id"]) for each in bench.world.rehearsal.state()["instances"]]
    assert built["ImageId"] == bench.world.image
    assert tested["ImageId"] == made["ImageId"]
    for instance, purpose in ((built, "Build"), (tested, "Test")):
        assert tags_of(instance) | {"team": "ramp"} == tags_of(instance)
        assert tags_of(instance)["CreatedBy"] == "EC2 Image Builder"
        assert tags_of(instance)["Name"] == f"{purpose} instance for iris"
        assert instance["Placement"]["AvailabilityZone"] == "eu-west-3b"
        bench.world.wait_for(instance["InstanceId"], "terminated")

    lines = bench.log()
    order = [line for line in lines if line.startswith(("Image trans", "Document", "Phase", "Step In", "Launched"))]
    assert [re.sub(r" for Image ARN.*|arn:\S+/|\(inst.*", "", line).strip() for line in order] == [
        "Image transitioned to BUILDING state",
        "Launched instance",
        *("Document 1", "Phase build", "Step Inbuild", "Phase validate", "Step Invalidate"),
        *("Document 1", "Phase build", "Step Inbuild"),
        "Image transitioned to TESTING state",
        "Launched instance",
        *("Document 1", "Phase test", "Step Intest"),
        "Image transitioned to DISTRIBUTING state",
        "Image transitioned to AVAILABLE state",
    ]
    assert any(line.startswith("Stdout: as root in /") for line in lines)
    assert "Stdout: set" in lines

    (own,) = bench.world.launch(ImageId=ami["image"])
    with bench.world.connect(own) as ssh:
        assert run(ssh, "cat marker")[1] == b"installed\n"
    pipeline = bench.builder.list_image_pipelines()["imagePipelineList"][0]
    assert (pipeline["lastRunStatus"], pipeline["consecutiveFailures"]) == ("AVAILABLE", 0)


def test_documents_reach_the_emulated_aws_as_the_machine(bench: Bench) -> None:
    """A secret is fetched by the role of the instance; the region is what the metadata service says, as on EC2."""
    bench.ssm.put_parameter(Name="/iris/password", Value="hunter2", Type="SecureString")
    program = (
        "import os, urllib.request as web, boto3\n"
        "base = os.environ['AWS_EC2_METADATA_SERVICE_ENDPOINT'] + '/latest/'\n"
        "def ask(path, **given):\n"
        "    return web.urlopen(web.Request(base + path, **given)).read().decode()\n"
        "token = ask('api/token', method='PUT', headers={'X-aws-ec2-metadata-token-ttl-seconds': '60'})\n"
        "region = ask('meta-data/placement/region', headers={'X-aws-ec2-metadata-token': token})\n"
        "print('region', region, 'preset', os.environ.get('AWS_REGION'), os.environ.get('AWS_DEFAULT_REGION'))\n"
        "found = boto3.client('ssm', region_name=region).get_parameter(Name='/iris/password', WithDecryption=True)\n"
        "print(len(found['Parameter']['Value']))\n"
    )
    script = f"{sys.executable} - <<'EOF'\n{program}EOF"
    image = bench.build(document(script))
    assert image["state"]["status"] == "AVAILABLE", bench.log()
    assert "Stdout: region eu-west-3 preset None None" in bench.log()
    assert "Stdout: 7" in bench.log()


def test_files_of_documents_stay_on_the_machine(bench: Bench) -> None:
    bench.s3.create_bucket(Bucket="kits", CreateBucketConfiguration={"LocationConstraint": "eu-west-3"})
    bench.s3.put_object(Bucket="kits", Key="kits/abc.tar.gz", Body=b"a kit")
    component = bench.component(
        "schemaVersion: 1.0\nparameters:\n  - key: {type: string}\nphases:\n  - name: build\n    steps:\n"
        "      - name: Get\n        action: S3Download\n"
        "        inputs: [{source: 's3://kits/{{ key }}', destination: /var/tmp/kit.tar.gz}]\n"
        "      - {name: Note, action: CreateFile, inputs: [{path: /home/participant/note, content: mine}]}\n"
        "      - name: Look\n        action: ExecuteBash\n        inputs:\n          commands:\n"
        '            - cat "$RAMP_CLOUD_ROOT/var/tmp/kit.tar.gz"; echo; cat "$RAMP_CLOUD_HOME/note"\n'
    )
    given = {"componentArn": component, "parameters": [{"name": "key", "value": ["kits/abc.tar.gz"]}]}
    image = bench.wait(bench.start(bench.pipeline(bench.recipe(given))))
    assert image["state"]["status"] == "AVAILABLE", bench.log()
    assert {"Stdout: a kit", "Stdout: mine"} <= set(bench.log())


def test_the_parent_may_stand_in_a_parameter_or_be_an_image(bench: Bench) -> None:
    bench.ssm.put_parameter(Name="/base/ami", Value=bench.world.image, Type="String", DataType="aws:ec2:image")
    first = bench.recipe(bench.component(document("echo 1 > $RAMP_CLOUD_HOME/one")), parentImage="ssm:/base/ami")
    image = bench.wait(bench.start(bench.pipeline(first)))
    assert image["state"]["status"] == "AVAILABLE"
    assert f"Resolved Image Recipe parent image ssm:/base/ami to AMI {bench.world.image}." in bench.log()
    look = bench.component(document("cat $RAMP_CLOUD_HOME/one"), "look")
    second = bench.recipe(look, name="child", parentImage=image["arn"])
    assert bench.wait(bench.start(bench.pipeline(second, "child")))["state"]["status"] == "AVAILABLE"
    delete = bench.builder.delete_image
    assert code_of(lambda: delete(imageBuildVersionArn=image["arn"])) == "ResourceDependencyException"


def test_an_image_goes_to_other_regions_and_its_id_into_parameters(bench: Bench) -> None:
    name = {"name": "iris {{ imagebuilder:buildDate }}", "amiTags": {"ramp-cloud:image": "iris"}}
    wanted = [{"region": each, "amiDistributionConfiguration": name} for each in ("eu-west-3", "us-east-1")]
    wanted[0]["ssmParameterConfigurations"] = [{"parameterName": "/iris/ami", "dataType": "aws:ec2:image"}]
    distribution = bench.distribution(distributions=wanted)
    image = bench.build(document(), distributionConfigurationArn=distribution)
    made = {ami["region"]: ami["image"] for ami in image["outputResources"]["amis"]}
    assert list(made) == ["eu-west-3", "us-east-1"]
    assert bench.ssm.get_parameter(Name="/iris/ami")["Parameter"]["Value"] == made["eu-west-3"]
    elsewhere = boto3.client("ec2", endpoint_url=bench.world.rehearsal.url, region_name="us-east-1", **CREDENTIALS)
    (copy,) = elsewhere.describe_images(Filters=[{"Name": "tag:ramp-cloud:image", "Values": ["iris"]}])["Images"]
    assert copy["ImageId"] == made["us-east-1"]
    assert copy["Name"] == image["outputResources"]["amis"][0]["name"]
    elsewhere.deregister_image(ImageId=copy["ImageId"])
    elsewhere.delete_snapshot(SnapshotId=copy["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"])
    assert elsewhere.describe_images(Owners=["self"])["Images"] == []
    assert bench.state_of(made["eu-west-3"], "eu-west-3") == "available"


def test_without_tests_there_is_no_test_instance(bench: Bench) -> None:
    image = bench.build(document(test="false"), imageTestsConfiguration={"imageTestsEnabled": False})
    assert image["state"]["status"] == "AVAILABLE"
    assert len(bench.world.rehearsal.state()["instances"]) == 1


def test_builds_of_a_recipe_are_counted_and_a_log_group_may_be_named(bench: Bench) -> None:
    pipeline = bench.pipeline(
        bench.recipe(bench.component()), loggingConfiguration={"imageLogGroupName": "/aws/imagebuilder/mine"}
    )
    first, second = (bench.wait(bench.start(pipeline)) for _ in range(2))
    assert [image["version"] for image in (first, second)] == ["1.0.0/1", "1.0.0/2"]
    assert "Stdout: hello" in bench.log("/aws/imagebuilder/mine", "1.0.0/2")
    found = bench.builder.get_image(imageBuildVersionArn=first["arn"][:-2])["image"]
    assert found["arn"] == second["arn"], "without a build number it is the newest"
    bench.builder.delete_image(imageBuildVersionArn=second["arn"])
    assert bench.start(pipeline).endswith("/3"), "numbers are not used again"


def test_another_type_is_tried_when_the_first_has_no_capacity(bench: Bench) -> None:
    bench.world.rehearsal.arm({"kind": "no-capacity", "instance_type": "c5.large"})
    infrastructure = bench.infrastructure("own", instanceTypes=["c5.large", "m5.large"])
    image = bench.build(document(), infrastructureConfigurationArn=infrastructure)
    assert image["state"]["status"] == "AVAILABLE"
    assert {each["type"] for each in bench.world.rehearsal.state()["instances"]} == {"m5.large"}


# -- what fails by itself --------------------------------------------------------------------------------------------


def test_a_step_that_fails_fails_the_build_in_awss_words(bench: Bench) -> None:
    image = bench.build(document("echo fine"), document("echo before\necho why >&2\nexit 3", timeoutSeconds=60))
    state = image["state"]
    assert state["status"] == "FAILED"
    assert re.fullmatch(
        r"Workflow Execution ID: 'wf-[0-9a-f-]{36}' failed with reason: SSM execution '[0-9a-f-]{36}' failed with "
        rf"status = 'Failed' in state = 'BUILDING' and failure message = 'Document {COMPONENT}/doc1/1\.0\.0/1 failed!'",
        state["reason"],
    )
    failure = state["failureContext"]
    assert failure["failedStep"] == "ApplyBuildComponents"
    assert failure["componentFailure"] == {
        "componentArn": f"{COMPONENT}/doc1/1.0.0/1",
        "phaseName": "build",
        "stepName": "Inbuild",
        "action": "ExecuteBash",
        "errorMessage": "Command execution failed: exit status 3",
    }
    lines = bench.log()
    assert "Stdout: before" in lines
    assert lines[-1] == f"Reason: {state['reason']}"
    (workflow,) = bench.builder.list_workflow_executions(imageBuildVersionArn=image["arn"])["workflowExecutions"]
    assert (workflow["status"], workflow["totalStepsFailed"], workflow["totalStepsSkipped"]) == ("FAILED", 1, 2)
    assert amis(bench) == []
    assert on(bench) == []


def test_a_step_that_takes_too_long_fails(bench: Bench) -> None:
    image = bench.build(document("sleep 1000", timeoutSeconds=1))
    failure = image["state"]["failureContext"]["componentFailure"]
    assert failure["errorMessage"] == "the step exceeded its time limit of 1 seconds"


def test_what_does_not_pass_its_test_is_taken_back(bench: Bench) -> None:
    image = bench.build(document(test="exit 1"))
    assert "in state = 'TESTING'" in image["state"]["reason"]
    assert image["state"]["failureContext"]["imageStatus"] == "TESTING"
    assert amis(bench) == []
    snapshots = bench.world.ec2.describe_snapshots(Filters=[{"Name": "tag:CreatedBy", "Values": ["*"]}])["Snapshots"]
    assert snapshots == []
    assert on(bench) == []


def test_an_instance_of_a_failed_build_may_stay(bench: Bench) -> None:
    infrastructure = bench.infrastructure("own", terminateInstanceOnFailure=False)
    bench.build(document("exit 1"), infrastructureConfigurationArn=infrastructure)
    assert len(on(bench)) == 1


def test_two_images_cannot_have_one_name(bench: Bench) -> None:
    once = [{"region": "eu-west-3", "amiDistributionConfiguration": {"name": "iris"}}]
    pipeline = bench.pipeline(
        bench.recipe(bench.component()), distributionConfigurationArn=bench.distribution(distributions=once)
    )
    assert bench.wait(bench.start(pipeline))["state"]["status"] == "AVAILABLE"
    state = bench.wait(bench.start(pipeline))["state"]
    assert "InvalidAMIName.Duplicate" in state["reason"]
    assert state["failureContext"]["imageStatus"] == "DISTRIBUTING"
    assert state["failureContext"]["distributionFailure"]["regionFailures"][0]["region"] == "eu-west-3"
    assert [ami["Name"] for ami in amis(bench)] == ["iris"]


def test_an_instance_that_is_killed_fails_the_build(bench: Bench) -> None:
    arn = bench.start(bench.pipeline(bench.recipe(bench.component(document("echo up; sleep 1000")))))
    wait_for_line(bench, "Stdout: up")
    (instance,) = on(bench)
    bench.world.rehearsal.act(instance, "kill")
    image = bench.wait(arn)
    assert image["state"]["status"] == "FAILED"
    assert f"The instance {instance} is" in image["state"]["reason"]


def test_a_parent_or_profile_that_has_gone_fails_the_build(bench: Bench) -> None:
    bench.ssm.put_parameter(Name="/base/ami", Value=bench.world.image, Type="String")
    pipeline = bench.pipeline(bench.recipe(bench.component(), parentImage="ssm:/base/ami"))
    bench.ssm.delete_parameter(Name="/base/ami")
    assert "'/base/ami' does not exist" in bench.wait(bench.start(pipeline))["state"]["reason"]
    bench.ssm.put_parameter(Name="/base/ami", Value="ami-00000000000000000", Type="String")
    assert "InvalidAMIID.NotFound" in bench.wait(bench.start(pipeline))["state"]["reason"]
    bench.ssm.put_parameter(Name="/base/ami", Value=bench.world.image, Type="String", Overwrite=True)
    boto3.client(
        "iam", endpoint_url=bench.world.rehearsal.url, region_name="eu-west-3", **CREDENTIALS
    ).delete_instance_profile(InstanceProfileName=PROFILE)
    reason = bench.wait(bench.start(pipeline))["state"]["reason"]
    assert f"Value ({PROFILE}) for parameter iamInstanceProfile is invalid" in reason
    pipeline_values = bench.builder.list_image_pipelines()["imagePipelineList"][0]
    assert pipeline_values["consecutiveFailures"] == 3


@pytest.mark.parametrize("state", ["pending", "running"])
def test_an_instance_that_never_boots_has_no_agent(bench: Bench, state: str) -> None:
    bench.world.rehearsal.arm({"kind": "never-boots", "state": state})
    reason = bench.build(document())["state"]["reason"]
    assert "status = 'TimedOut' in state = 'BUILDING' and failure message = 'SSM Agent verification failed'" in reason


# -- cancelling ------------------------------------------------------------------------------------------------------


def test_a_build_is_cancelled(bench: Bench) -> None:
    arn = bench.start(bench.pipeline(bench.recipe(bench.component(document("echo up; sleep 1000")))))
    wait_for_line(bench, "Stdout: up")
    delete = bench.builder.delete_image
    assert code_of(lambda: delete(imageBuildVersionArn=arn)) == "ResourceDependencyException"
    bench.builder.cancel_image_creation(imageBuildVersionArn=arn, clientToken="c")
    assert bench.wait(arn)["state"] == {"status": "CANCELLED"}
    assert on(bench) == []
    assert bench.world.rehearsal.processes(bench.world.rehearsal.state()["instances"][0]["id"]) == []
    delete(imageBuildVersionArn=arn)


def test_what_was_made_before_it_was_cancelled_stays(bench: Bench) -> None:
    arn = bench.start(bench.pipeline(bench.recipe(bench.component(document(test="echo up; sleep 1000")))))
    wait_for_line(bench, "Stdout: up")
    bench.builder.cancel_image_creation(imageBuildVersionArn=arn, clientToken="c")
    bench.wait(arn)
    (ami,) = amis(bench)
    assert ami["Name"].startswith("iris build 1.0.0-1 ")


def test_a_reset_ends_builds(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    bench.start(bench.pipeline(bench.recipe(bench.component(document("echo up; sleep 1000")))))
    wait_for_line(bench, "Stdout: up")
    bench = make_bench()
    assert bench.builder.list_images()["imageVersionList"] == []
    assert bench.logs.describe_log_groups()["logGroups"] == []
    assert bench.build(document())["version"] == "1.0.0/1"


def test_a_build_that_outlives_its_server_has_failed(tmp_path: Path) -> None:
    def client(server: Rehearsal, service: str) -> Any:
        return boto3.client(service, endpoint_url=server.url, region_name="eu-west-3", **CREDENTIALS)

    with Rehearsal(tmp_path, {"lasting": True, "user": "participant"}) as server:
        image = server.seed(images=[{"name": "base"}])["images"]["base"]
        world = World(rehearsal=server, ec2=client(server, "ec2"), key_file=tmp_path, image=image, group="", subnets={})
        bench = Bench.of(world, lambda service: client(server, service))
        good = bench.wait(bench.start(bench.pipeline(bench.recipe(bench.component()))))["arn"]
        hanging = bench.component(document(test="echo up; sleep 1000"), "hanging")
        bad = bench.start(bench.pipeline(bench.recipe(hanging, name="bad"), "bad"))
        bench.wait(bad, "TESTING")
        until(lambda: bench.log("/aws/imagebuilder/bad"), lambda lines: "Stdout: up" in lines)
    with Rehearsal(tmp_path, {"lasting": True, "user": "participant"}) as server:
        builder = client(server, "imagebuilder")
        images = builder.list_image_build_versions()["imageSummaryList"]
        assert {image["arn"]: image["state"]["status"] for image in images} == {good: "AVAILABLE", bad: "FAILED"}
        assert images[1]["state"]["reason"] == "The rehearsal ended before the build did."
        amis = client(server, "ec2").describe_images(Owners=["self"])["Images"]
        assert {ami["ImageId"] for ami in amis} == {image, images[0]["outputResources"]["amis"][0]["image"]}
        assert builder.list_image_pipelines()["imagePipelineList"][0]["lastRunStatus"] == "AVAILABLE"


# -- faults ----------------------------------------------------------------------------------------------------------

TESTED = document("true", test="true")


@pytest.mark.parametrize(
    ("phase", "how", "says"),
    [
        ("building", "no-capacity", "InsufficientInstanceCapacity"),
        ("building", "profile-invalid", f"Value ({PROFILE}) for parameter iamInstanceProfile.name is invalid"),
        (
            "building",
            "ssm-agent",
            "'TimedOut' in state = 'BUILDING' and failure message = 'SSM Agent verification failed'",
        ),
        (
            "building",
            "step-fails",
            "Document arn:aws:imagebuilder:eu-west-3:123456789012:component/doc0/1.0.0/1 failed!",
        ),
        ("building", "step-hangs", "in state = 'BUILDING'"),
        ("building", "internal-error", "An internal error has occurred"),
        ("building", "image-fails", "not 'available'"),
        ("testing", "no-capacity", "InsufficientInstanceCapacity"),
        ("testing", "profile-invalid", "iamInstanceProfile.name is invalid"),
        ("testing", "ssm-agent", "'TimedOut' in state = 'TESTING'"),
        ("testing", "step-fails", "in state = 'TESTING'"),
        ("testing", "step-hangs", "in state = 'TESTING'"),
        ("testing", "internal-error", "An internal error has occurred"),
        ("distributing", "name-duplicate", "InvalidAMIName.Duplicate"),
        ("distributing", "quota", "ResourceLimitExceeded"),
        ("distributing", "internal-error", "An internal error has occurred"),
    ],
)
def test_a_build_fails_where_and_how_it_is_told(bench: Bench, phase: str, how: str, says: str) -> None:
    bench.world.rehearsal.arm({"kind": "image-build-fails", "phase": phase, "how": how, "times": 1})
    pipeline = bench.pipeline(bench.recipe(bench.component(TESTED, "doc0")))
    state = bench.wait(bench.start(pipeline))["state"]
    assert state["status"] == "FAILED"
    assert says in state["reason"]
    assert state["failureContext"]["imageStatus"] == phase.upper()
    assert amis(bench) == []
    assert on(bench) == []
    if (phase, how) == ("building", "no-capacity"):
        assert bench.wait(bench.start(pipeline))["state"]["status"] == "AVAILABLE", "once was enough"


@pytest.mark.parametrize("phase", ["building", "testing", "distributing"])
def test_somebody_else_cancels_it(bench: Bench, phase: str) -> None:
    bench.world.rehearsal.arm({"kind": "image-build-fails", "phase": phase, "how": "cancelled"})
    assert bench.build(TESTED)["state"]["status"] == "CANCELLED"
    assert any(f"transitioned to {phase.upper()}" in line for line in bench.log())
    assert on(bench) == []


def test_a_step_of_a_component_fails(bench: Bench) -> None:
    fault = {"kind": "image-build-fails", "how": "step-fails", "component": "doc1", "step": "Inval*"}
    bench.world.rehearsal.arm(fault)
    state = bench.build(document(validate="echo a"), document(validate="echo begin\ntouch x"))["state"]
    found = state["failureContext"]["componentFailure"]
    assert (found["componentArn"][-12:], found["stepName"]) == ("doc1/1.0.0/1", "Invalidate")
    assert "Stdout: begin" in bench.log()
    bench.world.rehearsal.disarm()
    bench.world.rehearsal.arm({**fault, "recipe": "other"})
    other = bench.wait(bench.start(bench.builder.list_image_pipelines()["imagePipelineList"][0]["arn"]))
    assert other["state"]["status"] == "AVAILABLE"


def test_what_cannot_happen_cannot_be_armed(bench: Bench) -> None:
    with pytest.raises(RehearsalFailed) as caught:
        bench.world.rehearsal.arm({"kind": "image-build-fails", "phase": "distributing", "how": "ssm-agent"})
    assert "cannot happen while distributing; choose from" in caught.value.detail


@pytest.mark.parametrize("phase", ["building", "testing", "distributing"])
def test_a_phase_may_be_slow(bench: Bench, phase: str) -> None:
    bench.world.rehearsal.arm({"kind": "image-build-slow", "phase": phase, "seconds": 1000})
    arn = bench.start(bench.pipeline(bench.recipe(bench.component())))
    bench.wait(arn, phase.upper())
    bench.builder.cancel_image_creation(imageBuildVersionArn=arn, clientToken="c")
    assert bench.wait(arn)["state"]["status"] == "CANCELLED"


def test_a_phase_takes_its_time(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(image_phase_seconds=0.2)
    bench.build(document())
    events = bench.logs.get_log_events(logGroupName=GROUP, logStreamName="1.0.0/1", startFromHead=True)["events"]
    moves = [event["timestamp"] for event in events if event["message"].startswith("Image transitioned")]
    assert len(moves) == 4
    assert all(later - earlier >= 199 for earlier, later in itertools.pairwise(moves))


def test_a_log_may_come_late(bench: Bench) -> None:
    bench.world.rehearsal.arm({"kind": "build-log-late", "seconds": 0.5})
    arn = bench.start(bench.pipeline(bench.recipe(bench.component())))
    began = datetime.fromisoformat(bench.image(arn)["dateCreated"]).timestamp() * 1000
    (group,) = until(lambda: bench.logs.describe_log_groups()["logGroups"], bool)
    assert group["creationTime"] - began >= 499
    until(bench.log, lambda lines: "AVAILABLE" in lines[-1])
    assert bench.log()[0].startswith("Image transitioned to BUILDING state")


def test_a_log_may_never_come(bench: Bench) -> None:
    bench.world.rehearsal.arm({"kind": "build-log-late"})
    assert bench.build(document())["state"]["status"] == "AVAILABLE"
    assert bench.logs.describe_log_groups()["logGroups"] == []


def test_calls_are_refused_by_their_name_in_the_services_own_way(bench: Bench) -> None:
    arn = bench.start(bench.pipeline(bench.recipe(bench.component())))
    bench.wait(arn)
    refusal = {"kind": "call-refused", "times": 1, "code": "CallRateLimitExceededException", "status": 429}
    bench.world.rehearsal.arm({**refusal, "action": "GetImage"})
    assert code_of(lambda: bench.image(arn)) == "CallRateLimitExceededException"
    assert bench.image(arn)["state"]["status"] == "AVAILABLE"
    bench.world.rehearsal.arm({"kind": "call-refused", "action": "PutObject", "code": "AccessDenied", "status": 403})
    assert code_of(lambda: bench.s3.put_object(Bucket="b", Key="k", Body=b"")) == "AccessDenied"
    calls = bench.world.rehearsal.state(processes=False)["calls"]
    assert {(call["action"], call["error"]) for call in calls} >= {
        ("GetImage", "CallRateLimitExceededException"),
        ("PutObject", "AccessDenied"),
        ("StartImagePipelineExecution", ""),
    }


def test_simulated_machines_build_nothing(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(trainings="simulated")
    pipeline = bench.pipeline(bench.recipe(bench.component()))
    assert code_of(lambda: bench.start(pipeline)) == "ServiceUnavailableException"
