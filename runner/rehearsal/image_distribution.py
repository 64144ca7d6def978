"""How the emulated Image Builder gives a finished image its name and tags, and brings it to other regions."""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from moto.ec2.models import ec2_backends
from moto.ssm.models import ssm_backends

from runner.rehearsal import images
from runner.rehearsal.account import ACCOUNT
from runner.rehearsal.hall import Hall
from runner.rehearsal.image_machine import CREATED_BY

_DATE = re.compile(r"\{\{\s*imagebuilder:buildDate\s*\}\}")
_USUAL_GB = 8


def distribute(
    hall: Hall, home: str, image: Mapping[str, Any], ami: str, now: datetime
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every region with the AMI that is there now, as outputResources has it. The lock is held.

    Args:
        home: region of the build, whose AMI gets another name.
        image: values of the image.
        ami: the AMI in ``home``.

    Raises:
        EC2ClientError: it cannot be registered there.
    """
    date = now.isoformat(timespec="milliseconds").replace("+00:00", "Z").replace(":", "-")
    usual = [{"region": home}]
    for each in image.get("distributionConfiguration", {}).get("distributions", usual):
        wanted = each.get("amiDistributionConfiguration", {})
        name = _DATE.sub(date, wanted.get("name", f"{image['name']} {{{{ imagebuilder:buildDate }}}}"))
        recipe = image["imageRecipe"]
        tags = {
            **recipe.get("amiTags", {}),
            **wanted.get("amiTags", {}),
            "Ec2ImageBuilderArn": image["arn"],
            **CREATED_BY,
        }
        region = each["region"]
        if region == home:
            made = ami
            images.rename(home, ami, name)
            ec2_backends[ACCOUNT][home].create_tags([ami], tags)
        else:
            known = ec2_backends[ACCOUNT][home].amis[ami]
            made = images.register_image(
                hall,
                region,
                name,
                tags=tags,
                snapshot_tags=CREATED_BY,
                architecture=known.architecture or "x86_64",
                volume_gb=volume_gb(recipe),
            )
        described = wanted.get("description")
        if described:
            ec2_backends[ACCOUNT][region].amis[made].description = described
        for parameter in each.get("ssmParameterConfigurations", ()):
            _put_parameter(region, parameter, made)
        facts = {"region": region, "image": made, "name": name, "accountId": ACCOUNT, "state": {"status": "AVAILABLE"}}
        yield region, facts | ({"description": described} if described else {})


def volume_gb(recipe: Mapping[str, Any]) -> int:
    """Return the size of the root volume that a recipe asks for, in GB."""
    sizes = [each.get("ebs", {}).get("volumeSize") for each in recipe.get("blockDeviceMappings", ())]
    return next((int(size) for size in sizes if size), _USUAL_GB)


def _put_parameter(region: str, wanted: Mapping[str, Any], ami: str) -> None:
    ssm_backends[ACCOUNT][region].put_parameter(
        wanted["parameterName"],
        "",
        ami,
        "String",
        "",
        "",
        overwrite=True,
        tags=[],
        data_type=wanted.get("dataType", "text"),
        tier=None,
        policies=None,
    )
