"""What `pulumi up` makes for an event's image, made in an emulated account: for `--emulated`, and for the tests.

Names, versions and their meaning are those of the real stack; what is there already is brought up to date.
"""

import dataclasses
from pathlib import Path
from typing import Any

from image_builder.documents import Document
from image_builder.pipeline import Patience
from image_builder.recipe import ImagePlan, is_version
from image_builder.release import Release
from runner.aws.session import AwsSession
from runner.aws.tags import EVENT, IMAGE, OWNER
from runner.errors import ImageError
from runner.stack import write

_PATIENCE = Patience(poll=0.2, late=1.0)  # nothing comes late here
_ROOT_DEVICE = "/dev/sda1"


def bring_up(release: Release) -> Release:
    """Let the emulated account have the pipeline that the event's config asks for; return the release that knows it.

    Raises:
        ConfigError, ImageError: the image cannot be planned.
        AwsError: the emulation refuses something, as AWS would.
    """
    outputs = release.outputs
    if outputs is None or outputs.bucket is None or outputs.image_profile is None:
        msg = "an emulated account has outputs with a bucket and a profile; remove its folder and begin anew"
        raise ImageError(msg)
    tags = {EVENT: release.config.event_name, OWNER: release.store.uid}
    pipeline = provision(release.plan, release.session, bucket=outputs.bucket, profile=outputs.image_profile, tags=tags)
    write(Path(release.keys["stack_outputs"]), dataclasses.replace(outputs, image_pipeline=pipeline))
    return dataclasses.replace(release, patience=_PATIENCE)  # it reads the outputs anew


def provision(plan: ImagePlan, session: AwsSession, *, bucket: str, profile: str, tags: dict[str, str]) -> str:
    """Make components, recipe, configurations and pipeline of an image, and return the pipeline's ARN.

    Args:
        plan: what the image is made of.
        bucket: for documents that are too long for a call; exists.
        profile: instance profile of build instances; exists.
        tags: on all that is made.

    Raises:
        AwsError: the emulation refuses something, as AWS would.
    """
    return _Stack(plan, session, bucket=bucket, profile=profile, tags=tags).bring_up()


class _Stack:
    def __init__(
        self, plan: ImagePlan, session: AwsSession, *, bucket: str, profile: str, tags: dict[str, str]
    ) -> None:
        self._plan = plan
        self._session = session
        self._bucket = bucket
        self._profile = profile
        self._tags = {**tags, IMAGE: plan.name}

    def bring_up(self) -> str:
        plan = self._plan
        pipeline = {
            "imageRecipeArn": self._recipe([self._component(document) for document in plan.documents]),
            "infrastructureConfigurationArn": self._upsert("infrastructure_configuration", self._infrastructure()),
            "distributionConfigurationArn": self._upsert("distribution_configuration", self._distribution()),
            "imageTestsConfiguration": {"imageTestsEnabled": True},
            "loggingConfiguration": {"imageLogGroupName": f"/aws/imagebuilder/{plan.name}"},
        }
        return self._upsert("image_pipeline", pipeline)

    def _component(self, document: Document) -> str:
        """Return the ARN of a document's component; the same content is the same version."""
        name = f"{self._plan.name}-{document.name}"
        filters = [{"name": "name", "values": [name]}, {"name": "version", "values": [document.version]}]
        found = self._call("list_components", owner="Self", filters=filters)["componentVersionList"]
        if found:
            builds = self._call("list_component_build_versions", componentVersionArn=found[0]["arn"])
            return str(builds["componentSummaryList"][0]["arn"])
        if document.is_long:
            key = f"documents/{name}-{document.version}.yaml"
            self._session.call("s3", "put_object", Bucket=self._bucket, Key=key, Body=document.text.encode())
            content = {"uri": f"s3://{self._bucket}/{key}"}
        else:
            content = {"data": document.text}
        made = self._call(
            "create_component",
            name=name,
            semanticVersion=document.version,
            platform="Linux",
            description=document.description or document.name,  # AWS takes no empty one
            tags=self._tags,
            **content,
        )
        return str(made["componentBuildVersionArn"])

    def _recipe(self, components: list[str]) -> str:
        plan = self._plan
        filters = [{"name": "name", "values": [plan.name]}]
        recipes = self._call("list_image_recipes", owner="Self", filters=filters)["imageRecipeSummaryList"]
        same = [each["arn"] for each in recipes if is_version(each["arn"].rpartition("/")[2], plan.version)]
        if found := [arn for arn in same if self._components_of(arn) == components]:
            return str(found[0])
        volume = {"volumeSize": plan.volume_gb, "volumeType": "gp3", "encrypted": True, "deleteOnTermination": True}
        made = self._call(
            "create_image_recipe",
            name=plan.name,
            semanticVersion=plan.version,
            parentImage=plan.parent,
            components=[{"componentArn": arn} for arn in components],
            blockDeviceMappings=[{"deviceName": plan.root_device or _ROOT_DEVICE, "ebs": volume}],
            tags=self._tags,
        )
        return str(made["imageRecipeArn"])

    def _components_of(self, recipe: str) -> list[str]:
        found = self._call("get_image_recipe", imageRecipeArn=recipe)["imageRecipe"]
        return [each["componentArn"] for each in found["components"]]

    def _infrastructure(self) -> dict[str, Any]:
        return {
            "instanceTypes": [self._plan.instance_type],
            "instanceProfileName": self._profile,
            "terminateInstanceOnFailure": True,
            "instanceMetadataOptions": {"httpTokens": "required", "httpPutResponseHopLimit": 1},
            "resourceTags": {name: self._tags[name] for name in (OWNER, EVENT) if name in self._tags},
        }

    def _distribution(self) -> dict[str, Any]:
        image = {"name": self._plan.ami_name, "amiTags": {**self._tags, **self._plan.ami_tags}}
        regions = self._plan.regions or (self._session.region(),)
        return {"distributions": [{"region": region, "amiDistributionConfiguration": image} for region in regions]}

    def _upsert(self, kind: str, values: dict[str, Any]) -> str:
        """Make something that has a name and no version, or bring it to these values; return its ARN."""
        words = kind.split("_")
        key = words[0] + "".join(word.capitalize() for word in words[1:]) + "Arn"
        filters = [{"name": "name", "values": [self._plan.name]}]
        listed = self._call(f"list_{kind}s", filters=filters)
        (found,) = [value for value in listed.values() if isinstance(value, list)]
        if not found:
            return str(self._call(f"create_{kind}", name=self._plan.name, tags=self._tags, **values)[key])
        self._call(f"update_{kind}", **{key: found[0]["arn"]}, **values)
        return str(found[0]["arn"])

    def _call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        return self._session.call("imagebuilder", operation, **parameters)
