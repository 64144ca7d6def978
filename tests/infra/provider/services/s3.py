"""S3: a bucket, and the settings that stand beside it as resources of their own."""

import json
from collections.abc import Collection
from typing import Any

from botocore.exceptions import ClientError

from tests.infra.provider.services.base import (
    Account,
    Resource,
    Values,
    as_map,
    as_pairs,
    camel,
    code_of,
    gone_is_fine,
    half_made,
    pascal,
)

_NO_BUCKET = ("NoSuchBucket", "404")
_FLAGS = ("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets")
_FIRST_REGION = "us-east-1"  # the one that CreateBucket takes no name for


class _Bucket:
    def create(self, account: Account, inputs: Values) -> str:
        name, region = inputs["bucket"], inputs["region"]
        place = {"LocationConstraint": region} if region != _FIRST_REGION else None
        account.call(
            "s3",
            "create_bucket",
            Bucket=name,
            CreateBucketConfiguration=place,
            ObjectLockEnabledForBucket=inputs.get("objectLockEnabled"),
        )
        if inputs["tagsAll"]:
            with half_made(name):
                account.call("s3", "put_bucket_tagging", Bucket=name, Tagging={"TagSet": as_pairs(inputs["tagsAll"])})
        return str(name)

    def read(self, account: Account, name: str, state: Values) -> Values | None:
        try:
            account.call("s3", "head_bucket", Bucket=name)
        except ClientError as error:
            if code_of(error) in _NO_BUCKET:
                return None
            raise
        tags: list[dict[str, str]] = []
        with gone_is_fine("NoSuchTagSet"):
            tags = account.call("s3", "get_bucket_tagging", Bucket=name)["TagSet"]
        return {
            "arn": f"arn:aws:s3:::{name}",
            "bucket": name,
            "bucketDomainName": f"{name}.s3.amazonaws.com",
            "bucketRegion": state["region"],
            "bucketRegionalDomainName": f"{name}.s3.{state['region']}.amazonaws.com",
            "tagsAll": as_map(tags),
        }

    def update(self, account: Account, name: str, state: Values, inputs: Values, changed: Collection[str]) -> None:
        if "tagsAll" not in changed:
            return  # forceDestroy is only noted
        if inputs["tagsAll"]:
            account.call("s3", "put_bucket_tagging", Bucket=name, Tagging={"TagSet": as_pairs(inputs["tagsAll"])})
        else:
            account.call("s3", "delete_bucket_tagging", Bucket=name)

    def delete(self, account: Account, name: str, state: Values) -> None:
        with gone_is_fine(*_NO_BUCKET):
            try:
                account.call("s3", "delete_bucket", Bucket=name)
            except ClientError as error:
                if code_of(error) != "BucketNotEmpty" or not state.get("forceDestroy"):
                    raise
                _empty(account, name)
                account.call("s3", "delete_bucket", Bucket=name)


def _empty(account: Account, bucket: str) -> None:
    """Delete every version and every mark of a deletion."""
    for page in account.client("s3").get_paginator("list_object_versions").paginate(Bucket=bucket):
        for each in [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]:
            account.call("s3", "delete_object", Bucket=bucket, Key=each["Key"], VersionId=each["VersionId"])


class _Setting:
    """Something that a bucket has one of; its id is the bucket's name."""

    put: str
    get: str
    missing: str
    remove: str = ""

    def create(self, account: Account, inputs: Values) -> str:
        account.call("s3", self.put, Bucket=inputs["bucket"], **self.sent(inputs))
        return str(inputs["bucket"])

    def read(self, account: Account, name: str, state: Values) -> Values | None:
        try:
            found = account.call("s3", self.get, Bucket=name)
        except ClientError as error:
            if code_of(error) in (*_NO_BUCKET, self.missing):
                return None
            raise
        return {"bucket": name, **self.shown(found)}

    def update(self, account: Account, name: str, state: Values, inputs: Values, changed: Collection[str]) -> None:
        account.call("s3", self.put, Bucket=name, **self.sent(inputs))

    def delete(self, account: Account, name: str, state: Values) -> None:
        with gone_is_fine(*_NO_BUCKET, self.missing):
            account.call("s3", self.remove, Bucket=name)

    def sent(self, inputs: Values) -> Values:
        raise NotImplementedError

    def shown(self, found: Values) -> Values:
        raise NotImplementedError


class _PublicAccess(_Setting):
    put, get, remove = "put_public_access_block", "get_public_access_block", "delete_public_access_block"
    missing = "NoSuchPublicAccessBlockConfiguration"

    def sent(self, inputs: Values) -> Values:
        return {"PublicAccessBlockConfiguration": pascal({name: inputs[name] for name in _FLAGS})}

    def shown(self, found: Values) -> Values:
        return dict(camel(found["PublicAccessBlockConfiguration"]))

    def delete(self, account: Account, name: str, state: Values) -> None:
        if not state.get("skipDestroy"):
            super().delete(account, name, state)


