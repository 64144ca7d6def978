"""EC2 as moto has it, with what moto lacks: idempotent launches, states with delays, capacity, status, console.

moto's classes are its private matter, so ``install`` first checks that this is the version it was written for and that
every name it replaces exists.
"""

import copy
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any, ClassVar

from moto.core.responses import ActionResult, EmptyResult
from moto.core.types import Base64EncodedString
from moto.core.utils import utcnow
from moto.ec2 import urls
from moto.ec2.exceptions import InvalidInstanceIdError
from moto.ec2.models import EC2Backend, amis, instances
from moto.ec2.models.instances import InstanceState, Reservation
from moto.ec2.responses import EC2Response
from moto.ec2.utils import parse_user_data

from runner.rehearsal import images
from runner.rehearsal.fleet import create_fleet
from runner.rehearsal.instance_xml import describe_instances_xml, matcher, run_instances_xml
from runner.rehearsal.launch import Launcher
from runner.rehearsal.launch_request import read_request, refuse, tags_for, template_of, with_template_tags
from runner.rehearsal.machine import USER, Machine

MOTO = "5.2.5"
_PAGE = 1000  # instances that one DescribeInstances gives at most
_SMALLEST_PAGE = 5
_TEMPLATES = 200  # launch templates on a page


class WrongMoto(RuntimeError):
    """This is not the moto that the emulation was written for."""


