"""EC2: settings of a whole account and region, of which there is one each. Whoever makes one takes what is set."""

from collections.abc import Collection

from tests.infra.provider.services.base import Account, Resource, Values, camel, pascal

_UNSET = {
    "httpEndpoint": "no-preference",
    "httpPutResponseHopLimit": -1,
    "httpTokens": "no-preference",
    "instanceMetadataTags": "no-preference",
}
_OPEN = "unblocked"
_OFF = "disabled"


class _BlockPublicAccess:
    def create(self, account: Account, inputs: Values) -> str:
        if inputs["state"] == _OPEN:
            account.call("ec2", "disable_image_block_public_access")
        else:
            state = inputs["state"]
            account.call("ec2", "enable_image_block_public_access", ImageBlockPublicAccessState=state)
        return account.id

    def read(self, account: Account, name: str, state: Values) -> Values | None:
        found = account.call("ec2", "get_image_block_public_access_state")
        return {"state": found["ImageBlockPublicAccessState"]}

    def update(self, account: Account, name: str, state: Values, inputs: Values, changed: Collection[str]) -> None:
        self.create(account, inputs)

    def delete(self, account: Account, name: str, state: Values) -> None:
        """It stays as it was; the provider only forgets it."""


class _MetadataDefaults:
    def create(self, account: Account, inputs: Values) -> str:
        wanted = {key: inputs.get(key, default) for key, default in _UNSET.items()}
        account.call("ec2", "modify_instance_metadata_defaults", **pascal(wanted))
        return account.id

    def read(self, account: Account, name: str, state: Values) -> Values | None:
        found = camel(account.call("ec2", "get_instance_metadata_defaults").get("AccountLevel", {}))
        return {key: found.get(key, default) for key, default in _UNSET.items()}

    def update(self, account: Account, name: str, state: Values, inputs: Values, changed: Collection[str]) -> None:
        self.create(account, inputs)

    def delete(self, account: Account, name: str, state: Values) -> None:
        self.create(account, {})


class _AllowedImages:
    def create(self, account: Account, inputs: Values) -> str:
        self._put(account, inputs)
        return account.region

    def read(self, account: Account, name: str, state: Values) -> Values | None:
        found = account.call("ec2", "get_allowed_images_settings")
        if found["State"] == _OFF:
            return None
        return {"state": found["State"], "imageCriterions": camel(found.get("ImageCriteria", []))}

    def update(self, account: Account, name: str, state: Values, inputs: Values, changed: Collection[str]) -> None:
        self._put(account, inputs)

    def delete(self, account: Account, name: str, state: Values) -> None:
        account.call("ec2", "replace_image_criteria_in_allowed_images_settings", ImageCriteria=[])
        account.call("ec2", "disable_allowed_images_settings")

    def _put(self, account: Account, inputs: Values) -> None:
        account.call("ec2", "enable_allowed_images_settings", AllowedImagesSettingsState=inputs["state"])
        criteria = pascal(inputs.get("imageCriterions") or [])
        account.call("ec2", "replace_image_criteria_in_allowed_images_settings", ImageCriteria=criteria)


RESOURCES: dict[str, Resource] = {
    "aws:ec2/imageBlockPublicAccess:ImageBlockPublicAccess": _BlockPublicAccess(),
    "aws:ec2/instanceMetadataDefaults:InstanceMetadataDefaults": _MetadataDefaults(),
    "aws:ec2/allowedImagesSettings:AllowedImagesSettings": _AllowedImages(),
}
