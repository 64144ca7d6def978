"""A cluster of containers from its first call of ECS to its last, on a stand-in for ECS that runs what they run."""

import copy
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.dask import fargate_rights
from infra.settings import Place
from runner.aws.tags import OWNER
from runner.config_cluster import ClusterSection
from runner.dask.certificates import tls_folder
from runner.dask.fargate import FargateDask
from runner.dask.fargate_cluster import EventFargate
from runner.errors import WorkerError
from tests.dask_on_ec2 import speaks_tls_1_2, until
from tests.ecs_stand_in import ACCOUNT, REGION, Call, Ecs
from tests.infra.evaluation import Ask, allows, listed

PLACE = Place(
    event="iris",
    owner="the lab",
    region=REGION,
    account=ACCOUNT,
    partition="aws",
    bucket="ramp-iris-0123456789",
    prefix="ramp-iris-0a1b2c",
)
_ECS = f"arn:aws:ecs:{REGION}:{ACCOUNT}"
CLUSTER = f"{_ECS}:cluster/{PLACE.prefix}-dask-7a3f"  # Pulumi ends its name


def config(folder: Path) -> dict[str, Any]:
    """Return what workers get; the containers' folder of certificates is the event's own."""
    outputs = {
        "region": REGION,
        "vpc": "vpc-0",
        "subnets": {"subnet-0": f"{REGION}a"},
        "owner": PLACE.owner,
        "dask_security_group": "sg-0",
        "dask_containers_group": "sg-1",
        "dask_cluster": CLUSTER,
        "dask_execution_role": f"arn:aws:iam::{ACCOUNT}:role/{PLACE.prefix}-dask-execution",
        "dask_task_role": f"arn:aws:iam::{ACCOUNT}:role/{PLACE.prefix}-dask-task",
        "dask_log_group": f"/ramp-cloud/{PLACE.prefix}/dask",
    }
    stack = folder / "stack.json"
    stack.write_text(json.dumps(outputs))
    section = ClusterSection(
        provider="fargate",
        container_image="1.dkr.ecr/iris:1",
        container_tls_folder=str(tls_folder(folder, "iris")),
        max=2,
        stack_outputs=str(stack),
    )
    cluster = section.model_dump(mode="json")
    return {"cluster": cluster, "event_name": "iris", "event_uid": "uid", "deployment_dir": str(folder)}


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ecs]:
    """Return ECS after a cluster has grown and ended."""
    folder = tmp_path_factory.mktemp("fargate")
    ecs = Ecs(folder / "containers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EventFargate, "_client", lambda _, name: ecs.client(name))
        cluster = FargateDask(config(folder))
        try:
            with cluster.connect() as client:
                client.wait_for_workers(1, timeout=60)
                cluster.wants(5)
                client.wait_for_workers(2, timeout=60)
                assert client.submit(sum, [1, 2], resources={"ramp": 1}).result(timeout=60) == 3
                assert not speaks_tls_1_2(ecs.running()[0].address)
                assert len(ecs.running()) == 3  # no more than max
                # The same cluster, not another one.
                with cluster.connect() as another:
                    assert another.scheduler_info()["id"] == client.scheduler_info()["id"]
            cluster.close(keep=False)
            left = ecs.running()
        finally:
            cluster.close(keep=False)
            ecs.end()
        assert left == []
        yield ecs


def test_nothing_is_left_of_it(life: Ecs) -> None:
    assert life.definitions == {}
    stopped = [call.given["task"] for call in life.calls if call.operation == "StopTask"]
    assert sorted(stopped) == sorted(life.containers), "not only because the stand-in ended them"


def test_containers_have_the_stacks_groups_no_public_address_and_no_key(life: Ecs) -> None:
    runs = [call.given for call in life.calls if call.operation == "RunTask"]
    assert len(runs) == 3
    network = {"subnets": ["subnet-0"], "securityGroups": ["sg-0", "sg-1"], "assignPublicIp": "DISABLED"}
    assert all(run["networkConfiguration"] == {"awsvpcConfiguration": network} for run in runs)
    assert "PRIVATE KEY" not in json.dumps(runs)
    defined = [call.given for call in life.calls if call.operation == "RegisterTaskDefinition"]
    assert "PRIVATE KEY" not in json.dumps(defined)


@pytest.mark.parametrize("operation", ["DescribeClusters", "RegisterTaskDefinition"])
def test_what_aws_refuses_is_told(operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ecs = Ecs(tmp_path / "containers", refuse=operation)
    monkeypatch.setattr(EventFargate, "_client", lambda _, name: ecs.client(name))
    with pytest.raises(WorkerError, match=r"did not come up.*your rights") as told:
        FargateDask(config(tmp_path)).connect()
    assert f"AccessDeniedException) when calling the {operation}" in told.value.detail
    assert ecs.containers == {}


def test_a_definition_that_cannot_be_removed_is_told_and_keeps_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ecs = Ecs(tmp_path / "containers")
    monkeypatch.setattr(EventFargate, "_client", lambda _, name: ecs.client(name))
    cluster = FargateDask(config(tmp_path))
    try:
        cluster.connect().close()
        ecs.refuse = "DeregisterTaskDefinition"
        with caplog.at_level(logging.WARNING):
            cluster.close(keep=False)
        until(lambda: not ecs.running())
    finally:
        ecs.end()
    left = [record.getMessage() for record in caplog.records if "a task definition is left on ECS" in record.message]
    assert len(left) == 2


# -- rights ----------------------------------------------------------------------------------------------------------


def asks(call: Call) -> Iterator[Ask]:
    """Yield what AWS checks for a call, after its service authorization reference."""
    action = f"{call.service}:{call.operation}"
    region = {"aws:RequestedRegion": [REGION]}
    tags = {f"aws:RequestTag/{each['key']}": [each["value"]] for each in call.given.get("tags", ())}
    tagging = "ecs:TagResource"
    match call.operation:
        case "DescribeClusters":
            yield Ask(action=action, resource=call.given["clusters"][0], context=region)
        case "RegisterTaskDefinition":
            yield Ask(action=action, resource="*", context=region | tags)
            definition = f"{_ECS}:task-definition/{call.given['family']}:1"
            yield Ask(action=tagging, resource=definition, context=region | tags)
            for role in (call.given["executionRoleArn"], call.given["taskRoleArn"]):
                passed = {"iam:PassedToService": ["ecs-tasks.amazonaws.com"]}
                yield Ask(action="iam:PassRole", resource=role, context=passed)
        case "RunTask":
            yield Ask(action=action, resource=call.given["taskDefinition"], context=region | tags)
            task = f"{_ECS}:task/{call.given['cluster'].rpartition('/')[2]}/*"
            yield Ask(action=tagging, resource=task, context=region | tags)
        case "DescribeTasks" | "StopTask":
            yield Ask(action=action, resource=call.given.get("task") or call.given["tasks"][0], context=region)
        case "DeregisterTaskDefinition" | "ListAccountSettings" | "DescribeNetworkInterfaces":
            yield Ask(action=action, resource="*", context=region)
        case _:
            pytest.fail(f"nobody knows what AWS checks for {action}")


def test_every_call_is_allowed(life: Ecs) -> None:
    rights = [fargate_rights(PLACE)]
    every = [ask for call in life.calls for ask in asks(call)]
    assert [str(ask) for ask in every if not allows(rights, ask)] == []


def test_every_right_is_needed(life: Ecs) -> None:
    rights = fargate_rights(PLACE)
    every = [ask for call in life.calls for ask in asks(call)]
    idle = []
    for place, statement in enumerate(rights["Statement"]):
        for key in ("Action", "Resource"):
            for value in listed(statement[key]):
                less = copy.deepcopy(rights)
                less["Statement"][place][key] = [each for each in listed(statement[key]) if each != value]
                if all(allows([less], ask) for ask in every):
                    idle.append((statement["Sid"], value))
    assert idle == []


def test_what_is_anothers_stays_his() -> None:
    rights = [fargate_rights(PLACE)]
    region = {"aws:RequestedRegion": [REGION]}
    theirs = {**region, f"aws:RequestTag/{OWNER}": ["somebody else"]}
    refused = [
        Ask(action="ecs:RunTask", resource=f"{_ECS}:task-definition/dask-1-worker:1", context=theirs),
        Ask(action="ecs:RunTask", resource=f"{_ECS}:task-definition/production:1", context=region),
        Ask(action="ecs:StopTask", resource=f"{_ECS}:task/production/1", context=region),
        Ask(action="iam:PassRole", resource=f"arn:aws:iam::{ACCOUNT}:role/administrator", context=region),
        Ask(action="ecs:DeleteCluster", resource=CLUSTER, context=region),
    ]
    assert [str(ask) for ask in refused if allows(rights, ask)] == []
