"""What builds the event's image: EC2 Image Builder's components, recipe, configurations and pipeline.

Content never changes under a name and version: a component and the recipe have their version in their logical name, so
new content is a new resource, and the old one stays in AWS for the images that were built from it.
"""

import pulumi
import pulumi_aws as aws
from pulumi_aws import imagebuilder as ib

from image_builder.recipe import ImagePlan, component_version
from infra.settings import Place, Settings
from runner.aws.tags import IMAGE

_ROOT_DEVICE = "/dev/sda1"
_SCHEDULES = {"weekly": "cron(0 3 ? * sun *)", "monthly": "cron(0 3 1 * ? *)"}  # UTC
_UNUSED_DAYS = 30


class Image(pulumi.ComponentResource):
    """The pipeline of the event's image and all that it names. Everything is named after the image.

    The logical names begin with the image's: another name makes all of it anew beside the old, which then goes in the
    order that Image Builder asks for.

    Args:
        profile: name of the instance profile of build instances.
        cleaner: ARN of the role by which AWS removes old images; None: it removes none.
        group: their security group.
        subnet: where they are launched.
        tags: what is handed on to instances and images.

    Attributes:
        pipeline_arn: the pipeline's ARN.
        log_group: where builds log.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        place: Place,
        plan: ImagePlan,
        *,
        profile: pulumi.Input[str],
        cleaner: pulumi.Input[str] | None,
        group: pulumi.Input[str],
        subnet: str,
        tags: dict[str, str],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("ramp-cloud:infra:Image", name, None, opts)
        self._settings, self._place, self._plan = settings, place, plan
        self._tags = {IMAGE: plan.name}
        self._handed_on = tags
        self._is_new = not self._is_there()
        # First of all that is the image's, and gone last: while it is there the newest components are the stack's own.
        infrastructure = self._infrastructure(profile, group, subnet)
        mine = pulumi.ResourceOptions(parent=self, depends_on=[infrastructure])
        recipe = self._recipe([self._component(number, mine) for number in range(len(plan.documents))])
        # Image Builder would make it by itself at the first build, to be kept for ever.
        self.log_group = f"/aws/imagebuilder/{plan.name}"
        logs = aws.cloudwatch.LogGroup(
            f"{plan.name}-log",
            name=self.log_group,
            retention_in_days=settings.infra.log_days,
            opts=pulumi.ResourceOptions(parent=self),
        )
        pipeline = ib.ImagePipeline(
            f"{plan.name}-pipeline",
            name=plan.name,
            description=f"Image of the RAMP event {place.event}",
            image_recipe_arn=recipe.arn,
            infrastructure_configuration_arn=infrastructure.arn,
            distribution_configuration_arn=self._distribution().arn,
            image_tests_configuration=ib.ImagePipelineImageTestsConfigurationArgs(image_tests_enabled=True),
            logging_configuration=ib.ImagePipelineLoggingConfigurationArgs(image_log_group_name=logs.name),
            schedule=self._schedule(),
            tags=self._tags,
            opts=pulumi.ResourceOptions(parent=self),
        )
        if settings.image is not None and settings.image.keep is not None and cleaner is not None:
            self._lifecycle(settings.image.keep, cleaner)
        self.pipeline_arn: pulumi.Output[str] = pipeline.arn
        self.register_outputs({"pipeline_arn": self.pipeline_arn, "log_group": self.log_group})

    def _component(self, number: int, mine: pulumi.ResourceOptions) -> ib.Component:
        document = self._plan.documents[number]
        name = f"{self._plan.name}-{document.name}"
        version = component_version(document.version, self._versions(name), is_new=self._is_new)
        return ib.Component(
            f"{name}-{version}",
            name=name,
            version=version,
            platform="Linux",
            description=document.description or None,
            data=document.text,
            skip_destroy=True,  # images and recipes that were made with it name it; `./inv prune-images` removes it
            tags=self._tags,
            opts=mine,
        )

    def _is_there(self) -> bool:
        """Whether AWS has the stack's image already, under its name."""
        found = ib.get_infrastructure_configurations(
            filters=[ib.GetInfrastructureConfigurationsFilterArgs(name="name", values=[self._plan.name])],
            opts=pulumi.InvokeOptions(parent=self),
        )
        return bool(found.arns)

    def _versions(self, component: str) -> list[str]:
        """Return the versions of a component that are in AWS, those that left the stack too."""
        found = ib.get_components(
            owner="Self",
            filters=[ib.GetComponentsFilterArgs(name="name", values=[component])],
            opts=pulumi.InvokeOptions(parent=self),
        )
        return [arn.split("/")[2] for arn in found.arns]  # ...:component/NAME/VERSION, with or without /BUILD

    def _recipe(self, components: list[ib.Component]) -> ib.ImageRecipe:
        plan = self._plan
        volume = ib.ImageRecipeBlockDeviceMappingEbsArgs(
            volume_size=plan.volume_gb, volume_type="gp3", encrypted="true", delete_on_termination="true"
        )
        device = ib.ImageRecipeBlockDeviceMappingArgs(device_name=self._root_device(), ebs=volume)
        return ib.ImageRecipe(
            f"{plan.name}-recipe-{plan.version}",
            name=plan.name,
            version=plan.version,  # AWS puts a number for its x: a content that comes back is no conflict
            parent_image=plan.parent,
            components=[ib.ImageRecipeComponentArgs(component_arn=component.arn) for component in components],
            block_device_mappings=[device],
            tags=self._tags,
            opts=pulumi.ResourceOptions(parent=self, retain_on_delete=True),
        )

    def _root_device(self) -> str:
        plan = self._plan
        if plan.root_device is not None or not plan.parent.startswith("ami-"):
            return plan.root_device or _ROOT_DEVICE
        by_id = aws.ec2.GetAmiFilterArgs(name="image-id", values=[plan.parent])
        return aws.ec2.get_ami(filters=[by_id], opts=pulumi.InvokeOptions(parent=self)).root_device_name

    def _infrastructure(
        self, profile: pulumi.Input[str], group: pulumi.Input[str], subnet: str
    ) -> ib.InfrastructureConfiguration:
        return ib.InfrastructureConfiguration(
            f"{self._plan.name}-infrastructure",
            name=self._plan.name,
            instance_types=[self._plan.instance_type],
            instance_profile_name=profile,
            security_group_ids=[group],
            subnet_id=subnet,
            terminate_instance_on_failure=True,  # the provider's default would leave a paid instance
            instance_metadata_options=ib.InfrastructureConfigurationInstanceMetadataOptionsArgs(
                http_tokens="required", http_put_response_hop_limit=1
            ),
            resource_tags=self._handed_on,
            tags=self._tags,
            opts=pulumi.ResourceOptions(parent=self),
        )

    def _distribution(self) -> ib.DistributionConfiguration:
        image = ib.DistributionConfigurationDistributionAmiDistributionConfigurationArgs(
            name=self._plan.ami_name, ami_tags={**self._handed_on, **self._plan.ami_tags}
        )
        return ib.DistributionConfiguration(
            f"{self._plan.name}-distribution",
            name=self._plan.name,
            distributions=[
                ib.DistributionConfigurationDistributionArgs(region=region, ami_distribution_configuration=image)
                for region in self._plan.regions or (self._settings.region,)
            ],
            tags=self._tags,
            opts=pulumi.ResourceOptions(parent=self),
        )

    def _schedule(self) -> ib.ImagePipelineScheduleArgs | None:
        wanted = self._plan.schedule
        if wanted is None:
            return None
        # Always at that time: AWS sees new versions of components, not new packages of the base.
        return ib.ImagePipelineScheduleArgs(
            schedule_expression=_SCHEDULES.get(wanted, wanted),
            pipeline_execution_start_condition="EXPRESSION_MATCH_ONLY",
            timezone="Etc/UTC",
        )

    def _lifecycle(self, keep: int, cleaner: pulumi.Input[str]) -> None:
        """Let AWS remove old images by itself, for an event that builds by schedule and that nobody looks after.

        It does not know which images are accepted, so it spares those that were launched of late.
        """
        spared = ib.LifecyclePolicyPolicyDetailExclusionRulesAmisArgs(
            is_public=False,
            last_launched=ib.LifecyclePolicyPolicyDetailExclusionRulesAmisLastLaunchedArgs(
                unit="DAYS", value=_UNUSED_DAYS
            ),
        )
        ib.LifecyclePolicy(
            f"{self._plan.name}-lifecycle",
            name=self._plan.name,
            description=f"Keeps {keep} images",
            execution_role=cleaner,
            resource_type="AMI_IMAGE",
            resource_selection=ib.LifecyclePolicyResourceSelectionArgs(
                recipes=[ib.LifecyclePolicyResourceSelectionRecipeArgs(name=self._plan.name, semantic_version="x.x.x")]
            ),
            policy_details=[
                ib.LifecyclePolicyPolicyDetailArgs(
                    action=ib.LifecyclePolicyPolicyDetailActionArgs(
                        type="DELETE",
                        include_resources=ib.LifecyclePolicyPolicyDetailActionIncludeResourcesArgs(
                            amis=True, snapshots=True
                        ),
                    ),
                    filter=ib.LifecyclePolicyPolicyDetailFilterArgs(type="COUNT", value=keep),
                    exclusion_rules=ib.LifecyclePolicyPolicyDetailExclusionRulesArgs(amis=spared),
                )
            ],
            tags=self._tags,
            opts=pulumi.ResourceOptions(parent=self),
        )
