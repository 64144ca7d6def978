"""The emulated Image Builder's resources: every operation in both directions, and the rules that AWS has for them."""

import json
from collections.abc import Callable
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from runner.rehearsal.imagebuilder_store import Record, Store, stands_for
from runner.rehearsal.imagebuilder_wire import Refused, model, operation_of, problems, read, status_of
from tests.rehearsal.bench import HELLO, PROFILE, Bench, document
from tests.rehearsal.conftest import CREDENTIALS, World
from tests.rehearsal.test_calls import code_of

ARN = "arn:aws:imagebuilder:eu-west-3:123456789012"
# What the project and `pulumi up` call.
OPERATIONS = {
    *(
        f"{verb}{kind}"
        for verb in ("Create", "Get", "Delete")
        for kind in (
            "Component",
            "ImageRecipe",
            "InfrastructureConfiguration",
            "DistributionConfiguration",
            "ImagePipeline",
            "LifecyclePolicy",
            "Image",
        )
    ),
    *(
        f"Update{kind}"
        for kind in ("InfrastructureConfiguration", "DistributionConfiguration", "ImagePipeline", "LifecyclePolicy")
    ),
    "ListComponents",
    "ListComponentBuildVersions",
    "ListImageRecipes",
    "ListInfrastructureConfigurations",
    "ListDistributionConfigurations",
    "ListImagePipelines",
    "ListLifecyclePolicies",
    "ListImages",
    "ListImageBuildVersions",
    "ListImagePipelineImages",
    "ListWorkflowExecutions",
    "ListWorkflowStepExecutions",
    "StartImagePipelineExecution",
    "CancelImageCreation",
    "TagResource",
    "UntagResource",
    "ListTagsForResource",
}


@pytest.fixture
def make_bench(make_world: Callable[..., World], clients: Callable[[str], Any]) -> Callable[..., Bench]:
    def make(**settings: Any) -> Bench:
        return Bench.of(make_world(**settings), clients)

    return make


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()


def message_of(call: Callable[[], Any]) -> str:
    with pytest.raises(ClientError) as caught:
        call()
    return str(caught.value.response["Error"]["Message"])


POLICY: dict[str, Any] = {
    "executionRole": "lifecycle",
    "resourceType": "AMI_IMAGE",
    "policyDetails": [{"action": {"type": "DELETE"}, "filter": {"type": "COUNT", "value": 3}}],
    "resourceSelection": {"recipes": [{"name": "iris", "semanticVersion": "x.x.x"}]},
}


