"""IAM, budgets and the rules of security groups as AWS has them where moto differs: managed policies, what an update
leaves alone and what it changes, identity providers without a thumbprint, tags of budgets.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from moto.budgets.models import BudgetsBackend
from moto.budgets.responses import BudgetsResponse
from moto.core.responses import BaseResponse, EmptyResult
from moto.ec2.models import EC2Backend
from moto.ec2.models.security_groups import SecurityGroupRule
from moto.iam.access_control import IAMPolicyStatement, PermissionResult
from moto.iam.aws_managed_policies import aws_managed_policies_data
from moto.iam.models import AWSManagedPolicy, IAMBackend
from moto.iam.responses import IamResponse

# Of AWS's thousand managed policies those that events use: reading all of them again at every reset takes seconds.
MANAGED = (
    "AmazonECSTaskExecutionRolePolicy",
    "AmazonSSMManagedInstanceCore",
    "EC2ImageBuilderLifecycleExecutionPolicy",
    "EC2InstanceProfileForImageBuilder",
)
_NO_TLS = {"Bool": {"aws:SecureTransport": "false"}}
_DIGITS = 40  # of a thumbprint
_SESSION = 3600  # seconds; what a role has when nothing is said


def install() -> None:
    """Let moto's services answer so. Once per process, before moto is served."""
    made = IAMBackend.create_open_id_connect_provider

    def init_aws_policies(backend: IAMBackend) -> list[AWSManagedPolicy]:
        given = _managed().items()
        return [AWSManagedPolicy.from_data(name, backend.account_id, backend.region_name, each) for name, each in given]

    def update_role(backend: IAMBackend, role_name: str, role_description: str | None, seconds: str | None) -> Any:
        role = backend.get_role(role_name)
        if role_description is not None:  # what is not said stays
            role.description = role_description
        role.max_session_duration = str(seconds or _SESSION)
        return role

    permitted = IAMPolicyStatement.is_action_permitted

    def is_action_permitted(statement: IAMPolicyStatement, *given: Any, **named: Any) -> PermissionResult:
        # moto denies whatever a condition does not hold for. What goes over loopback counts as sent over TLS here.
        if statement._statement.get("Condition") == _NO_TLS:  # noqa: SLF001 - moto has no other way to it
            return PermissionResult.NEUTRAL
        return permitted(statement, *given, **named)

    modified = EC2Backend.modify_security_group_rules

    def modify_rules(backend: EC2Backend, group_id: str, rules: dict[str, dict[str, Any]]) -> None:
        modified(backend, group_id, rules)
        group = backend.get_security_group_from_id(group_id)
        for name, wanted in rules.items():
            _follow(group.get_rule(name) if group else None, wanted)

    def create_provider(backend: IAMBackend, url: str, prints: list[str], clients: list[str], tags: Any) -> Any:
        # Without one IAM asks the site itself for it.
        return made(backend, url, prints or [hashlib.sha256(url.encode()).hexdigest()[:_DIGITS]], clients, tags)

    for owner, name, call in (
        (IAMBackend, "_init_aws_policies", init_aws_policies),
        (IAMBackend, "update_role", update_role),
        (IAMPolicyStatement, "is_action_permitted", is_action_permitted),
        (EC2Backend, "modify_security_group_rules", modify_rules),
        (SecurityGroupRule, "description", property(_description)),
        (IAMBackend, "create_open_id_connect_provider", create_provider),
        (IamResponse, "add_client_id_to_open_id_connect_provider", _add_client),
        (IamResponse, "remove_client_id_from_open_id_connect_provider", _remove_client),
        (BudgetsResponse, "update_budget", _update_budget),
        (BudgetsResponse, "list_tags_for_resource", _list_tags),
        (BudgetsResponse, "tag_resource", _tag),
        (BudgetsResponse, "untag_resource", _untag),
        (BudgetsResponse, "create_budget", _create_budget(BudgetsResponse.create_budget)),
    ):
        setattr(owner, name, call)


