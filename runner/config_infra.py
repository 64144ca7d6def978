"""The ``infra`` section of config.yml: what the event needs in AWS beside its instances. Made by ``pulumi up``."""

import ipaddress
import re
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field

from runner.config_types import FilePath, Money, Section, Subnet, Words, shaped

_LONGEST_TAG_KEY, _LONGEST_TAG_VALUE, _MOST_TAGS = 128, 256, 30  # of AWS, and what leaves room for our own
_TAG = r"[\w .:/=+@-]"


def _cidr(value: str) -> str:
    try:
        network = ipaddress.ip_network(value)
    except ValueError as error:
        raise ValueError(str(error)) from error
    if network.prefixlen == 0:
        msg = "that is the whole internet; name the address of the machine that runs the event, such as 203.0.113.7/32"
        raise ValueError(msg)
    return str(network)


def _tag_values(value: dict[str, str]) -> dict[str, str]:
    for key, text in value.items():
        if key.lower().startswith(("aws:", "ramp-cloud:")):
            msg = f"{key!r} is a key of AWS or ramp-cloud itself"
            raise ValueError(msg)
        if not re.fullmatch(f"{_TAG}{{1,{_LONGEST_TAG_KEY}}}", key):
            msg = f"{key!r} is no key that AWS takes"
            raise ValueError(msg)
        if not re.fullmatch(f"{_TAG}{{0,{_LONGEST_TAG_VALUE}}}", text):
            msg = f"the value of {key!r} is none that AWS takes"
            raise ValueError(msg)
    if len(value) > _MOST_TAGS:
        msg = f"AWS takes 50 per resource, and ramp-cloud needs some; keep at most {_MOST_TAGS}"
        raise ValueError(msg)
    return value


Guard = Literal["imdsv2", "private-images", "allowed-images-audit", "allowed-images"]
# What CloudWatch Logs can keep.
LogDays = Literal[
    1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653
]
Cidr = Annotated[str, AfterValidator(_cidr)]
Vpc = Annotated[str, shaped(r"vpc-[0-9a-f]{8,17}"), Words("the id of a network, vpc-…")]
Mail = Annotated[str, shaped(r"[^@\s,;]+@[^@\s,;]+\.[^@\s,;]+"), Words("a mail address")]
Repository = Annotated[
    str, shaped(r"[A-Za-z0-9][A-Za-z0-9-]{0,38}/[A-Za-z0-9_.-]{1,100}"), Words("a repository of GitHub as OWNER/NAME")
]
Branch = Annotated[str, shaped(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,199}"), Words("a branch")]
ProviderArn = Annotated[
    str,
    shaped(r"arn:aws[a-z-]*:iam::[0-9]{12}:oidc-provider/token\.actions\.githubusercontent\.com"),
    Words("the ARN of the account's OIDC provider for token.actions.githubusercontent.com"),
]


class InfraSection(Section):
    """Keys of the ``infra`` section: what `pulumi up` makes for the event."""

    runner_cidr: Annotated[
        list[Cidr],
        Field(min_length=1, max_length=20),
        Words("a list of networks such as 203.0.113.7/32; never all addresses"),
    ] = Field(description="Addresses of the machines that run the event: they alone reach instances, on port 22.")
    public_key: FilePath | None = Field(
        None, description="Public key of the login, in OpenSSH's format. Default: `key_path` with `.pub` behind it."
    )
    vpc: Vpc | None = Field(None, description="Network of the instances. Default: the default one of the region.")
    subnets: Annotated[list[Subnet], Words("a list of subnet ids, subnet-…")] = Field(
        [], description="Subnets for instances, all of one network. Default: all of the network."
    )
    egress: Literal["closed", "open"] = Field(
        "closed", description="Whether submissions reach the network. Image builds always reach what they install from."
    )
    expires: Annotated[date, Words("a date such as 2027-06-30")] | None = Field(
        None,
        description="Tag on everything that says until when it is needed; nothing ends by it. "
        "Default: the end of next year.",
    )
    bucket_days: int = Field(
        90, ge=1, le=3650, description="Days that the bucket keeps kits; for good where `image.schedule` needs them."
    )
    log_days: Annotated[
        LogDays, Words(f"one of {', '.join(map(str, get_args(LogDays)))}, which CloudWatch Logs offers")
    ] = Field(30, description="Days that logs of image builds are kept.")
    budget_usd: Money | None = Field(
        None, description="Budget of a month in USD; an alarm at 80 % of it, and when it looks like being exceeded."
    )
    budget_mail: Mail | None = Field(None, description="Who gets the budget's alarms.")
    github: Repository | None = Field(
        None, description="Repository whose workflows may rebuild the image, without any key. Default: none."
    )
    github_branch: Branch = Field("main", description="Branch whose workflows may.")
    github_provider: ProviderArn | None = Field(
        None, description="OIDC provider of GitHub that the account has already. Default: one is made."
    )
    make_secret: bool = Field(
        default=False, description="Make the secret that `image.data_secret` names, without a value: put it there."
    )
    dask: bool = Field(
        default=False, description="Make what a Dask cluster needs, on EC2 or ECS; the image then has `distributed`."
    )
    guards: Annotated[
        list[Guard], Words("a list of `imdsv2`, `private-images`, `allowed-images-audit`, `allowed-images`")
    ] = Field([], description="Settings of the whole account in this region that `pulumi up` takes over.")
    force: bool = Field(
        default=False, description="Let `pulumi destroy` delete what may hold results: the bucket and all in it."
    )
    tags: Annotated[dict[str, str], AfterValidator(_tag_values), Words("a mapping of tags to text")] = Field(
        {}, description="Further tags on everything."
    )

    @classmethod
    def conflicts(cls, keys: Mapping[str, Any], image: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
        """Yield each key that does not fit the others, with what is wrong.

        Args:
            keys: those of this section as they stand in the file.
            image: those of ``image``, None without that section.
        """
        given = {key for key, value in keys.items() if value is not None}
        pair = ("budget_usd", "budget_mail")
        for key, other in (pair, pair[::-1]):
            if key in given and other not in given:
                yield key, f"needs {other} beside it; set both, or none for no budget"
        for key in ("github_branch", "github_provider"):
            if key in given and "github" not in given:
                yield key, "says nothing without github; set github to OWNER/NAME, or remove it"
        guards = keys.get("guards")
        if isinstance(guards, list) and {"allowed-images-audit", "allowed-images"} <= {*map(str, guards)}:
            yield "guards", "has allowed-images twice, with and without -audit; keep one"
        secret = (image or {}).get("data_secret")
        if keys.get("make_secret") is True and (not isinstance(secret, str) or secret.startswith(("ssm:", "arn:"))):
            yield "make_secret", "needs image.data_secret with the plain name of a secret; set it, or remove this"