def test_every_operation_answers_as_the_service_model_says(bench: Bench) -> None:
    """The server checks every answer against the model, and makes a defect of one that does not fit."""
    builder = bench.builder
    component = bench.component(tags={"a": "b"}, description="says hello", supportedOsVersions=["Ubuntu 24"])
    recipe = bench.recipe(
        component,
        tags={"a": "b"},
        blockDeviceMappings=[{"deviceName": "/dev/sda1", "ebs": {"volumeSize": 30, "encrypted": True}}],
        amiTags={"c": "d"},
    )
    infrastructure = bench.infrastructure(resourceTags={"team": "ramp"}, tags={"a": "b"})
    distribution = bench.distribution(description="one region")
    pipeline = bench.pipeline(
        recipe,
        infrastructureConfigurationArn=infrastructure,
        distributionConfigurationArn=distribution,
        schedule={"scheduleExpression": "cron(0 3 ? * mon *)"},
        tags={"a": "b"},
    )
    policy = builder.create_lifecycle_policy(name="iris", clientToken=bench.token(), **POLICY)["lifecyclePolicyArn"]

    assert builder.get_component(componentBuildVersionArn=component)["component"]["data"] == HELLO
    assert builder.get_image_recipe(imageRecipeArn=recipe)["imageRecipe"]["platform"] == "Linux"
    found = builder.get_infrastructure_configuration(infrastructureConfigurationArn=infrastructure)
    assert found["infrastructureConfiguration"]["terminateInstanceOnFailure"] is True
    found = builder.get_distribution_configuration(distributionConfigurationArn=distribution)
    assert found["distributionConfiguration"]["timeoutMinutes"] == 720
    found = builder.get_image_pipeline(imagePipelineArn=pipeline)["imagePipeline"]
    assert (found["status"], found["schedule"]["timezone"]) == ("ENABLED", "UTC")
    assert builder.get_lifecycle_policy(lifecyclePolicyArn=policy)["lifecyclePolicy"]["status"] == "ENABLED"

    listed = {
        "componentVersionList": builder.list_components(),
        "componentSummaryList": builder.list_component_build_versions(componentVersionArn=component[:-2]),
        "imageRecipeSummaryList": builder.list_image_recipes(owner="Self"),
        "infrastructureConfigurationSummaryList": builder.list_infrastructure_configurations(),
        "distributionConfigurationSummaryList": builder.list_distribution_configurations(),
        "imagePipelineList": builder.list_image_pipelines(),
        "lifecyclePolicySummaryList": builder.list_lifecycle_policies(),
    }
    rows = {name: answer[name] for name, answer in listed.items()}
    assert {name: [row["name"] for row in found] for name, found in rows.items()} == {
        name: ["hello"] if name.startswith("component") else ["iris"] for name in rows
    }
    assert rows["componentVersionList"][0]["arn"] == component[:-2]
    assert rows["componentSummaryList"][0]["arn"] == component
    assert rows["distributionConfigurationSummaryList"][0]["regions"] == ["eu-west-3"]

    builder.update_infrastructure_configuration(
        infrastructureConfigurationArn=infrastructure, instanceProfileName=PROFILE, clientToken=bench.token()
    )
    found = builder.get_infrastructure_configuration(infrastructureConfigurationArn=infrastructure)
    assert "resourceTags" not in found["infrastructureConfiguration"], "an update replaces everything"
    assert found["infrastructureConfiguration"]["tags"] == {"a": "b"}, "but the tags"
    builder.update_distribution_configuration(
        distributionConfigurationArn=distribution, distributions=[{"region": "eu-west-1"}], clientToken=bench.token()
    )
    newer = bench.recipe(component, version="1.0.1")
    builder.update_image_pipeline(
        imagePipelineArn=pipeline,
        imageRecipeArn=newer,
        infrastructureConfigurationArn=infrastructure,
        clientToken=bench.token(),
    )
    assert builder.get_image_pipeline(imagePipelineArn=pipeline)["imagePipeline"]["imageRecipeArn"] == newer
    builder.update_lifecycle_policy(
        lifecyclePolicyArn=policy, clientToken=bench.token(), **POLICY | {"status": "DISABLED"}
    )
    assert builder.get_lifecycle_policy(lifecyclePolicyArn=policy)["lifecyclePolicy"]["status"] == "DISABLED"

    image = bench.wait(bench.start(pipeline))
    assert image["state"]["status"] == "AVAILABLE"
    assert builder.list_images()["imageVersionList"][0]["version"] == "1.0.1"
    found = builder.list_image_build_versions(imageVersionArn=image["arn"][:-2])["imageSummaryList"]
    assert [row["version"] for row in found] == ["1.0.1/1"]
    assert builder.list_image_pipeline_images(imagePipelineArn=pipeline)["imageSummaryList"] == found
    workflows = builder.list_workflow_executions(imageBuildVersionArn=image["arn"])["workflowExecutions"]
    assert [workflow["type"] for workflow in workflows] == ["BUILD", "TEST", "DISTRIBUTION"]
    steps = builder.list_workflow_step_executions(workflowExecutionId=workflows[0]["workflowExecutionId"])["steps"]
    assert {step["status"] for step in steps} == {"COMPLETED"}
    single = builder.create_image(
        imageRecipeArn=recipe, infrastructureConfigurationArn=infrastructure, clientToken=bench.token()
    )["imageBuildVersionArn"]
    assert bench.wait(single)["outputResources"]["amis"][0]["name"].startswith("iris 20")
    assert code_of(lambda: builder.cancel_image_creation(imageBuildVersionArn=single, clientToken="c")) == (
        "InvalidRequestException"
    )

    builder.tag_resource(resourceArn=component, tags={"c": "d"})
    builder.untag_resource(resourceArn=component, tagKeys=["a", "x"])
    assert builder.list_tags_for_resource(resourceArn=component)["tags"] == {"c": "d"}

    for arn in (image["arn"], single):
        builder.delete_image(imageBuildVersionArn=arn)
    builder.delete_lifecycle_policy(lifecyclePolicyArn=policy)
    builder.delete_image_pipeline(imagePipelineArn=pipeline)
    for arn in (newer, recipe):
        builder.delete_image_recipe(imageRecipeArn=arn)
    builder.delete_component(componentBuildVersionArn=component)
    builder.delete_infrastructure_configuration(infrastructureConfigurationArn=infrastructure)
    builder.delete_distribution_configuration(distributionConfigurationArn=distribution)
    assert bench.state_of(image["outputResources"]["amis"][0]["image"], "eu-west-3") == "available", "the AMI stays"

    state = bench.world.rehearsal.state(processes=False)
    assert {call["action"] for call in state["calls"] if call["error"] == ""} >= OPERATIONS - {"CancelImageCreation"}
    assert state["defects"] == []


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda bench: bench.component(uri="s3://bucket/doc"), "InvalidParameterCombinationException"),
        (lambda bench: bench.component("name: nothing"), "InvalidRequestException"),
        (lambda bench: bench.component("x" * 16_001), "InvalidParameterException"),
        (lambda bench: bench.component(version="1.0.x"), "InvalidParameterException"),
        (lambda bench: bench.component(name="a/b"), "InvalidParameterException"),
        (lambda bench: bench.component(dryRun=True), "DryRunOperationException"),
        (lambda bench: bench.recipe(f"{ARN}:component/none/1.0.0/1"), "InvalidParameterValueException"),
        (lambda bench: bench.recipe(parentImage="ami-00000000000000000"), "InvalidParameterValueException"),
        (lambda bench: bench.recipe(parentImage="ssm:/no/such"), "InvalidParameterValueException"),
        (lambda bench: bench.recipe(parentImage=f"{ARN}:image/none/x.x.x"), "InvalidParameterValueException"),
        (lambda bench: bench.recipe(version="1.x.x"), "InvalidVersionNumberException"),
        (lambda bench: bench.infrastructure(instanceProfileName="nobody"), "InvalidParameterValueException"),
        (lambda bench: bench.infrastructure(subnetId="subnet-1"), "InvalidParameterValueException"),
        (lambda bench: bench.infrastructure(securityGroupIds=["sg-1"]), "InvalidParameterValueException"),
        (lambda bench: bench.infrastructure(keyPair="nobody"), "InvalidParameterValueException"),
        (lambda bench: bench.infrastructure(instanceTypes=["z9.large"]), "InvalidParameterValueException"),
        (lambda bench: bench.infrastructure(tags={f"k{n}": "" for n in range(51)}), "InvalidParameterException"),
        (
            lambda bench: bench.infrastructure(resourceTags={f"k{n}": "" for n in range(31)}),
            "InvalidParameterException",
        ),
        (
            lambda bench: bench.distribution(distributions=[{"region": "eu-west-3"}] * 2),
            "InvalidParameterValueException",
        ),
        (lambda bench: bench.distribution(distributions=[{"region": "moon-1"}]), "InvalidParameterValueException"),
        (
            lambda bench: bench.distribution(
                distributions=[{"region": "eu-west-3", "amiDistributionConfiguration": {"name": "iris/1"}}]
            ),
            "InvalidParameterException",
        ),
        (
            lambda bench: bench.distribution(
                distributions=[{"region": "eu-west-3", "licenseConfigurationArns": [LICENCE]}]
            ),
            "ServiceUnavailableException",
        ),
        (lambda bench: bench.pipeline(f"{ARN}:image-recipe/none/1.0.0"), "ResourceNotFoundException"),
        (
            lambda bench: bench.pipeline(
                bench.recipe(), infrastructureConfigurationArn=f"{ARN}:infrastructure-configuration/none"
            ),
            "ResourceNotFoundException",
        ),
        (
            lambda bench: bench.pipeline(bench.recipe(), schedule={"scheduleExpression": "weekly"}),
            "InvalidParameterValueException",
        ),
        (lambda bench: bench.start(f"{ARN}:image-pipeline/none"), "ResourceNotFoundException"),
        (lambda bench: bench.image(f"{ARN}:image/none/1.0.0/1"), "ResourceNotFoundException"),
        (lambda bench: bench.builder.list_components(nextToken="nonsense"), "InvalidPaginationTokenException"),
        (
            lambda bench: bench.builder.list_components(filters=[{"name": "colour", "values": ["red"]}]),
            "InvalidRequestException",
        ),
        (
            lambda bench: bench.builder.create_lifecycle_policy(
                name="iris", clientToken="t", **POLICY | {"resourceSelection": {}}
            ),
            "InvalidParameterCombinationException",
        ),
        (
            lambda bench: bench.builder.retry_image(imageBuildVersionArn=f"{ARN}:image/a/1.0.0/1", clientToken="t"),
            "ServiceUnavailableException",
        ),
    ],
)
def test_what_aws_refuses(bench: Bench, call: Callable[[Bench], Any], code: str) -> None:
    assert code_of(lambda: call(bench)) == code


