"""The network of an event: where its instances are, who reaches them, and what they reach."""

import re

import pulumi
import pulumi_aws as aws

from infra.settings import Place, Settings
from runner.errors import ConfigError

_SSH, _HTTPS, _HTTP = 22, 443, 80
_EVERYWHERE = ("0.0.0.0/0", "::/0")


class Network(pulumi.ComponentResource):
    """A network that is there already, and the groups of those instances that are launched in it.

    Attributes:
        vpc_id: id of the network.
        subnets: id -> zone, sorted.
        workers_group_id: of instances that train.
        build_group_id: of instances that build images; None without an image.

    Raises:
        ConfigError: there is no such network, or it has no such subnet.
    """

    def __init__(self, name: str, settings: Settings, place: Place, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("ramp-cloud:infra:Network", name, None, opts)
        self._settings, self._place = settings, place
        asking = pulumi.InvokeOptions(parent=self)
        self.vpc_id = self._there(asking)
        self.subnets = self._zones(asking)
        self.workers_group_id = self._workers()
        self.build_group_id = self._builders() if settings.image else None
        self.register_outputs({"vpc_id": self.vpc_id, "subnets": self.subnets})

    def _there(self, asking: pulumi.InvokeOptions) -> str:
        """Return the id of the network that config.yml names, or of the account's default one."""
        wanted, region, path = self._settings.infra.vpc, self._place.region, self._settings.config.path
        name, value = ("vpc-id", wanted) if wanted else ("is-default", "true")
        found = aws.ec2.get_vpcs(filters=[aws.ec2.GetVpcsFilterArgs(name=name, values=[value])], opts=asking).ids
        if found:
            return str(found[0])
        if wanted:
            msg = f"{path}: infra.vpc: {wanted} is not in {region} of this account; correct it, or leave it out"
        else:
            msg = f"{path}: infra.vpc: the account has no default network in {region}; set `vpc` to the id of another"
        raise ConfigError(msg)

    def _zones(self, asking: pulumi.InvokeOptions) -> dict[str, str]:
        chosen = self._settings.infra.subnets
        of_vpc = aws.ec2.GetSubnetsFilterArgs(name="vpc-id", values=[self.vpc_id])
        there = aws.ec2.get_subnets(filters=[of_vpc], opts=asking).ids
        path = self._settings.config.path
        if strangers := sorted({*chosen} - {*there}):
            msg = f"{path}: infra.subnets: {', '.join(strangers)} not in {self.vpc_id}; correct them, or set infra.vpc"
            raise ConfigError(msg)
        if not there:
            msg = (
                f"{path}: infra.vpc: {self.vpc_id} has no subnet for instances; make one there, or name another network"
            )
            raise ConfigError(msg)
        found = {each: aws.ec2.get_subnet(id=each, opts=asking).availability_zone for each in sorted(chosen or there)}
        zones = self._settings.worker.zones
        if zones and not {*zones} & {*found.values()}:
            msg = f"{path}: zones: no subnet of {self.vpc_id} lies in {', '.join(zones)}; name other zones"
            raise ConfigError(msg)
        return found

    def _workers(self) -> pulumi.Output[str]:
        """Make the group of instances that train: the runner comes in by SSH, and nothing goes out.

        Booting needs nothing from outside: what cloud-init asks (metadata, names, time) is in every network of AWS and
        no group keeps it away.
        """
        given = self._settings.worker.security_group
        named = given if given and not given.startswith("sg-") else None
        group = self._group("workers", "RAMP event: instances that train; SSH from the runner only", named)
        for cidr in self._settings.infra.runner_cidr:
            aws.vpc.SecurityGroupIngressRule(
                f"workers-ssh-{cidr}",
                security_group_id=group.id,
                description="SSH from the machine that runs the event",
                ip_protocol="tcp",
                from_port=_SSH,
                to_port=_SSH,
                cidr_ipv4=None if ":" in cidr else cidr,
                cidr_ipv6=cidr if ":" in cidr else None,
                opts=pulumi.ResourceOptions(parent=group),
            )
        if self._settings.infra.egress == "open":
            for everywhere in _EVERYWHERE:
                aws.vpc.SecurityGroupEgressRule(
                    f"workers-out-{everywhere}",
                    security_group_id=group.id,
                    description="egress: open",
                    ip_protocol="-1",
                    cidr_ipv4=None if ":" in everywhere else everywhere,
                    cidr_ipv6=everywhere if ":" in everywhere else None,
                    opts=pulumi.ResourceOptions(parent=group),
                )
        return group.id

    def _builders(self) -> pulumi.Output[str]:
        """Make the group of instances that build images: nothing comes in, packages are fetched over HTTP(S)."""
        group = self._group("build", "RAMP event: instances that build its image; nothing comes in")
        ports = [_HTTPS, _HTTP]  # AWS's agents and package registries; Ubuntu's mirrors have signed packages on 80
        kit = self._settings.image.kit if self._settings.image else ""
        if kit.startswith("ssh://") or re.match(r"[^/:]+@", kit):
            ports.append(_SSH)
        for port in ports:
            aws.vpc.SecurityGroupEgressRule(
                f"build-out-{port}",
                security_group_id=group.id,
                description="Packages, the kit, and AWS itself",
                ip_protocol="tcp",
                from_port=port,
                to_port=port,
                cidr_ipv4=_EVERYWHERE[0],
                opts=pulumi.ResourceOptions(parent=group),
            )
        return group.id

    def _group(self, role: str, description: str, name: str | None = None) -> aws.ec2.SecurityGroup:
        # Without rules of its own a group that the provider makes lets nothing in or out.
        return aws.ec2.SecurityGroup(
            f"{self._place.prefix}-{role}",
            name=name,
            description=description,
            vpc_id=self.vpc_id,
            tags={"Name": f"{self._place.prefix}-{role}"},
            opts=pulumi.ResourceOptions(parent=self),
        )
