"""Settings of the whole account in the event's region, taken over only when config.yml names them.

There is one of each per account and region: two stacks must not both name one. Removing a guard puts AWS's own default
back.
"""

import pulumi
import pulumi_aws as aws

from infra.settings import Place, Settings

_CANONICAL = "099720109477"  # publishes Ubuntu's images


class Guards(pulumi.ComponentResource):
    """The guards that `infra.guards` names; none by default."""

    def __init__(self, name: str, settings: Settings, place: Place, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("ramp-cloud:infra:Guards", name, None, opts)
        wanted, mine = settings.infra.guards, pulumi.ResourceOptions(parent=self)
        if "imdsv2" in wanted:
            aws.ec2.InstanceMetadataDefaults(
                f"{place.prefix}-imdsv2", http_tokens="required", http_put_response_hop_limit=1, opts=mine
            )
        if "private-images" in wanted:
            aws.ec2.ImageBlockPublicAccess(f"{place.prefix}-private-images", state="block-new-sharing", opts=mine)
        for guard, state in (("allowed-images-audit", "audit-mode"), ("allowed-images", "enabled")):
            if guard in wanted:
                # The account's own images are always allowed; the bases of images are Amazon's and Canonical's.
                criterion = aws.ec2.AllowedImagesSettingsImageCriterionArgs(image_providers=["amazon", _CANONICAL])
                aws.ec2.AllowedImagesSettings(
                    f"{place.prefix}-allowed-images", state=state, image_criterions=[criterion], opts=mine
                )
        self.register_outputs({})