LICENCE = "arn:aws:license-manager:eu-west-3:123456789012:license-configuration:lic-" + "0" * 32


def test_what_is_refused_is_named(bench: Bench) -> None:
    assert "Parsing step 'a' in phase 'build' failed" in message_of(
        lambda: bench.component("schemaVersion: 1.0\nphases: [{name: build, steps: [{name: a, action: Nothing}]}]")
    )
    assert "RetryImage" in message_of(
        lambda: bench.builder.retry_image(imageBuildVersionArn=f"{ARN}:image/a/1.0.0/1", clientToken="t")
    )
    assert "16000" in message_of(lambda: bench.component("x" * 16_001))


def test_a_component_of_the_same_version_is_its_next_build(bench: Bench) -> None:
    first, second = bench.component(), bench.component(document("echo other"))
    assert (first[-8:], second[-8:]) == ("/1.0.0/1", "/1.0.0/2")
    newest = bench.builder.get_component(componentBuildVersionArn=first[:-2])["component"]
    assert newest["arn"] == second
    bench.component(version="1.10.0")
    assert bench.component(version="1.9.0").endswith("1.9.0/1")
    any_version = f"{first.rpartition('/1.0.0')[0]}/x.x.x"
    newest = bench.builder.get_component(componentBuildVersionArn=any_version)["component"]
    assert newest["version"] == "1.10.0"
    assert len(bench.builder.list_components()["componentVersionList"]) == 3
    assert len(bench.builder.list_components(byName=True)["componentVersionList"]) == 1
    assert len(bench.builder.list_component_build_versions()["componentSummaryList"]) == 4


