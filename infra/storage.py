"""The event's bucket, for kits on their way to a build, and the place of a secret that is put there by hand."""

import json
from typing import Any

import pulumi
import pulumi_aws as aws

from infra.settings import Place, Settings

_RECOVERY_DAYS = 30  # in which a deleted secret can be had back
_HALF_SENT_DAYS = 7


class Storage(pulumi.ComponentResource):
    """A bucket that nobody but the account reads, encrypted, over TLS only, whose content expires.

    It is protected: `pulumi destroy` refuses to remove it unless `infra.force` was set in the last `pulumi up`.

    Attributes:
        bucket_name: of the bucket.
        bucket_arn: its ARN.
        secret_arn: of the secret that `infra.make_secret` asks for, None without.
    """

    def __init__(self, name: str, settings: Settings, place: Place, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("ramp-cloud:infra:Storage", name, None, opts)
        self._settings = settings
        bucket = aws.s3.Bucket(
            f"{place.prefix}-bucket",
            bucket=place.bucket,
            force_destroy=settings.infra.force,
            opts=pulumi.ResourceOptions(parent=self, protect=not settings.infra.force),
        )
        self._close(bucket, place)
        self.bucket_name: pulumi.Output[str] = bucket.bucket
        self.bucket_arn: pulumi.Output[str] = bucket.arn
        self.secret_arn = self._secret(place) if settings.infra.make_secret else None
        self.register_outputs({"bucket_name": self.bucket_name, "bucket_arn": self.bucket_arn})

    def _close(self, bucket: aws.s3.Bucket, place: Place) -> None:
        mine = pulumi.ResourceOptions(parent=bucket)
        aws.s3.BucketOwnershipControls(
            f"{place.prefix}-owner",
            bucket=bucket.id,
            rule=aws.s3.BucketOwnershipControlsRuleArgs(object_ownership="BucketOwnerEnforced"),
            opts=mine,
        )
        blocked = aws.s3.BucketPublicAccessBlock(
            f"{place.prefix}-private",
            bucket=bucket.id,
            block_public_acls=True,
            block_public_policy=True,
            ignore_public_acls=True,
            restrict_public_buckets=True,
            opts=mine,
        )
        algorithm = aws.s3.BucketServerSideEncryptionConfigurationRuleApplyServerSideEncryptionByDefaultArgs(
            sse_algorithm="AES256"
        )
        aws.s3.BucketServerSideEncryptionConfiguration(
            f"{place.prefix}-encrypted",
            bucket=bucket.id,
            rules=[
                aws.s3.BucketServerSideEncryptionConfigurationRuleArgs(
                    apply_server_side_encryption_by_default=algorithm
                )
            ],
            opts=mine,
        )
        aws.s3.BucketLifecycleConfiguration(
            f"{place.prefix}-expiring", bucket=bucket.id, rules=self._expiry(), opts=mine
        )
        policy = json.dumps(tls_only(f"arn:{place.partition}:s3:::{place.bucket}"))
        # Two changes of one bucket's access at once are refused by S3: one after the other.
        aws.s3.BucketPolicy(
            f"{place.prefix}-tls",
            bucket=bucket.id,
            policy=policy,
            opts=pulumi.ResourceOptions(parent=bucket, depends_on=[blocked]),
        )

    def _expiry(self) -> list[aws.s3.BucketLifecycleConfigurationRuleArgs]:
        image = self._settings.image
        everything = aws.s3.BucketLifecycleConfigurationRuleFilterArgs(prefix="")
        half_sent = aws.s3.BucketLifecycleConfigurationRuleAbortIncompleteMultipartUploadArgs(
            days_after_initiation=_HALF_SENT_DAYS
        )
        rules = [
            aws.s3.BucketLifecycleConfigurationRuleArgs(
                id="half-sent",
                status="Enabled",
                filter=everything,
                abort_incomplete_multipart_upload=half_sent,
            )
        ]
        if image is None or image.schedule is None:  # a build by schedule needs the kit for as long as there are any
            days = aws.s3.BucketLifecycleConfigurationRuleExpirationArgs(days=self._settings.infra.bucket_days)
            rules.append(
                aws.s3.BucketLifecycleConfigurationRuleArgs(
                    id="old", status="Enabled", filter=everything, expiration=days
                )
            )
        return rules

    def _secret(self, place: Place) -> pulumi.Output[str]:
        """Make a secret without a value, which never gets into the stack: it is put there by hand."""
        image = self._settings.image
        secret = aws.secretsmanager.Secret(
            f"{place.prefix}-data",
            name=image.data_secret if image else None,
            description=f"Credentials for the data of the RAMP event {place.event}",
            recovery_window_in_days=0 if self._settings.infra.force else _RECOVERY_DAYS,
            opts=pulumi.ResourceOptions(parent=self, protect=not self._settings.infra.force),
        )
        return secret.arn


def tls_only(bucket_arn: str) -> dict[str, Any]:
    """Return the policy of a bucket that refuses whatever does not come over TLS."""
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "TlsOnly",
                "Effect": "Deny",
                "Principal": "*",
                "Action": "s3:*",
                "Resource": [bucket_arn, f"{bucket_arn}/*"],
                "Condition": {"Bool": {"aws:SecureTransport": "false"}},
            }
        ],
    }
