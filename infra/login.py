"""How the runner logs in, and what every instance of the event has in common: key pair and launch template."""

from collections.abc import Mapping

import pulumi
import pulumi_aws as aws

from infra.settings import Place, Settings

_ROOT_DEVICE = "/dev/sda1"
_HANDED_ON_TO = ("instance", "volume", "network-interface")


class Login(pulumi.ComponentResource):
    """The key pair, made from a public key, and the launch template.

    The template says what must hold for instances that anybody launches from it; the runner says the same again in
    every launch. It has no network interfaces: the runner chooses the subnet of each launch.

    Args:
        security_group: of the instances.
        tags: on all that is launched from the template.
        root_device: of the event's image; None: the one of Ubuntu's images.

    Attributes:
        key_name: of the key pair.
        launch_template_id: of the launch template.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        place: Place,
        *,
        security_group: pulumi.Input[str],
        tags: Mapping[str, str],
        root_device: str | None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("ramp-cloud:infra:Login", name, None, opts)
        mine = pulumi.ResourceOptions(parent=self)
        key = aws.ec2.KeyPair(
            place.prefix, key_name=settings.worker.key_name, public_key=settings.public_key, opts=mine
        )
        given = settings.worker.launch_template
        template = aws.ec2.LaunchTemplate(
            place.prefix,
            name=given if given and not given.startswith("lt-") else None,
            description=f"Instances of the RAMP event {place.event}",
            update_default_version=True,
            key_name=key.key_name,
            vpc_security_group_ids=[security_group],
            instance_initiated_shutdown_behavior="terminate",  # stopped ones would stay on, and be paid as disks
            metadata_options=aws.ec2.LaunchTemplateMetadataOptionsArgs(
                http_endpoint="enabled", http_tokens="required", http_put_response_hop_limit=1
            ),
            block_device_mappings=[
                aws.ec2.LaunchTemplateBlockDeviceMappingArgs(
                    device_name=root_device or _ROOT_DEVICE,
                    ebs=aws.ec2.LaunchTemplateBlockDeviceMappingEbsArgs(
                        encrypted="true", delete_on_termination="true", volume_type="gp3"
                    ),
                )
            ],
            tag_specifications=[
                aws.ec2.LaunchTemplateTagSpecificationArgs(resource_type=kind, tags={**tags}) for kind in _HANDED_ON_TO
            ],
            opts=mine,
        )
        self.key_name: pulumi.Output[str] = key.key_name
        self.launch_template_id: pulumi.Output[str] = template.id
        self.register_outputs({"key_name": self.key_name, "launch_template_id": self.launch_template_id})
