"""The ``image`` section of config.yml: what the event's machine image is made of. Built by ``image_builder/``."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo

from runner.config_types import (
    GIT_ADDRESS,
    FilePath,
    ImageId,
    InstanceType,
    Region,
    Section,
    UserName,
    Words,
    resolve,
    shaped,
)

Base = Literal[
    "ubuntu-24.04",
    "ubuntu-24.04-arm64",
    "ubuntu-22.04",
    "ubuntu-22.04-arm64",
    "amazon-linux-2023",
    "amazon-linux-2023-arm64",
]


def _folder_or_address(value: object, info: ValidationInfo) -> object:
    if isinstance(value, str) and re.fullmatch(GIT_ADDRESS, value):
        return value
    return str(resolve(value, info)) if isinstance(value, str) else value


# AWS takes it in the names of AMIs and, with a document's name behind it, of Image Builder's resources.
ImageName = Annotated[
    str,
    shaped(r"[-_A-Za-z0-9][-_A-Za-z0-9 ]{1,78}[-_A-Za-z0-9]"),
    Words("3 to 80 letters, digits, `-`, `_` and spaces"),
]
KitPlace = Annotated[str, BeforeValidator(_folder_or_address), Words("a folder, or the address of a git repository")]
GitRef = Annotated[str, shaped(r"[A-Za-z0-9_.][A-Za-z0-9_./-]{0,199}"), Words("a branch, tag or commit")]
SecretName = Annotated[
    str,
    shaped(r"(ssm:/?|arn:aws[a-z-]*:(secretsmanager|ssm):)?[A-Za-z0-9/_+=.@:-]{1,400}"),
    Words("the name or ARN of a secret in Secrets Manager, or ssm:NAME of an SSM parameter"),
]
InKit = Annotated[str, shaped(r"(?!.*(^|/)\.\.(/|$))[A-Za-z0-9_.][A-Za-z0-9_./ -]{0,199}"), Words("a path in the kit")]
DataSource = Annotated[
    str,
    shaped(
        r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\x00-\x1f\x7f'\"$`\\]*)?|(?!.*\.\.)[A-Za-z0-9_.][A-Za-z0-9_./-]{0,199}"
    ),
    Words("s3://BUCKET/PREFIX with `data: s3`, the path of a script in the kit with `data: script`"),
]
Schedule = Annotated[
    str,
    shaped(r"weekly|monthly|cron\([0-9A-Za-z*?,/#L -]{9,80}\)"),
    Words("`weekly`, `monthly` or an EventBridge expression cron(…)"),
]


class ImageSection(Section):
    """Keys of the ``image`` section: what `./inv build-image` and `pulumi up` make the event's image of."""

    name: ImageName = Field(
        "image", description="Base name of the image and of all that builds it. Default: `ami_image_name`."
    )
    base: Annotated[
        Base | ImageId,
        Words(f"{', '.join(f'`{name}`' for name in Base.__args__)}, or the id of an image, ami-…"),
    ] = Field("ubuntu-24.04", description="What the image starts from; x86-64 unless its name says otherwise.")
    user: UserName = Field(
        "ubuntu", description="Login user of the base. Default: `ec2-user` on Amazon Linux, otherwise `ami_user_name`."
    )
    volume_gb: int = Field(30, ge=8, le=16_384, description="Size of the root volume in GiB.")
    gpu: bool = Field(default=False, description="Install GPU drivers, and test that the kit's framework sees a GPU.")
    instance_type: InstanceType = Field(
        "t3.large",
        description="Type of the instance that builds and tests. "
        "Default: `t3.large`, on arm64 `t4g.large`, with gpu `g4dn.xlarge`.",
    )
    kit: KitPlace = Field("kit", description="The kit: a folder of this machine, or a git address. Default: `kit_dir`.")
    kit_ref: GitRef | None = Field(
        None, description="Branch, tag or commit of the git repository; it is pinned to a commit. Default: its HEAD."
    )
    environment: Literal["conda", "pip"] = Field(
        "conda", description="What installs the kit's packages: `conda` (Miniforge) or `pip` in a virtual environment."
    )
    environment_file: InKit | None = Field(
        None,
        description="File in the kit that names the packages. Default: environment.yml, then ami_environment.yml; "
        "with pip requirements.txt. extra_libraries.txt is installed as well where the kit has it.",
    )
    data: Literal["none", "osf", "s3", "script"] = Field(
        "none",
        description="Where data that the kit does not bring come from: its download_data.py (`osf`), a bucket (`s3`), "
        "or a script of the kit (`script`).",
    )
    data_secret: SecretName | None = Field(
        None, description="Where the credentials for the data are kept; never the credentials. Default: none needed."
    )
    data_source: DataSource | None = Field(
        None, description="The bucket's folder, or the script. Default: none, with `data: script` prepare_data.py."
    )
    documents: Annotated[list[FilePath], Words("a list of files")] = Field(
        [],
        description="Component documents of your own. One with the name of a shipped one replaces it, others join.",
    )
    regions: Annotated[list[Region], Words("a list of regions such as eu-west-1")] = Field(
        [], description="Regions that get the image. Default: the one of the event."
    )
    schedule: Schedule | None = Field(
        None, description="When AWS builds the image anew by itself, for security updates. Default: never."
    )
    keep: Annotated[int, Field(ge=1, le=100)] | None = Field(
        None, description="Images that `./inv build-image` keeps; older ones go. Default: all are kept."
    )

    @classmethod
    def conflicts(cls, keys: Mapping[str, Any], worker: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield each key that does not fit the others or the worker's, with what is wrong; both as in the file."""
        name, base, user = keys.get("name"), str(keys.get("base", "")), keys.get("user")
        ami_name = worker.get("ami_image_name")
        if name is None and not (isinstance(ami_name, str) and is_image_name(ami_name)):
            yield "name", "is missing; set it, or ami_image_name to 3 to 80 letters, digits, `-`, `_` and spaces"
        elif name is not None and ami_name is not None and name != ami_name:
            yield "name", f"is not ami_image_name, {ami_name!r}; the event would never run on it: leave name out"
        login = user or ("ec2-user" if base.startswith("amazon-linux") else None)
        if login is not None and login != worker.get("ami_user_name", "ubuntu"):
            yield "user", f"is {login!r}, with which the event does not log in; set ami_user_name: {login}"
        kit = keys.get("kit")
        if keys.get("kit_ref") is not None and not (isinstance(kit, str) and re.fullmatch(GIT_ADDRESS, kit)):
            yield "kit_ref", "belongs to a git repository; give its address as kit, or leave kit_ref out"
        if keys.get("gpu") is True and base.startswith("amazon-linux"):
            yield "gpu", "is only made for Ubuntu; choose a base of Ubuntu, or the id of an image that has the drivers"
        regions, region = keys.get("regions"), worker.get("region_name")
        if isinstance(regions, list) and regions and isinstance(region, str) and region not in regions:
            yield "regions", f"leave out region_name, {region}, where the event looks for its image; add it"
        yield from _data_conflicts(keys)


def _data_conflicts(keys: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    data, source = keys.get("data", "none"), keys.get("data_source")
    is_bucket = isinstance(source, str) and source.startswith("s3://")
    if data == "s3" and not is_bucket:
        yield "data_source", "is missing; data: s3 needs s3://BUCKET/PREFIX"
    elif data == "script" and is_bucket:
        yield "data_source", "is a bucket; name a script of the kit, or set data: s3"
    elif data in ("none", "osf") and source is not None:
        yield "data_source", f"means nothing with data: {data}; remove it"
    if keys.get("data_secret") is not None and data in ("none", "s3"):
        yield "data_secret", f"means nothing with data: {data}, which asks for no credentials; remove it"


def is_image_name(text: str) -> bool:
    """Whether a text can be the base name of an image that is built."""
    return re.fullmatch(r"[-_A-Za-z0-9][-_A-Za-z0-9 ]{1,78}[-_A-Za-z0-9]", text) is not None


def with_defaults(image: ImageSection, *, worker: Mapping[str, Any], kit_dir: str) -> ImageSection:
    """Return the section with what depends on other keys filled in.

    Args:
        worker: the checked keys of worker_type aws.
        kit_dir: the event's kit.
    """
    arm, amazon = image.base.endswith("-arm64"), image.base.startswith("amazon-linux")
    defaults: dict[str, Any] = {
        "name": worker["ami_image_name"],
        "user": "ec2-user" if amazon else worker["ami_user_name"],
        "instance_type": "g4dn.xlarge" if image.gpu else "t4g.large" if arm else "t3.large",
        "kit": kit_dir,
        "regions": [worker["region_name"]] if worker["region_name"] else [],
    }
    return image.model_copy(update={k: v for k, v in defaults.items() if k not in image.model_fields_set})