class Calls(EC2Response):
    """The calls of EC2 that are answered here; each replaces moto's of the same name."""

    launcher: ClassVar[Launcher]
    RESPONSE_KEY_PATH_TO_TRANSFORMER: ClassVar[dict[str, Callable[[Any], Any]]] = {  # type: ignore[misc]  # it is one
        **EC2Response.RESPONSE_KEY_PATH_TO_TRANSFORMER,
        # moto cuts the fraction off, and two images of a second could not be told apart.
        "Image.CreationDate": lambda moment: f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z",
    }

    def run_instances(self) -> str:  # type: ignore[override]  # moto takes text as well
        """RunInstances."""
        parameters = self._get_params()
        backend = self.ec2_backend
        known: Reservation | None = self.launcher.done_before("RunInstances", parameters)
        again = known is not None
        if known is None:
            data, template, number = template_of(backend, parameters.get("LaunchTemplate") or {})
            request = with_template_tags(read_request(parameters, data), template, number)
            minimum, maximum = int(parameters.get("MinCount") or 1), int(parameters.get("MaxCount") or 1)
            if not 1 <= minimum <= maximum:
                refuse("InvalidParameterValue", f"MinCount {minimum}, MaxCount {maximum}")
            self.error_on_dryrun()
            known = self.launcher.launch(backend, request, minimum=minimum, maximum=maximum)
            self.launcher.remember("RunInstances", parameters, known)
            self.launcher.calls.count(len(known.instances))
        return run_instances_xml(known, again=again)

    def create_fleet(self) -> ActionResult:
        """CreateFleet, of type instant."""
        parameters = self._get_params()
        result = self.launcher.done_before("CreateFleet", parameters)
        if result is None:
            self.error_on_dryrun()
            result = create_fleet(self.launcher, self.ec2_backend, parameters)
            self.launcher.remember("CreateFleet", parameters, result)
            self.launcher.calls.count(sum(len(group["InstanceIds"]) for group in result["Instances"]))
        return ActionResult(result)

    def create_launch_template_version(self) -> ActionResult:
        """CreateLaunchTemplateVersion: what is not given comes from SourceVersion."""
        parameters = self._get_params()
        source, template_id, _ = template_of(
            self.ec2_backend, {**parameters, "Version": parameters.get("SourceVersion") or "$Latest"}
        )
        data = (source if parameters.get("SourceVersion") else {}) | dict(parameters.get("LaunchTemplateData") or {})
        if data.get("UserData"):
            data["UserData"] = parse_user_data(str(data["UserData"]))
        self.error_on_dryrun()
        template = self.ec2_backend.get_launch_template(template_id)
        made = template.create_version(data, parameters.get("VersionDescription"))
        result = {
            "CreateTime": made.create_time,
            "DefaultVersion": template.is_default(made),
            "LaunchTemplateData": made.data,
            "LaunchTemplateId": template.id,
            "LaunchTemplateName": template.name,
            "VersionDescription": made.description,
            "VersionNumber": made.number,
        }
        return ActionResult({"LaunchTemplateVersion": result})

    def describe_launch_templates(self) -> ActionResult:
        """DescribeLaunchTemplates: pages, which moto cuts off."""
        found = self.ec2_backend.describe_launch_templates(
            template_names=self._get_param("LaunchTemplateNames", []),
            template_ids=self._get_param("LaunchTemplateIds", []),
            filters=self._filters_from_querystring(),
        )
        start, length = int(self._get_param("NextToken") or 0), int(self._get_param("MaxResults") or _TEMPLATES)
        templates = [
            {
                "CreateTime": template.create_time,
                "CreatedBy": f"arn:aws:iam::{self.current_account}:root",
                "DefaultVersionNumber": template.default_version_number,
                "LatestVersionNumber": template.latest_version_number,
                "LaunchTemplateId": template.id,
                "LaunchTemplateName": template.name,
                "Tags": template.get_tags(),
            }
            for template in found[start : start + length]
        ]
        more = str(start + length) if len(found) > start + length else None
        return ActionResult({"LaunchTemplates": templates, "NextToken": more})

    def describe_instances(self) -> str:  # type: ignore[override]  # moto takes text as well
        """DescribeInstances: pages of instances, grouped by reservation."""
        ids = self._get_param("InstanceIds", [])
        size = self._get_param("MaxResults")
        if ids and size:
            refuse(
                "InvalidParameterCombination", "The parameter instancesSet cannot be used with the parameter maxResults"
            )
        if size and not _SMALLEST_PAGE <= int(size) <= _PAGE:
            refuse("InvalidParameterValue", f"Value ( {size} ) for parameter maxResults is invalid.")
        self.error_on_dryrun()
        passes = matcher(self._filters_from_querystring())
        token = str(self._get_param("NextToken") or "0")
        if not token.isdigit():
            refuse("InvalidNextToken", "The token is not valid.")
        found = [pair for pair in self._visible(ids) if passes(pair[1])]
        start, length = int(token), int(size or _PAGE)
        page = found[start : start + length]
        self.launcher.calls.count(len(page))
        return describe_instances_xml(page, str(start + length) if len(found) > start + length else "")

    def describe_instance_status(self) -> ActionResult:
        """DescribeInstanceStatus: of running instances, unless all are asked for."""
        passes = matcher(self._filters_from_querystring())
        everything = self._get_param("IncludeAllInstances", False)
        found = [
            instance
            for _, instance in self._visible(self._get_param("InstanceIds", []))
            if (everything or instance.state == "running") and passes(instance)
        ]
        self.launcher.calls.count(len(found))
        return ActionResult({"InstanceStatuses": found})

    def terminate_instances(self) -> ActionResult:
        """TerminateInstances: all or none, and as often as one likes."""
        return ActionResult({"TerminatingInstances": self._changed(lambda instance: instance.terminate())})

    def stop_instances(self) -> ActionResult:
        """StopInstances."""
        return ActionResult({"StoppingInstances": self._changed(lambda instance: instance.stop())})

    def start_instances(self) -> ActionResult:
        """StartInstances."""
        return ActionResult({"StartingInstances": self._changed(lambda instance: instance.start())})

    def reboot_instances(self) -> EmptyResult:
        """RebootInstances: connections break."""
        for _, instance in self._visible(self._get_param("InstanceIds", [])):
            instance.reboot()
        return EmptyResult()

    def create_image(self) -> ActionResult:
        """CreateImage: of an instance that runs or is stopped; switches it off and on unless NoReboot."""
        ((_, instance),) = self._visible([self._get_param("InstanceId")])
        machine = self.launcher.hall.find(instance.id)
        if machine is None or instance.state not in {"running", "stopped"}:
            refuse(
                "IncorrectState",
                f"The instance '{instance.id}' is not in a state from which it can be imaged: {instance.state}",
            )
        devices = self._get_param("BlockDeviceMappings", [])
        sizes = [int(device["Ebs"]["VolumeSize"]) for device in devices if "VolumeSize" in device.get("Ebs", {})]
        self.error_on_dryrun()
        image = images.NewImage(
            name=self._get_param("Name"),
            description=self._get_param("Description", ""),
            tags=tags_for(self._get_param("TagSpecifications"), "image"),
            snapshot_tags=tags_for(self._get_param("TagSpecifications"), "snapshot"),
            architecture=machine.birth.architecture,
            volume_gb=max(sizes, default=_root_gb(instance)),
            bare=machine.birth.bare,
            root_device=instance.root_device_name,
        )
        reboot = not self._get_param("NoReboot", False)
        made = images.create_image(self.launcher.hall, self.ec2_backend, machine, image, reboot=reboot)
        return ActionResult({"ImageId": made})

    def copy_image(self) -> ActionResult:
        """CopyImage."""
        self.error_on_dryrun()
        region, source = self._get_param("SourceRegion"), self._get_param("SourceImageId")
        tags = tags_for(self._get_param("TagSpecifications"), "image")
        hall, description = self.launcher.hall, self._get_param("Description", "")
        values: dict[str, Any] = {"tags": tags, **({"description": description} if description else {})}
        made = images.copy_image(hall, self.ec2_backend, region, source, self._get_param("Name"), **values)
        return ActionResult({"ImageId": made})

    def deregister_image(self) -> ActionResult:
        """DeregisterImage: an image of our own."""
        name = self._get_param("ImageId")
        known = self.ec2_backend.amis.get(name)
        if known and known.owner_id != self.current_account:
            refuse("AuthFailure", f"Not authorized for image:{name}")
        self.error_on_dryrun()
        delete = bool(self._get_param("DeleteAssociatedSnapshots", False))
        images.deregister(self.launcher.hall, self.ec2_backend.region_name, name, snapshots=delete)
        return ActionResult({"Return": True})

    def register_image(self) -> ActionResult:
        """RegisterImage: refused."""
        return self._unsupported("makes images of instances only; use CreateImage")

    def get_console_output(self) -> ActionResult:
        """GetConsoleOutput: what the machine's first boot printed."""
        ((_, instance),) = self._visible([self._get_param("InstanceId")])
        machine = self.launcher.hall.find(instance.id)
        text = bytes(machine.facts.console).decode(errors="replace") if machine else ""
        output = Base64EncodedString.from_raw_string(text)
        return ActionResult({"InstanceId": instance.id, "Timestamp": utcnow(), "Output": output})

    def allocate_address(self) -> ActionResult:
        """AllocateAddress: refused."""
        return self._unsupported("hands out no public addresses")

    def associate_address(self) -> ActionResult:
        """AssociateAddress: refused."""
        return self._unsupported("hands out no public addresses")

    def request_spot_instances(self) -> ActionResult:
        """RequestSpotInstances: refused."""
        return self._unsupported("does not know this legacy call; use RunInstances or CreateFleet")

    def request_spot_fleet(self) -> ActionResult:
        """RequestSpotFleet: refused."""
        return self._unsupported("does not know this legacy call; use CreateFleet")

    def _unsupported(self, why: str) -> ActionResult:
        refuse("UnsupportedOperation", f"a rehearsal {why}")

    def _changed(self, change: Callable[[instances.Instance], InstanceState]) -> list[dict[str, Any]]:
        ids = self._get_param("InstanceIds", [])
        if not ids:
            refuse("InvalidParameterCombination", "No instances specified")
        chosen = [instance for _, instance in self._visible(ids)]
        self.error_on_dryrun()
        self.launcher.calls.count(len(chosen))
        return [
            {"InstanceId": instance.id, "PreviousState": change(instance), "CurrentState": instance.instance_state}
            for instance in chosen
        ]

    def _visible(self, ids: Iterable[str]) -> list[tuple[Reservation, instances.Instance]]:
        """Return the instances of these ids, or all, as far as they can be seen yet.

        Raises:
            EC2ClientError: an id is malformed, or not known (yet).
        """
        hall = self.launcher.hall
        oldest = time.time() - hall.settings.consistency_seconds
        pairs = {
            instance.id: (reservation, instance)
            for reservation in self.ec2_backend.reservations.values()
            for instance in reservation.instances
            if (machine := hall.find(instance.id)) and machine.facts.launched <= oldest
        }
        wanted = list(ids)
        for malformed in (name for name in wanted if not name.startswith("i-")):
            refuse("InvalidInstanceID.Malformed", f'Invalid id: "{malformed}"')
        unknown = [name for name in wanted if name not in pairs]
        if unknown:
            raise InvalidInstanceIdError(unknown)
        return [pairs[name] for name in wanted] if wanted else list(pairs.values())


