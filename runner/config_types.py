"""The kinds of values that keys of config.yml take, each with its check and the words that messages use for it."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A part of config.yml: unknown keys are refused, and nothing is converted in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def resolve(value: object, info: ValidationInfo) -> object:
    """Make a path absolute: ``~`` is the home folder, a relative path starts at the deployment folder."""
    if not isinstance(value, str):
        return value
    if not value:
        msg = "an empty path would mean the deployment folder; write . for it"
        raise ValueError(msg)
    base: Path = (info.context or {}).get("deployment_dir", Path())
    try:
        return Path(os.path.normpath(base / Path(value).expanduser()))
    except RuntimeError as error:
        msg = "the home folder after ~ is not known; write the path out"
        raise ValueError(msg) from error


@dataclass(frozen=True)
class Words:
    """What a key takes, in words, where its type alone does not say it; stands in the key's ``Annotated``."""

    text: str


def shaped(pattern: str) -> AfterValidator:
    """Return a check that a text fits a pattern. Not pydantic's own, with which editors would refuse ``${NAME}``."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            code, message = "shape", "has another shape"
            raise PydanticCustomError(code, message)
        return value

    return AfterValidator(check)


# What git may be given: never something that it would take for an option.
GIT_ADDRESS = r"(https?|ssh|git|file)://[^-].*|[A-Za-z0-9_.-]+@[A-Za-z0-9_.][A-Za-z0-9_.-]*:.+"
FilePath = Annotated[Path, BeforeValidator(resolve)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
Seconds = Annotated[float, Field(gt=0, le=31 * 86400, allow_inf_nan=False)]


def _region_not_zone(value: str) -> str:
    if re.fullmatch(rf"{_REGION}[a-z]", value):
        msg = f"that is an availability zone; its region is {value[:-1]}"
        raise ValueError(msg)
    return value


_REGION = r"[a-z]{2,5}(-[a-z]+)+-[0-9]{1,2}"
Region = Annotated[str, AfterValidator(_region_not_zone), shaped(_REGION), Words("a region such as eu-west-1")]
InstanceType = Annotated[str, shaped(r"[a-z][a-z0-9-]*\.[a-z0-9-]+")]
InstanceTypes = Annotated[list[InstanceType], Field(min_length=1)]
Subnet = Annotated[str, shaped(r"subnet-[0-9a-f]{8,17}")]
IN_REGION = r"(-[a-z]+-[0-9]{1,2})?[a-z]"  # what a zone's name has after its region's; local zones have more
Zone = Annotated[str, shaped(_REGION + IN_REGION)]
AwsName = Annotated[str, Field(min_length=1, max_length=255)]
Owner = Annotated[str, shaped(r"[A-Za-z0-9_.:/=+@-][A-Za-z0-9 _.:/=+@-]{0,99}"), Words("text fit for an AWS tag")]
UserName = Annotated[str, shaped(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}"), Words("a user name")]
ImageId = Annotated[str, shaped(r"ami-[0-9a-f]{8,17}"), Words("an image's id, ami-…")]
RemoteFolder = Annotated[str, shaped(r"(/|~/)[^\x00-\x1f\x7f]+"), Words("an absolute path, or one that starts with ~/")]
Money = Annotated[float, Field(gt=0, allow_inf_nan=False)]
