"""Looks at everything that an event on EC2 needs, changes nothing, and says of each part what is so and what to do.

Each check stands alone: what one of them finds does not keep the others from looking.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.aws.boot import boot_minutes, longest_life
from runner.aws.facts import AwsFacts
from runner.aws.pools import Pool
from runner.aws.prices import Prices
from runner.aws.session import AwsSession
from runner.aws.spec import LaunchSpec, run_parameters
from runner.aws.tags import as_list, belonging_tags
from runner.errors import AwsError, ConfigError, RampCloudError
from runner.findings import Finding, State, trouble
from runner.stack import StackFileBroken, StackOutputs, read
from runner.transport.ssh import check_key_file, public_key_of

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Service Quotas of EC2 by the letters that an instance type begins with: on demand, spot. They count vCPUs.
_QUOTAS = {
    **{
        family: {"on-demand": "L-1216C47A", "spot": "L-34B43A08"}
        for family in ("a", "c", "d", "h", "i", "im", "is", "m", "r", "t", "z")
    },
    **{family: {"on-demand": "L-DB2E81BA", "spot": "L-3819A6DF"} for family in ("g", "gr", "vt")},
    "p": {"on-demand": "L-417A185B", "spot": "L-7212CCBC"},
    "f": {"on-demand": "L-74FC7D96", "spot": "L-88CF9481"},
    "inf": {"on-demand": "L-1945791B", "spot": "L-B5D1601B"},
    "x": {"on-demand": "L-7295265B", "spot": "L-E3A00192"},
}


class AwsDoctor:
    """All checks of one event on EC2.

    Args:
        config: the worker's config as config.yml has it, with ``event_uid``.
        connect: makes the way to AWS from the config once the stack's values are filled in.
        n_workers: instances at once.
        address: the address from which AWS sees this machine, None where nobody said it.
        local_addresses: what this machine itself knows of its addresses.
        try_launch: launches one instance, looks at it, ends it, and says what it found; None: not wanted.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        connect: Callable[[Mapping[str, Any]], AwsSession],
        n_workers: int,
        address: Address | None = None,
        local_addresses: Sequence[Address] = (),
        try_launch: Callable[[], str] | None = None,
    ) -> None:
        self._written = config
        self._connect = connect
        self._n_workers = n_workers
        self._address = address
        self._local_addresses = local_addresses
        self._try_launch = try_launch
        self._facts = AwsFacts(config, None, connect)
        self._told: dict[str, str] = {}  # troubles, and the check that told them first

    def findings(self) -> Iterator[Finding]:
        """Yield what each check found, in the order in which things should be mended."""
        outputs, finding = self._read_stack()
        self._facts = AwsFacts(self._written, outputs, self._connect)
        yield finding
        checks: dict[str, Callable[[], Iterator[Finding]]] = {
            "credentials": self._credentials,
            "region": self._region,
            "image": self._image,
            "key file": self._key_file,
            "key pair": self._key_pair,
            "subnets": self._subnets,
            "security group": self._way_in,
            "instance types": self._types,
            "quota": self._quotas,
            "rights": self._rights,
            "cost": self._cost,
            "kit folder": self._kit_folder,
        }
        for name, check in checks.items():
            try:
                yield from check()
            except RampCloudError as error:
                # The same trouble again is not what this check is about.
                first = self._told.setdefault(error.message, name)
                if first == name:
                    yield Finding(name=name, state=State.WRONG, found=trouble(error))
                else:
                    yield Finding(name=name, state=State.UNKNOWN, found=f"could not be looked at; see {first}")

    # -- who and where -------------------------------------------------------------------------------------------

    def _read_stack(self) -> tuple[StackOutputs | None, Finding]:
        name, path = "stack outputs", Path(self._written["stack_outputs"])
        try:
            outputs = read(path)
        except StackFileBroken as error:
            return None, Finding(name=name, state=State.WRONG, found=str(error))
        if outputs is None:
            return None, Finding(name=name, state=State.OK, found=f"no {path}, so config.yml must say everything")
        region = self._written.get("region_name")
        if region not in (None, outputs.region):
            found = f"{path} is of {outputs.region} and region_name is {region}, so nothing is taken from it"
            advice = "let stack_outputs name the file of that region's stack"
            return outputs, Finding(name=name, state=State.WARNING, found=found, next=advice)
        ignored = f"; not known to this version: {', '.join(outputs.ignored)}" if outputs.ignored else ""
        return outputs, Finding(name=name, state=State.OK, found=f"read from {path}{ignored}")

    def _credentials(self) -> Iterator[Finding]:
        caller = self._facts.session.call("sts", "get_caller_identity")
        yield Finding(name="credentials", state=State.OK, found=f"account {caller['Account']}, {caller['Arn']}")

    def _region(self) -> Iterator[Finding]:
        facts = self._facts
        found = f"{facts.region}{facts.source('region_name')}, zones {', '.join(facts.zones)}"
        strange = sorted(set(facts.config["zones"]) - set(facts.zones))
        if strange:
            found = f"{facts.region} has no zone {', '.join(strange)} for this account; it has {', '.join(facts.zones)}"
            yield Finding(name="region", state=State.WRONG, found=found, next="mend zones in config.yml")
        else:
            yield Finding(name="region", state=State.OK, found=found)

    def _image(self) -> Iterator[Finding]:
        image = self._facts.image
        found = f"{image.id}, {image.name!r}, made {image.created:%Y-%m-%d %H:%M}, {image.architecture}"
        yield Finding(name="image", state=State.OK, found=found)

    # -- the way in ----------------------------------------------------------------------------------------------

    def _key_file(self) -> Iterator[Finding]:
        path = Path(self._facts.needed("key_path", "the private key file of the key pair"))
        check_key_file(path)
        yield Finding(name="key file", state=State.OK, found=f"{path}, readable by its owner alone")

    def _key_pair(self) -> Iterator[Finding]:
        name = self._facts.needed("key_name", "the name of an EC2 key pair")
        found = self._facts.session.call("ec2", "describe_key_pairs", KeyNames=[name], IncludePublicKey=True)
        pair = found["KeyPairs"][0]
        known = f"{name!r}{self._facts.source('key_name')}, {pair.get('KeyType', 'rsa')}, {pair['KeyFingerprint']}"
        try:
            ours = public_key_of(Path(self._facts.needed("key_path", "the private key file of the key pair")))
        except ConfigError:
            yield Finding(name="key pair", state=State.UNKNOWN, found=f"{known}; not compared, see key file")
            return
        theirs = " ".join(str(pair.get("PublicKey", "")).split()[:2])
        if theirs == ours:
            yield Finding(name="key pair", state=State.OK, found=f"{known}; key_path is its private key")
        elif not theirs:
            yield Finding(name="key pair", state=State.UNKNOWN, found=f"{known}; AWS does not show its public key")
        else:
            advice = "set key_path to the file that came with the key pair, or key_name to the pair of this file"
            mismatch = f"{known}; key_path is the private key of another pair"
            yield Finding(name="key pair", state=State.WRONG, found=mismatch, next=advice)

    def _way_in(self) -> Iterator[Finding]:
        facts, group = self._facts, self._facts.group
        port = int(facts.config["ssh_port"])
        networks, others = _open_to(group["IpPermissions"], port)
        name = f"{group['GroupId']} ({group['GroupName']}){facts.source('security_group')}"
        shown = ", ".join([*map(str, networks), *others]) or "nobody"
        found = f"{name} lets in on port {port}: {shown}"
        allow = (
            f"aws ec2 authorize-security-group-ingress --group-id {group['GroupId']} --protocol tcp --port {port} "
            "--cidr YOUR.PUBLIC.ADDRESS/32"
        )
        fits = [each for each in self._possible_addresses() if any(each in network for network in networks)]
        world = [str(network) for network in networks if network.prefixlen == 0]
        if world:
            advice = f"{allow}, and take away the rule for {' and '.join(world)}"
            wide = f"{found}, which is the whole world"
            yield Finding(name="security group", state=State.WARNING, found=wide, next=advice)
        elif fits:
            yield Finding(name="security group", state=State.OK, found=f"{found}; this machine is {fits[0]}")
        elif self._address or not (networks or others):
            yield Finding(name="security group", state=State.WRONG, found=found, next=allow)
        else:
            yield Finding(
                name="security group",
                state=State.UNKNOWN,
                found=f"{found}; from which address AWS sees this machine cannot be known here",
                next="give --address YOUR.PUBLIC.ADDRESS",
            )

    def _possible_addresses(self) -> list[Address]:
        return [self._address] if self._address else list(self._local_addresses)

    # -- room ----------------------------------------------------------------------------------------------------

    def _subnets(self) -> Iterator[Finding]:
        shown = ", ".join(f"{subnet.id} in {subnet.zone}" for subnet in self._facts.subnets)
        where = self._facts.source("subnets") if self._facts.config["subnets"] else " (the default ones)"
        yield Finding(name="subnets", state=State.OK, found=f"{shown}{where}")

    def _types(self) -> Iterator[Finding]:
        facts = self._facts
        ours = {subnet.zone for subnet in facts.subnets}
        try:
            image = facts.image
        except RampCloudError:  # told by its own check
            image = None
        useful = 0
        lines = []
        for name in facts.types:
            zones = sorted(facts.zones_of_types[name] & ours)
            described = facts.types_described.get(name, {})
            machines = described.get("ProcessorInfo", {}).get("SupportedArchitectures", [])
            if not facts.zones_of_types[name]:
                lines.append((f"{name} does not exist in {facts.region}", "mend instance_type"))
            elif not zones:
                there = ", ".join(sorted(facts.zones_of_types[name]))
                lines.append((f"{name} is only in {there}", "take a subnet there, or another type"))
            elif image and machines and image.architecture not in machines:
                wants = f"{name} is {' and '.join(machines)}, the image {image.architecture}"
                lines.append((wants, "take types of the image's architecture, or another image"))
            elif facts.config["use_spot_instance"] and "spot" not in described.get("SupportedUsageClasses", ["spot"]):
                lines.append((f"{name} cannot be had as a spot instance", "take another type, or no spot"))
            else:
                useful += 1
                yield Finding(name="instance types", state=State.OK, found=f"{name} in {', '.join(zones)}")
        for found, advice in lines:
            state = State.WARNING if useful else State.WRONG
            yield Finding(name="instance types", state=state, found=found, next=advice)

    def _quotas(self) -> Iterator[Finding]:
        spot = bool(self._facts.config["use_spot_instance"])
        markets = ["spot"] if spot else ["on-demand"]
        if spot and self._facts.config["on_demand_fallback"]:
            markets.append("on-demand")
        vcpus = {name: int(said["VCpuInfo"]["DefaultVCpus"]) for name, said in self._facts.types_described.items()}
        if not vcpus:
            yield Finding(name="quota", state=State.UNKNOWN, found="could not be looked at; see instance types")
        largest: dict[str, str] = {}  # of each family, the type that asks most of its quota
        for name in sorted(vcpus, key=lambda name: vcpus[name]):
            largest[_family(name)] = name
        for family, name in largest.items():
            for market in markets:
                code = _QUOTAS.get(family, {}).get(market)
                yield self._quota(market, code, name, vcpus[name], needed=market == markets[0])

    def _quota(self, market: str, code: str | None, name: str, vcpus: int, *, needed: bool) -> Finding:
        asked = vcpus * self._n_workers
        wish = f"{market}: n_workers {self._n_workers} x {name} = {asked} vCPUs"
        advice = "look at Service Quotas, Amazon EC2, in the console"
        if code is None:
            return Finding(
                name="quota", state=State.UNKNOWN, found=f"{wish}; not known which quota counts", next=advice
            )
        try:
            answer = self._facts.session.call("service-quotas", "get_service_quota", ServiceCode="ec2", QuotaCode=code)
        except AwsError as error:
            found = f"{wish}; the quota {code} could not be read: {error.message}"
            return Finding(name="quota", state=State.UNKNOWN, found=found, next=advice)
        allowed = int(answer["Quota"]["Value"])
        found = f"{wish}, of {allowed} for all that runs in the account ({code})"
        if asked <= allowed:
            return Finding(name="quota", state=State.OK, found=found)
        fewer = f"n_workers: {allowed // vcpus}" if allowed >= vcpus else "another instance type"
        state = State.WRONG if needed else State.WARNING
        return Finding(name="quota", state=state, found=found, next=f"{fewer}, or ask for more in Service Quotas")

    # -- would it work -------------------------------------------------------------------------------------------

    def _rights(self) -> Iterator[Finding]:
        """Ask AWS whether it would launch: with DryRun it answers and does nothing."""
        facts, config = self._facts, self._facts.config
        spec = LaunchSpec(
            image=facts.image,
            user_data="",
            boot_minutes=boot_minutes(timeout=float(config["timeout"])),
            host_key="",
            security_groups=(str(facts.group["GroupId"]),),
            key_name=facts.needed("key_name", "the name of an EC2 key pair"),
            instance_profile=config["instance_profile"],
            launch_template=config["launch_template"],
        )
        place = facts.subnets[0]
        wish = run_parameters(spec, Pool(instance_type=facts.types[0], subnet=place.id, zone=place.zone))
        tags = as_list(belonging_tags(event=str(config["event_name"]), event_id="doctor", owner=facts.owner))
        wish["TagSpecifications"] = [{"ResourceType": kind, "Tags": tags} for kind in ("instance", "volume")]
        try:
            facts.session.call("ec2", "run_instances", DryRun=True, MinCount=1, MaxCount=1, **wish)
        except RampCloudError as error:
            if error.fields.get("code") != "DryRunOperation":
                raise
        yield Finding(name="rights", state=State.OK, found="a dry run says that you may launch such an instance")

    def _cost(self) -> Iterator[Finding]:
        facts = self._facts
        prices = Prices.load(facts.region, facts.config["prices"])
        limit = facts.config["max_event_cost"]
        known = {name: prices.of(name) for name in facts.types}
        unknown = [name for name, price in known.items() if price is None]
        if unknown:
            found = f"the price of {', '.join(unknown)} is not known" + (
                ", so max_event_cost cannot hold" if limit else ""
            )
            state = State.WRONG if limit else State.UNKNOWN
            yield Finding(name="cost", state=state, found=found, next="set prices, in USD per hour, in config.yml")
        dearest = max((price for price in known.values() if price is not None), default=None)
        if dearest is not None:
            yield self._cost_at(dearest, limit)

    def _cost_at(self, price: float, limit: float | None) -> Finding:
        config, n_workers = self._facts.config, self._n_workers
        minutes = boot_minutes(
            timeout=float(config["timeout"]),
            instances_reused=int(config["instances_reused"]),
            keep_failed_minutes=float(config["keep_failed_minutes"]),
        )
        longest = longest_life(minutes).total_seconds() / 3600
        training = float(config["timeout"]) / 3600
        found = (
            f"{n_workers} x USD {price:g} an hour on demand: at most USD {n_workers * price * training:.2f} "
            f"for trainings up to the time limit, USD {n_workers * price * longest:.2f} if only their timers end the "
            "instances"
        )
        if limit is None:
            return Finding(name="cost", state=State.OK, found=f"{found}; max_event_cost sets no limit")
        found += f"; max_event_cost: USD {limit:g}"
        if limit >= n_workers * price * longest:
            return Finding(name="cost", state=State.OK, found=found)
        # Each instance is counted with the longest life it can have until it has ended.
        at_once = int(limit / (price * longest))
        state = State.WARNING if at_once else State.WRONG
        advice = (
            f"it lets {at_once or 'no'} instances run at once; raise it to {n_workers * price * longest:.2f} or more"
        )
        return Finding(name="cost", state=state, found=found, next=advice)

    def _kit_folder(self) -> Iterator[Finding]:
        if self._try_launch is None:
            folder = self._facts.config["remote_ramp_kit_folder"]
            found = f"not looked for: whether {folder} is on the image, only an instance can tell"
            yield Finding(name="kit folder", state=State.UNKNOWN, found=found, next="--launch starts one, and ends it")
        else:
            yield Finding(name="kit folder", state=State.OK, found=self._try_launch())


def _family(instance_type: str) -> str:
    """Return the letters that an instance type begins with, by which quotas count."""
    match = re.match(r"u-|[a-z]+", instance_type)
    return match[0] if match else instance_type


def _open_to(permissions: Sequence[Mapping[str, Any]], port: int) -> tuple[list[Network], list[str]]:
    """Return the networks that a group lets in on a port, and in words whatever else it lets in there."""
    networks: set[Network] = set()
    others: set[str] = set()
    for rule in permissions:
        is_tcp = rule["IpProtocol"] == "tcp" and rule["FromPort"] <= port <= rule["ToPort"]
        if not is_tcp and rule["IpProtocol"] != "-1":
            continue
        networks |= {ipaddress.ip_network(entry["CidrIp"], strict=False) for entry in rule.get("IpRanges", [])}
        networks |= {ipaddress.ip_network(entry["CidrIpv6"], strict=False) for entry in rule.get("Ipv6Ranges", [])}
        others |= {f"members of {pair['GroupId']}" for pair in rule.get("UserIdGroupPairs", [])}
        others |= {f"the list {entry['PrefixListId']}" for entry in rule.get("PrefixListIds", [])}
    return sorted(networks, key=lambda network: (network.version, int(network.network_address))), sorted(others)
