"""What a Dask cluster of the event needs: a group whose members reach one another alone, and an ECS cluster.

FargateCluster makes roles, groups and a log group itself where it is given none, with far more rights. It is given all.
"""

import json

import pulumi
import pulumi_aws as aws

from infra import policies
from infra.settings import Place, Settings
from infra.statements import Document, allow, giving, look, policy
from runner.aws.tags import OWNER

_PORTS = (0, 65_535)
_ECS = "ecs-tasks.amazonaws.com"
_EXECUTION_POLICY = "service-role/AmazonECSTaskExecutionRolePolicy"  # fetches images, writes logs
_LOG_DAYS = 30


class Dask(pulumi.ComponentResource):
    """Security group and ECS cluster; scheduler and workers are started in them by whoever runs the event.

    No port is open to the outside, the scheduler's neither: whoever holds its port runs code on every worker.

    Attributes:
        group_id: of scheduler and workers.
        containers_group_id: which containers have besides: they fetch their image, and send their logs, over HTTPS.
            Instances do not have it: nothing goes out of them.
        cluster_arn: of the ECS cluster.
        execution_role_arn: with which ECS starts containers.
        task_role_arn: of the containers: no rights, since whoever submits code would have them as well.
        log_group: name of the containers' log group.
        policy_arn: what whoever runs the event on Fargate needs besides; attach it to his user or role.
    """

    def __init__(
        self, name: str, settings: Settings, place: Place, *, vpc_id: str, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("ramp-cloud:infra:Dask", name, None, opts)
        self._prefix, self._inside = place.prefix, pulumi.ResourceOptions(parent=self)
        self.group_id = self._members(vpc_id)
        self.containers_group_id = self._containers(vpc_id)
        self.cluster_arn = aws.ecs.Cluster(f"{place.prefix}-dask", opts=self._inside).arn
        execution, task = self._role("execution", place), self._role("task", place)
        aws.iam.RolePolicyAttachment(
            "dask-execution",
            role=execution.name,
            policy_arn=f"arn:{place.partition}:iam::aws:policy/{_EXECUTION_POLICY}",
            opts=self._inside,
        )
        self.execution_role_arn, self.task_role_arn = execution.arn, task.arn
        self.log_group = aws.cloudwatch.LogGroup(
            "dask", name=f"/ramp-cloud/{place.prefix}/dask", retention_in_days=_LOG_DAYS, opts=self._inside
        ).name
        full = f"{place.prefix}-fargate"
        self.policy_arn = aws.iam.Policy(
            "fargate", name=full, policy=json.dumps(fargate_rights(place)), opts=self._inside
        ).arn
        self.register_outputs({"group_id": self.group_id, "cluster_arn": self.cluster_arn})

    def _members(self, vpc_id: str) -> pulumi.Output[str]:
        group = self._group("dask", "RAMP event: Dask scheduler and workers, which reach one another alone", vpc_id)
        first, last = _PORTS
        inside = pulumi.ResourceOptions(parent=group)
        for rule in (aws.vpc.SecurityGroupIngressRule, aws.vpc.SecurityGroupEgressRule):
            rule(
                "dask-among",
                security_group_id=group.id,
                referenced_security_group_id=group.id,
                description="Scheduler and workers",
                ip_protocol="tcp",
                from_port=first,
                to_port=last,
                opts=inside,
            )
        return group.id

    def _containers(self, vpc_id: str) -> pulumi.Output[str]:
        group = self._group("containers", "RAMP event: Dask in containers; fetches images, sends logs", vpc_id)
        aws.vpc.SecurityGroupEgressRule(
            "containers-https",
            security_group_id=group.id,
            description="Container images, and AWS itself",
            ip_protocol="tcp",
            from_port=443,
            to_port=443,
            cidr_ipv4="0.0.0.0/0",
            opts=pulumi.ResourceOptions(parent=group),
        )
        return group.id

    def _group(self, role: str, description: str, vpc_id: str) -> aws.ec2.SecurityGroup:
        name = f"{self._prefix}-{role}"
        return aws.ec2.SecurityGroup(
            name, description=description, vpc_id=vpc_id, tags={"Name": name}, opts=self._inside
        )

    def _role(self, name: str, place: Place) -> aws.iam.Role:
        return aws.iam.Role(
            f"dask-{name}",
            name=f"{place.prefix}-dask-{name}",
            description=f"Dask in containers of {place.event}",
            assume_role_policy=json.dumps(policies.service_trust("ecs-tasks")),
            opts=self._inside,
        )


def fargate_rights(place: Place) -> Document:
    """Return what FargateCluster calls when it is given everything; a test holds it against the calls that it makes."""
    ecs = f"arn:{place.partition}:ecs:{place.region}:{place.account}"
    tagged = {"StringEquals": {f"aws:RequestTag/{OWNER}": place.owner}}
    tasks = f"{ecs}:task/{place.prefix}-dask*/*"
    definitions = f"{ecs}:task-definition/dask-*"
    role = f"arn:{place.partition}:iam::{place.account}:role/{place.prefix}-dask-*"
    return policy(
        # None of these knows a resource.
        look("LookForFargate", ["ec2:DescribeNetworkInterfaces", "ecs:ListAccountSettings"], (place.region,)),
        look("ForgetTasks", "ecs:DeregisterTaskDefinition", (place.region,)),
        # Its name is made up by dask-cloudprovider.
        allow("DefineTasks", "ecs:RegisterTaskDefinition", "*", tagged),
        allow("TagTasks", "ecs:TagResource", [definitions, tasks], tagged),
        allow("RunTasks", "ecs:RunTask", definitions, tagged),
        allow("CareForTasks", ["ecs:DescribeTasks", "ecs:StopTask"], tasks),
        allow("LookAtCluster", "ecs:DescribeClusters", f"{ecs}:cluster/{place.prefix}-dask*"),
        giving("GiveToTasks", role, _ECS),
    )