class _Policy(_Setting):
    put, get, remove = "put_bucket_policy", "get_bucket_policy", "delete_bucket_policy"
    missing = "NoSuchBucketPolicy"

    def sent(self, inputs: Values) -> Values:
        return {"Policy": inputs["policy"]}

    def shown(self, found: Values) -> Values:
        return {"policy": json.dumps(json.loads(found["Policy"]))}


class _Versioning(_Setting):
    put, get, missing = "put_bucket_versioning", "get_bucket_versioning", "NoSuchVersioning"

    def create(self, account: Account, inputs: Values) -> str:
        if inputs["versioningConfiguration"]["status"] == "Disabled":
            return str(inputs["bucket"])  # as it is
        return super().create(account, inputs)

    def sent(self, inputs: Values) -> Values:
        return {"VersioningConfiguration": pascal(inputs["versioningConfiguration"])}

    def shown(self, found: Values) -> Values:
        return {"versioningConfiguration": {"status": found.get("Status", "Disabled")}}

    def delete(self, account: Account, name: str, state: Values) -> None:
        if state["versioningConfiguration"]["status"] == "Disabled":
            return
        with gone_is_fine(*_NO_BUCKET):
            account.call("s3", self.put, Bucket=name, VersioningConfiguration={"Status": "Suspended"})


class _Encryption(_Setting):
    put, get, remove = "put_bucket_encryption", "get_bucket_encryption", "delete_bucket_encryption"
    missing = "ServerSideEncryptionConfigurationNotFoundError"

    def sent(self, inputs: Values) -> Values:
        rules = []
        for each in inputs["rules"]:
            default = each.get("applyServerSideEncryptionByDefault")
            rule: Values = {"BucketKeyEnabled": each.get("bucketKeyEnabled", False)}
            if default:
                named = {"SSEAlgorithm": default["sseAlgorithm"], "KMSMasterKeyID": default.get("kmsMasterKeyId")}
                rule["ApplyServerSideEncryptionByDefault"] = {k: v for k, v in named.items() if v}
            rules.append(rule)
        return {"ServerSideEncryptionConfiguration": {"Rules": rules}}

    def shown(self, found: Values) -> Values:
        rules = []
        for each in found["ServerSideEncryptionConfiguration"]["Rules"]:
            default = each.get("ApplyServerSideEncryptionByDefault", {})
            named = {"sseAlgorithm": default.get("SSEAlgorithm"), "kmsMasterKeyId": default.get("KMSMasterKeyID")}
            shown = {k: v for k, v in named.items() if v}
            rules.append(
                {"applyServerSideEncryptionByDefault": shown, "bucketKeyEnabled": each.get("BucketKeyEnabled", False)}
            )
        return {"rules": rules}


class _Lifecycle(_Setting):
    put, get = "put_bucket_lifecycle_configuration", "get_bucket_lifecycle_configuration"
    remove, missing = "delete_bucket_lifecycle", "NoSuchLifecycleConfiguration"

    def sent(self, inputs: Values) -> Values:
        return {"LifecycleConfiguration": {"Rules": [self._rule(each) for each in inputs["rules"]]}}

    def shown(self, found: Values) -> Values:
        return {"rules": [camel({**each, "Id": each["ID"]}) for each in found["Rules"]]}

    def _rule(self, given: Values) -> Values:
        rule = dict(pascal(given))
        rule["ID"] = rule.pop("Id")
        rule.setdefault("Filter", {"Prefix": ""})
        if not rule["Filter"]:
            rule["Filter"] = {"Prefix": ""}
        return rule


class _Ownership(_Setting):
    put, get = "put_bucket_ownership_controls", "get_bucket_ownership_controls"
    remove, missing = "delete_bucket_ownership_controls", "OwnershipControlsNotFoundError"

    def sent(self, inputs: Values) -> Values:
        return {"OwnershipControls": {"Rules": [pascal(inputs["rule"])]}}

    def shown(self, found: Values) -> Values:
        return {"rule": camel(found["OwnershipControls"]["Rules"][0])}


_KINDS: dict[str, Any] = {
    "aws:s3/bucket:Bucket": _Bucket(),
    "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock": _PublicAccess(),
    "aws:s3/bucketPolicy:BucketPolicy": _Policy(),
    "aws:s3/bucketVersioning:BucketVersioning": _Versioning(),
    "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration": _Encryption(),
    "aws:s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration": _Lifecycle(),
    "aws:s3/bucketOwnershipControls:BucketOwnershipControls": _Ownership(),
}
RESOURCES: dict[str, Resource] = _KINDS
