"""What a Dask cluster of the event needs: a group whose members reach one another alone, and an ECS cluster."""

import pulumi
import pulumi_aws as aws

from infra.settings import Place, Settings

_PORTS = (0, 65_535)


class Dask(pulumi.ComponentResource):
    """Security group and ECS cluster; scheduler and workers are started in them by whoever runs the event.

    No port is open to the outside, the scheduler's neither: whoever holds its port runs code on every worker.

    Attributes:
        group_id: of scheduler and workers.
        cluster_arn: of the ECS cluster.
    """

    def __init__(
        self, name: str, settings: Settings, place: Place, *, vpc_id: str, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("ramp-cloud:infra:Dask", name, None, opts)
        group = aws.ec2.SecurityGroup(
            f"{place.prefix}-dask",
            description="RAMP event: Dask scheduler and workers, which reach one another alone",
            vpc_id=vpc_id,
            tags={"Name": f"{place.prefix}-dask"},
            opts=pulumi.ResourceOptions(parent=self),
        )
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
        # Containers are fetched, and logs sent, over HTTPS.
        aws.vpc.SecurityGroupEgressRule(
            "dask-https",
            security_group_id=group.id,
            description="Container images, and AWS itself",
            ip_protocol="tcp",
            from_port=443,
            to_port=443,
            cidr_ipv4="0.0.0.0/0",
            opts=inside,
        )
        cluster = aws.ecs.Cluster(f"{place.prefix}-dask", opts=pulumi.ResourceOptions(parent=self))
        self.group_id: pulumi.Output[str] = group.id
        self.cluster_arn: pulumi.Output[str] = cluster.arn
        self.register_outputs({"group_id": self.group_id, "cluster_arn": self.cluster_arn})
