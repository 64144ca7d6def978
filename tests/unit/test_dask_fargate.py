"""What FargateCluster is told. ECS cannot be emulated here: this is held against its signature, not against AWS."""

import inspect
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from dask_cloudprovider.aws import ECSCluster
from distributed import Security

from runner.config_cluster import ClusterSection
from runner.dask.certificates import event_certificates, tls_folder
from runner.dask.fargate import arguments
from runner.dask.programs import TLS_SETTINGS
from runner.errors import ConfigError
from runner.stack import StackOutputs

STACK = StackOutputs(
    region="eu-west-3",
    vpc="vpc-0",
    subnets={"subnet-b": "eu-west-3b", "subnet-a": "eu-west-3a"},
    owner="the-owner",
    dask_security_group="sg-members",
    dask_containers_group="sg-https",
    dask_cluster="arn:aws:ecs:eu-west-3:1:cluster/dask",
    dask_execution_role="arn:aws:iam::1:role/execution",
    dask_task_role="arn:aws:iam::1:role/task",
    dask_log_group="/ramp-cloud/iris/dask",
)


@pytest.fixture
def security(tmp_path: Path) -> Security:
    """Return the client's side of an event's certificates."""
    return event_certificates(tls_folder(tmp_path, "iris"), now=datetime.now(UTC)).security("client")


def config(**keys: Any) -> dict[str, Any]:
    """Return what workers get; ``keys`` stand under ``cluster``."""
    section = ClusterSection(**{"provider": "fargate", "container_image": "1.dkr.ecr/iris:1", "max": 3, **keys})
    return {"cluster": section.model_dump(mode="json"), "event_name": "iris", "event_uid": "uid", "deployment_dir": "."}


def test_it_has_nothing_to_make_but_tasks(security: Security) -> None:
    given = arguments(config(slots_per_machine=2, min=1, use_spot_instance=True), STACK, security)
    own = inspect.signature(ECSCluster.__init__)
    own.bind(None, **given)
    assert set(given) - {"security"} <= own.parameters.keys()  # no word of ours is taken for one of SpecCluster's
    made_when_missing = ("cluster_arn", "execution_role_arn", "task_role_arn", "cloudwatch_logs_group")
    made_when_missing += ("security_groups", "subnets", "vpc")
    assert all(given[name] for name in made_when_missing)
    assert given["security_groups"] == ["sg-members", "sg-https"]
    assert given["subnets"] == ["subnet-a", "subnet-b"]
    assert given["fargate_use_private_ip"] is True
    assert given["tags"]["ramp-cloud:owner"] == "the-owner"
    assert given["scheduler_timeout"] == "300 s"


def test_each_role_has_its_own_key_and_none_travels(security: Security) -> None:
    given = arguments(config(), STACK, security)
    assert "--tls-key=/etc/ramp-cloud/tls/scheduler-key.pem" in given["scheduler_extra_args"]
    assert "--tls-key=/etc/ramp-cloud/tls/worker-key.pem" in given["worker_extra_args"]
    assert {"--no-dashboard", "--death-timeout=120", "--resources=ramp=1"} <= set(given["worker_extra_args"])
    assert given["environment"] == TLS_SETTINGS
    assert given["security"].tls_client_key.endswith("client-key.pem")
    assert given["security"].tls_worker_key is None


def test_what_is_missing_is_named(security: Security) -> None:
    with pytest.raises(ConfigError, match=r"also needs ecs_cluster, execution_role, .*subnets under cluster"):
        arguments(config(), None, security)
    with pytest.raises(ConfigError, match="ecs_cluster"):  # a stack of another region says nothing
        arguments(config(region_name="eu-west-1"), STACK, security)