class Instance(instances.Instance):
    """moto's instance, whose machine says what state it is in. The serialiser wants exactly this name."""

    launcher: ClassVar[Launcher]
    has_public_address = True

    def terminate(self) -> InstanceState:
        """End the machine; what it was before is returned."""
        return self._change(lambda machine: machine.end(USER))

    def stop(self) -> InstanceState:
        """Stop the machine."""
        return self._change(lambda machine: machine.end(USER, stop=True))

    def start(self) -> InstanceState:
        """Boot the machine again."""
        if self.state not in {"stopped", "running", "pending"}:
            refuse(
                "IncorrectInstanceState", f"The instance '{self.id}' is not in a state from which it can be started."
            )
        return self._change(self.launcher.hall.start)

    def reboot(self) -> None:
        """Break the machine's connections."""
        self.launcher.hall.act(self.id, "drop-ssh", 0)

    @property
    def instance_status(self) -> dict[str, Any]:
        """Whether the operating system is reachable."""
        return self._checks()

    @property
    def system_status(self) -> dict[str, Any]:
        """Whether the host below is reachable."""
        return self._checks()

    @property
    def public_ip(self) -> str | None:
        """The loopback address, as long as the instance runs."""
        return self.private_ip if self.has_public_address and self.state == "running" else None

    @property
    def public_ip_address(self) -> str | None:
        """As ``public_ip``."""
        return self.public_ip

    @property
    def private_ip_address(self) -> str | None:
        """The loopback address until the instance is terminated."""
        return None if self.state == "terminated" else self.private_ip

    def _change(self, change: Callable[[Machine], None]) -> InstanceState:
        before = copy.copy(self.instance_state)
        machine = self.launcher.hall.find(self.id)
        if machine:
            change(machine)
        return before

    def _checks(self) -> dict[str, Any]:
        machine = self.launcher.hall.find(self.id)
        if machine is None or self.state != "running":
            return {"Status": "not-applicable"}
        is_ok = time.time() >= machine.facts.launched + machine.settings.status_seconds
        details = [{"Name": "reachability", "Status": "passed" if is_ok else "initializing"}]
        return {"Details": details, "Status": "ok" if is_ok else "initializing"}