@cache
def _managed() -> Mapping[str, dict[str, Any]]:
    every = json.loads(aws_managed_policies_data)
    return {name: every[name] for name in MANAGED}


def _follow(rule: SecurityGroupRule | None, wanted: Mapping[str, Any]) -> None:
    """Give a rule the source that it is to have; moto knows how for IPv4 only."""
    if rule is None:
        return
    if wanted.get("CidrIpv6"):
        rule.ip_range["CidrIpv6"] = wanted["CidrIpv6"]
    if wanted.get("ReferencedGroupId"):
        rule.source_group = {**rule.source_group, "GroupId": wanted["ReferencedGroupId"]}
    if wanted.get("PrefixListId"):
        rule.prefix_list_id = wanted["PrefixListId"]


def _description(rule: SecurityGroupRule) -> str | None:
    """Return a rule's description, which moto looks for in a range of addresses only."""
    found = rule.ip_range.get("Description") or rule.source_group.get("Description")
    return str(found) if found else None


def _add_client(response: IamResponse) -> EmptyResult:
    """AddClientIDToOpenIDConnectProvider."""
    provider = response.backend.get_open_id_connect_provider(_get(response, "OpenIDConnectProviderArn"))
    provider.client_id_list = [*{*provider.client_id_list, _get(response, "ClientID")}]
    return EmptyResult()


def _remove_client(response: IamResponse) -> EmptyResult:
    """RemoveClientIDFromOpenIDConnectProvider."""
    provider = response.backend.get_open_id_connect_provider(_get(response, "OpenIDConnectProviderArn"))
    gone = _get(response, "ClientID")
    provider.client_id_list = [each for each in provider.client_id_list if each != gone]
    return EmptyResult()


def _create_budget(plain: Any) -> Any:
    def create_budget(response: BudgetsResponse) -> str:
        """CreateBudget, with its tags."""
        answer: str = plain(response)
        tags = response._get_param("ResourceTags", [])  # noqa: SLF001 - moto's way to parameters
        _tags_of(response.backend, _get(response, "Budget")["BudgetName"]).update({t["Key"]: t["Value"] for t in tags})
        return answer

    return create_budget


def _update_budget(response: BudgetsResponse) -> str:
    """UpdateBudget: what it had is replaced by what is given; its notifications stay."""
    backend, account, given = response.backend, _get(response, "AccountId"), _get(response, "NewBudget")
    backend.describe_budget(account_id=account, budget_name=given["BudgetName"])  # refuses one that is not there
    kept = backend.budgets[account][given["BudgetName"]].budget
    times = {name: kept[name] for name in ("LastUpdatedTime", "TimePeriod")}
    backend.budgets[account][given["BudgetName"]].budget = {**times, **given}
    return json.dumps({})


def _list_tags(response: BudgetsResponse) -> str:
    tags = _tags_of(response.backend, _name_in(_get(response, "ResourceARN")))
    return json.dumps({"ResourceTags": [{"Key": key, "Value": value} for key, value in tags.items()]})


def _tag(response: BudgetsResponse) -> str:
    tags = _tags_of(response.backend, _name_in(_get(response, "ResourceARN")))
    tags.update({each["Key"]: each["Value"] for each in _get(response, "ResourceTags")})
    return json.dumps({})


def _untag(response: BudgetsResponse) -> str:
    tags = _tags_of(response.backend, _name_in(_get(response, "ResourceARN")))
    for key in _get(response, "ResourceTagKeys"):
        tags.pop(key, None)
    return json.dumps({})


def _get(response: BaseResponse, name: str) -> Any:
    return response._get_param(name)  # noqa: SLF001 - moto's way to parameters


def _name_in(arn: str) -> str:
    return arn.rpartition("/")[2]


def _tags_of(backend: BudgetsBackend, budget: str) -> dict[str, str]:
    """Return a budget's tags, kept in its backend so that they go with it."""
    return dict.setdefault(backend.__dict__.setdefault("rehearsal_tags", {}), budget, {})
