"""Brings a kit that is a folder to AWS: as an archive in the stack's bucket, where the kit document fetches it."""

from collections.abc import Callable

from image_builder.kit import FolderKit
from image_builder.recipe import ImagePlan
from runner.aws.session import AwsSession
from runner.errors import AwsError, ImageError

_MOST_BYTES = 5 * 1024**3  # of one object that is put in one piece


def upload_kit(session: AwsSession, plan: ImagePlan, bucket: str | None, note: Callable[[str], None]) -> bool:
    """Put the archive of a kit that is a folder into the bucket, unless it is there; return whether it was put.

    The kit document fetches it from there. Does nothing for a kit that comes from git.

    Raises:
        ImageError: there is no bucket, or the kit is too large.
    """
    kit = plan.kit
    if not isinstance(kit, FolderKit):
        return False
    if bucket is None:
        msg = "kit: a kit that is a folder goes to AWS through a bucket, and the stack's outputs name none; run "
        raise ImageError(msg + "`pulumi up`, or give the address of a git repository")
    try:
        session.call("s3", "head_object", Bucket=bucket, Key=kit.key)
    except AwsError as error:
        # Without the right to list a bucket, S3 forbids what is not there.
        if str(error.fields.get("code")) not in {"404", "403", "NoSuchKey", "NotFound"}:
            raise
    else:
        return False
    archive = kit.archive()
    try:
        if (size := archive.stat().st_size) > _MOST_BYTES:
            msg = f"kit: {size / 1e9:.1f} GB are too many to upload; leave the data out and have them fetched: data: s3"
            raise ImageError(msg)
        amount = f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
        note(f"uploading the kit, {amount}, to s3://{bucket}/{kit.key}")
        with archive.open("rb") as file:
            session.call("s3", "put_object", Bucket=bucket, Key=kit.key, Body=file)
    finally:
        archive.unlink(missing_ok=True)
    return True