def test_before_there_were_builds_of_components_the_same_version_was_refused(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(component_builds=False)
    bench.component()
    assert code_of(bench.component) == "ResourceAlreadyExistsException"
    bench.component(version="1.0.1")


def test_names_that_differ_in_case_or_space_are_one(bench: Bench) -> None:
    assert bench.infrastructure("The Iris").endswith("/the-iris")
    assert code_of(lambda: bench.infrastructure("the-iris")) == "ResourceAlreadyExistsException"
    component = bench.component()
    bench.recipe(component, name="Iris")
    assert code_of(lambda: bench.recipe(component, name="iris")) == "ResourceAlreadyExistsException"
    bench.recipe(component, name="iris", version="1.0.1")


def test_an_x_in_a_recipes_version_counts_on(bench: Bench) -> None:
    component = bench.component()
    versions = [bench.recipe(component, version=wanted) for wanted in ("1.0.x", "1.0.x", "1.x.0", "2.0.x")]
    assert [arn.rpartition("/")[2] for arn in versions] == ["1.0.0", "1.0.1", "1.1.0", "2.0.0"]


def test_the_same_token_acts_once(bench: Bench) -> None:
    given: dict[str, Any] = {"name": "iris", "instanceProfileName": PROFILE, "clientToken": "mine"}
    create = bench.builder.create_infrastructure_configuration
    first, again = create(**given), create(**given)
    assert first["infrastructureConfigurationArn"] == again["infrastructureConfigurationArn"]
    other = given | {"description": "another"}
    assert code_of(lambda: create(**other)) == "IdempotentParameterMismatchException"
    pipeline = bench.pipeline(bench.recipe(bench.component()), "other")
    start = bench.builder.start_image_pipeline_execution
    arns = {start(imagePipelineArn=pipeline, clientToken="build")["imageBuildVersionArn"] for _ in range(2)}
    assert len(arns) == 1
    bench.wait(*arns)


def test_what_is_used_is_not_deleted(bench: Bench) -> None:
    builder, component = bench.builder, bench.component()
    recipe = bench.recipe(component)
    pipeline = bench.pipeline(recipe)
    infrastructure, distribution = f"{ARN}:infrastructure-configuration/iris", f"{ARN}:distribution-configuration/iris"

    def in_order() -> list[Callable[[], Any]]:
        return [
            lambda: builder.delete_component(componentBuildVersionArn=component),
            lambda: builder.delete_image_recipe(imageRecipeArn=recipe),
            lambda: builder.delete_infrastructure_configuration(infrastructureConfigurationArn=infrastructure),
            lambda: builder.delete_distribution_configuration(distributionConfigurationArn=distribution),
        ]

    assert [code_of(delete) for delete in in_order()] == ["ResourceDependencyException"] * 4
    assert pipeline in message_of(in_order()[1])
    builder.delete_image_pipeline(imagePipelineArn=pipeline)
    assert code_of(in_order()[0]) == "ResourceDependencyException"
    for delete in reversed(in_order()):
        delete()
    assert code_of(in_order()[0]) == "ResourceNotFoundException"


def test_of_two_builds_that_would_do_one_may_go(bench: Bench) -> None:
    first, second = bench.component(), bench.component()
    bench.recipe(first[:-2])
    bench.builder.delete_component(componentBuildVersionArn=first)
    delete = bench.builder.delete_component
    assert code_of(lambda: delete(componentBuildVersionArn=second)) == "ResourceDependencyException"


@pytest.mark.parametrize("may", [True, False])
def test_whether_a_recipe_with_images_may_be_deleted_is_a_setting(make_bench: Callable[..., Bench], may: bool) -> None:
    bench = make_bench(recipe_with_images_deletable=may)
    recipe = bench.recipe(bench.component())
    pipeline = bench.pipeline(recipe)
    image = bench.wait(bench.start(pipeline))
    bench.builder.delete_image_pipeline(imagePipelineArn=pipeline)
    if not may:
        delete = bench.builder.delete_image_recipe
        assert code_of(lambda: delete(imageRecipeArn=recipe)) == "ResourceDependencyException"
        bench.builder.delete_image(imageBuildVersionArn=image["arn"])
    bench.builder.delete_image_recipe(imageRecipeArn=recipe)


def test_long_documents_come_from_s3(bench: Bench) -> None:
    bench.s3.create_bucket(Bucket="documents", CreateBucketConfiguration={"LocationConstraint": "eu-west-3"})
    text = document("echo long") + "# " + "x" * 20_000
    missing = {"name": "long", "semanticVersion": "1.0.0", "platform": "Linux", "clientToken": "t"}
    create = bench.builder.create_component
    assert "does not exist" in message_of(lambda: create(**missing, uri="s3://documents/long.yaml"))
    assert "no bucket" in message_of(lambda: create(**missing, uri="s3://others/long.yaml"))
    bench.s3.put_object(Bucket="documents", Key="long.yaml", Body=text.encode())
    assert bench.s3.head_object(Bucket="documents", Key="long.yaml")["ContentLength"] == len(text)
    arn = create(**missing, uri="s3://documents/long.yaml")["componentBuildVersionArn"]
    assert bench.builder.get_component(componentBuildVersionArn=arn)["component"]["data"] == text


def test_parameters_of_components_are_checked(bench: Bench) -> None:
    component = bench.component(
        "schemaVersion: 1.0\nparameters:\n  - user: {type: string, description: who}\n"
        "phases: [{name: build, steps: [{name: a, action: ExecuteBash, inputs: {commands: ['echo {{ user }}']}}]}]"
    )
    declared = bench.builder.get_component(componentBuildVersionArn=component)["component"]["parameters"]
    assert declared == [{"name": "user", "type": "String", "description": "who"}]
    assert "needs the parameter 'user'" in message_of(lambda: bench.recipe(component))
    wrong = {"componentArn": component, "parameters": [{"name": "usr", "value": ["ubuntu"]}]}
    assert "no parameter 'usr'" in message_of(lambda: bench.recipe(wrong))
    bench.recipe({"componentArn": component, "parameters": [{"name": "user", "value": ["ubuntu"]}]})


def test_lists_have_pages_filters_and_owners(bench: Bench) -> None:
    for number in range(5):
        bench.component(name=f"doc{number}", version=f"1.0.{number}")
    pages = bench.builder.get_paginator("list_components").paginate(PaginationConfig={"PageSize": 2})
    found = [[row["name"] for row in page["componentVersionList"]] for page in pages]
    assert found == [["doc0", "doc1"], ["doc2", "doc3"], ["doc4"]]
    chosen = bench.builder.list_components(filters=[{"name": "name", "values": ["doc1", "doc3"]}])
    assert [row["version"] for row in chosen["componentVersionList"]] == ["1.0.1", "1.0.3"]
    chosen = bench.builder.list_components(
        filters=[{"name": "name", "values": ["doc1", "doc3"]}, {"name": "version", "values": ["1.0.3"]}]
    )
    assert [row["name"] for row in chosen["componentVersionList"]] == ["doc3"]
    assert bench.builder.list_components(owner="Amazon")["componentVersionList"] == []


def test_amazons_own_need_not_be_here(bench: Bench) -> None:
    bench.recipe("arn:aws:imagebuilder:eu-west-3:aws:component/update-linux/x.x.x")


def test_image_builder_has_the_region_of_the_rehearsal(bench: Bench) -> None:
    elsewhere = boto3.client(
        "imagebuilder", endpoint_url=bench.world.rehearsal.url, region_name="us-east-1", **CREDENTIALS
    )
    assert code_of(elsewhere.list_components) == "ForbiddenException"


# -- the wire and the store, without a server ------------------------------------------------------------------------


def test_every_operation_of_the_service_has_one_route() -> None:
    for name in model().operation_names:
        operation = model().operation_model(name)
        path = operation.http["requestUri"].replace("{resourceArn}", f"{ARN}:image-pipeline/iris")
        assert operation_of(operation.http["method"], path)[0].name == name
    with pytest.raises(Refused):
        operation_of("GET", "/Nothing")


def test_names_on_the_wire_are_those_of_the_api() -> None:
    """The emulation relies on it: only parameters in path and query have names of their own."""
    seen: set[str] = set()

    def differing(shape: Any) -> list[str]:
        if shape is None or shape.name in seen:
            return []
        seen.add(shape.name)
        if shape.type_name == "structure":
            found = [name for name, member in shape.members.items() if member.serialization.get("name", name) != name]
            return found + [name for member in shape.members.values() for name in differing(member)]
        inner = {"list": ["member"], "map": ["key", "value"]}.get(shape.type_name, [])
        return [name for each in inner for name in differing(getattr(shape, each))]

    shapes = [model().operation_model(name) for name in model().operation_names]
    assert [
        name for each in shapes for shape in (each.input_shape, each.output_shape) for name in differing(shape)
    ] == []


def test_parameters_are_read_from_path_query_and_body() -> None:
    untag, in_path = operation_of("DELETE", f"/tags/{ARN}:component/a/1.0.0/1")
    assert read(untag, in_path, "tagKeys=a&tagKeys=b", b"") == {
        "resourceArn": f"{ARN}:component/a/1.0.0/1",
        "tagKeys": ["a", "b"],
    }
    create, _ = operation_of("PUT", "/CreateComponent")
    for body in (b"{", json.dumps({"name": "a"}).encode(), json.dumps({"colour": "red"}).encode()):
        with pytest.raises(Refused):
            read(create, {}, "", body)


def test_answers_that_do_not_fit_are_found() -> None:
    shape = model().operation_model("ListImages").output_shape
    row = {"arn": f"{ARN}:image/iris/1.0.0", "name": "iris", "version": "1.0.0", "type": "AMI"}
    assert problems(shape, {"imageVersionList": [row]}) == []
    for wrong in (
        {"images": []},
        {"imageVersionList": [{**row, "version": "1"}]},
        {"imageVersionList": [{**row, "type": "x"}]},
    ):
        assert problems(shape, wrong)
    assert status_of("ResourceNotFoundException") == 404


@pytest.mark.parametrize(
    ("reference", "arn", "does"),
    [
        ("1.0.0", "1.0.0/1", True),
        ("1.0.0/1", "1.0.0/1", True),
        ("1.0.0/1", "1.0.0/11", False),
        ("1.0.x", "1.0.12/3", True),
        ("x.x.x", "7.8.9/1", True),
        ("1.x.x", "2.0.0/1", False),
        ("1.0.1", "1.0.10/1", False),
    ],
)
def test_which_versions_an_arn_stands_for(reference: str, arn: str, does: bool) -> None:
    assert stands_for(f"{ARN}:component/a/{reference}", f"{ARN}:component/a/{arn}") is does
    assert not stands_for(f"{ARN}:component/b/{reference}", f"{ARN}:component/a/{arn}")


def test_a_store_comes_back_and_builds_that_were_under_way_have_failed() -> None:
    store = Store()
    store.add(Record("Component", f"{ARN}:component/a/1.0.0/1", {"name": "a"}))
    for number, status in enumerate(("BUILDING", "AVAILABLE")):
        arn = f"{ARN}:image/a/1.0.0/{number + 1}"
        store.add(Record("Image", arn, {"name": "a", "state": {"status": status}}, {"workflows": []}))
    assert store.next_build("a") == 1
    store.remember("Create", {"clientToken": "t", "name": "a"}, {"arn": "b"})
    again = Store()
    again.load(json.loads(json.dumps(store.dump())))
    assert again.get(f"{ARN}:component/a/1.0.0").name == "a"
    assert again.next_build("a") == 2
    assert again.done_before("Create", {"clientToken": "t", "name": "a"}) == {"arn": "b"}
    states = [image.values["state"]["status"] for image in again.of_kind("Image")]
    assert states == ["FAILED", "AVAILABLE"]
    again.load({})
    assert again.of_kind("Image") == []
