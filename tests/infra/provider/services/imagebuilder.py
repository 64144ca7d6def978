"""EC2 Image Builder: components and recipes never change; the rest is sent as a whole on every change."""

import copy
from collections.abc import Collection

from botocore.exceptions import ClientError

from tests.infra.provider.services.base import Account, Resource, Values, code_of, gone_is_fine, tag_changes

_SERVICE = "imagebuilder"
_GONE = "ResourceNotFoundException"
_NOT_SENT = frozenset({"region", "tags", "tagsAll", "name", "skipDestroy"})
_FLAGS = ("encrypted", "deleteOnTermination")  # of a volume: strings in Pulumi, booleans in AWS


class _Kind:
    """What all kinds have in common.

    Args:
        name: as in the operations: create_NAME, get_NAME, delete_NAME.
        key: parameter that holds its ARN.
    """

    def __init__(self, name: str, key: str) -> None:
        self._name = name
        self._key = key
        first, *others = name.split("_")
        self._body = first + "".join(map(str.capitalize, others))  # where its values stand in an answer

    def create(self, account: Account, inputs: Values) -> str:
        values = self._sent(inputs) | {"name": inputs["name"], "tags": inputs["tagsAll"] or None}
        return str(account.call(_SERVICE, f"create_{self._name}", **values)[self._key])

    def read(self, account: Account, name: str, state: Values) -> Values | None:
        try:
            found = account.call(_SERVICE, f"get_{self._name}", **{self._key: name})[self._body]
        except ClientError as error:
            if code_of(error) == _GONE:
                return None
            raise
        return self._shown(dict(found)) | {"arn": name, "tagsAll": found.get("tags", {})}

    def update(self, account: Account, name: str, state: Values, inputs: Values, changed: Collection[str]) -> None:
        if set(changed) - {"tagsAll", "skipDestroy"}:
            account.call(_SERVICE, f"update_{self._name}", **{self._key: name}, **self._sent(inputs))
        gone, new = tag_changes(state, inputs)
        if gone:
            account.call(_SERVICE, "untag_resource", resourceArn=name, tagKeys=gone)
        if new:
            account.call(_SERVICE, "tag_resource", resourceArn=name, tags=new)

    def delete(self, account: Account, name: str, state: Values) -> None:
        if state.get("skipDestroy"):
            return  # neither at the end nor when another takes its place
        with gone_is_fine(_GONE):
            account.call(_SERVICE, f"delete_{self._name}", **{self._key: name})

    def _sent(self, inputs: Values) -> Values:
        return copy.deepcopy({key: value for key, value in inputs.items() if key not in _NOT_SENT})

    def _shown(self, found: Values) -> Values:
        return copy.deepcopy({key: value for key, value in found.items() if key != "tags"})


class _Component(_Kind):
    def _sent(self, inputs: Values) -> Values:
        values = super()._sent(inputs)
        return values | {"semanticVersion": values.pop("version")}

    def _shown(self, found: Values) -> Values:
        values = super()._shown(found)
        values.pop("uri", None)  # the provider never reads it back
        return values


class _Recipe(_Kind):
    def _sent(self, inputs: Values) -> Values:
        values = super()._sent(inputs)
        values["semanticVersion"] = values.pop("version")
        for mapping in values.get("blockDeviceMappings", ()):
            ebs = mapping.get("ebs", {})
            ebs.update({key: ebs[key] == "true" for key in _FLAGS if ebs.get(key)})
        for component in values["components"]:
            for parameter in component.get("parameters", ()):
                parameter["value"] = [parameter["value"]]
        return values

    def _shown(self, found: Values) -> Values:
        values = super()._shown(found)
        for mapping in values.get("blockDeviceMappings", ()):
            ebs = mapping.get("ebs", {})
            ebs.update({key: str(ebs[key]).lower() for key in _FLAGS if key in ebs})
        for component in values.get("components", ()):
            for parameter in component.get("parameters", ()):
                parameter["value"] = parameter["value"][0]
        return values


RESOURCES: dict[str, Resource] = {
    "aws:imagebuilder/component:Component": _Component("component", "componentBuildVersionArn"),
    "aws:imagebuilder/imageRecipe:ImageRecipe": _Recipe("image_recipe", "imageRecipeArn"),
    "aws:imagebuilder/imagePipeline:ImagePipeline": _Kind("image_pipeline", "imagePipelineArn"),
    "aws:imagebuilder/infrastructureConfiguration:InfrastructureConfiguration": _Kind(
        "infrastructure_configuration", "infrastructureConfigurationArn"
    ),
    "aws:imagebuilder/distributionConfiguration:DistributionConfiguration": _Kind(
        "distribution_configuration", "distributionConfigurationArn"
    ),
    "aws:imagebuilder/lifecyclePolicy:LifecyclePolicy": _Kind("lifecycle_policy", "lifecyclePolicyArn"),
}