def install(launcher: Launcher) -> None:
    """Put our calls and our instances in the place of moto's. Once per process, before moto is served.

    Raises:
        WrongMoto: another moto is installed, or a name that is replaced does not exist in it.
    """
    installed = version("moto")
    if installed != MOTO:
        msg = f"a rehearsal needs moto {MOTO}, not {installed}: it replaces private parts; install that version"
        raise WrongMoto(msg)
    replaced = [
        *(name for name in _own(Calls) if not hasattr(EC2Response, name)),
        *(name for name in _own(Instance) if not hasattr(instances.Instance, name)),
        *([] if hasattr(amis.Ami, "block_device_mappings") else ["block_device_mappings"]),
        *([] if hasattr(EC2Backend, "create_default_vpc") else ["create_default_vpc"]),
        *([] if urls.url_paths.get("{0}/") == EC2Response.dispatch else ["url_paths"]),
    ]
    if replaced:
        msg = f"moto {installed} has no {', '.join(replaced)}; the emulation has to be brought up to date"
        raise WrongMoto(msg)
    Calls.launcher = Instance.launcher = launcher
    instances.Instance = Instance  # type: ignore[misc]  # this is how moto is made to use ours
    urls.url_paths["{0}/"] = Calls.dispatch


def _root_gb(instance: instances.Instance) -> int:
    """Return the size of an instance's root volume in GiB."""
    volume = instance.block_device_mapping.get(instance.root_device_name)
    return int(volume.size) if volume and volume.size else images.ROOT_GB


def _own(kind: type) -> list[str]:
    """Return the names that a class of ours replaces in its base."""
    added = {"launcher", "has_public_address"}
    return [name for name in vars(kind) if not name.startswith("_") and name not in added]
