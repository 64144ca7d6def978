"""IAM: roles, policies, instance profiles, and the provider of identities that CI comes with. No region has its own."""

import json
from collections.abc import Collection
from typing import Any
from urllib.parse import unquote

from botocore.exceptions import ClientError

from tests.infra.provider.services.base import (
    Account,
    Resource,
    Values,
    as_map,
    as_pairs,
    code_of,
    gone_is_fine,
    half_made,
    tag_changes,
)

_GONE = "NoSuchEntity"
_VERSIONS = 5  # of a policy that IAM keeps


def _document(given: Any) -> str:
    """Return a policy as text; IAM gives it as an object, or quoted for an address."""
    return json.dumps(given if isinstance(given, dict) else json.loads(unquote(given)))


def _found(account: Account, operation: str, key: str, **parameters: Any) -> Values | None:
    try:
        return dict(
            account.call("iam", operation, **parameters)[key] if key else account.call("iam", operation, **parameters)
        )
    except ClientError as error:
        if code_of(error) == _GONE:
            return None
        raise


def _tag(account: Account, what: str, key: str, name: str, state: Values, inputs: Values) -> None:
    gone, new = tag_changes(state, inputs)
    if gone:
        account.call("iam", f"untag_{what}", **{key: name}, TagKeys=gone)
    if new:
        account.call("iam", f"tag_{what}", **{key: name}, Tags=as_pairs(new))


class _Role:
    def create(self, account: Account, inputs: Values) -> str:
        made = account.call(
            "iam",
            "create_role",
            RoleName=inputs["name"],
            AssumeRolePolicyDocument=inputs["assumeRolePolicy"],
            Description=inputs.get("description"),
            MaxSessionDuration=inputs["maxSessionDuration"],
            Path=inputs["path"],
            PermissionsBoundary=inputs.get("permissionsBoundary"),
            Tags=as_pairs(inputs["tagsAll"]),
        )
        return str(made["Role"]["RoleName"])

    def read(self, account: Account, name: str, state: Values) -> Values | None:
        found = _found(account, "get_role", "Role", RoleName=name)
        if found is None:
            return None
        attached = account.call("iam", "list_attached_role_policies", RoleName=name)["AttachedPolicies"]
        return {
            "arn": found["Arn"],
            "assumeRolePolicy": _document(found["AssumeRolePolicyDocument"]),
            "createDate": found["CreateDate"].isoformat(),
            "description": found.get("Description"),
            "managedPolicyArns": sorted(each["PolicyArn"] for each in attached),
            "maxSessionDuration": found["MaxSessionDuration"],
            "name": found["RoleName"],
            "path": found["Path"],
            "permissionsBoundary": found.get("PermissionsBoundary", {}).get("PermissionsBoundaryArn"),
            "tagsAll": as_map(found.get("Tags")),
            "uniqueId": found["RoleId"],
        }

    def update(self, account: Account, name: str, state: Values, inputs: Values, changed: Collection[str]) -> None:
        if "assumeRolePolicy" in changed:
            document = inputs["assumeRolePolicy"]
            account.call("iam", "update_assume_role_policy", RoleName=name, PolicyDocument=document)
        if "description" in changed:
            account.call("iam", "update_role_description", RoleName=name, Description=inputs.get("description", ""))
        if "maxSessionDuration" in changed:
            account.call("iam", "update_role", RoleName=name, MaxSessionDuration=inputs["maxSessionDuration"])
        if "permissionsBoundary" in changed:
            boundary = inputs.get("permissionsBoundary")
            if boundary:
                account.call("iam", "put_role_permissions_boundary", RoleName=name, PermissionsBoundary=boundary)
            else:
                account.call("iam", "delete_role_permissions_boundary", RoleName=name)
        _tag(account, "role", "RoleName", name, state, inputs)

    def delete(self, account: Account, name: str, state: Values) -> None:
        with gone_is_fine(_GONE):
            profiles = account.call("iam", "list_instance_profiles_for_role", RoleName=name)["InstanceProfiles"]
            for each in profiles:
                account.call(
                    "iam",
                    "remove_role_from_instance_profile",
                    RoleName=name,
                    InstanceProfileName=each["InstanceProfileName"],
                )
            attached = account.call("iam", "list_attached_role_policies", RoleName=name)["AttachedPolicies"]
            known = state.get("managedPolicyArns") or ()
            for arn in (each["PolicyArn"] for each in attached):
                if state.get("forceDetachPolicies") or arn in known:
                    account.call("iam", "detach_role_policy", RoleName=name, PolicyArn=arn)
            if state.get("forceDetachPolicies"):
                for policy in account.call("iam", "list_role_policies", RoleName=name)["PolicyNames"]:
                    account.call("iam", "delete_role_policy", RoleName=name, PolicyName=policy)
            account.call("iam", "delete_role", RoleName=name)


class _RolePolicy:
    def create(self, account: Account, inputs: Values) -> str:
        self._put(account, inputs)
        return f"{inputs['role']}:{inputs['name']}"

    def read(self, account: Account, name: str, state: Values) -> Values | None:
        role, _, policy = name.partition(":")
        found = _found(account, "get_role_policy", "", RoleName=role, PolicyName=policy)
        return found and {"policy": _document(found["PolicyDocument"]), "role": role, "name": policy}

    def update(self, account: Account, name: str, state: Values, inputs: Values, changed: Collection[str]) -> None:
        self._put(account, inputs)

    def delete(self, account: Account, name: str, state: Values) -> None:
        role, _, policy = name.partition(":")
        with gone_is_fine(_GONE):
            account.call("iam", "delete_role_policy", RoleName=role, PolicyName=policy)

    def _put(self, account: Account, inputs: Values) -> None:
        names = {"RoleName": inputs["role"], "PolicyName": inputs["name"]}
        account.call("iam", "put_role_policy", **names, PolicyDocument=inputs["policy"])


class _Attachment:
    def create(self, account: Account, inputs: Values) -> str:
        account.call("iam", "attach_role_policy", RoleName=inputs["role"], PolicyArn=inputs["policyArn"])
        return f"{inputs['role']}/{inputs['policyArn']}"

    def read(self, account: Account, name: str, state: Values) -> Values | None:
        role, _, arn = name.partition("/")
        found = _found(account, "list_attached_role_policies", "", RoleName=role)
        if found is None or arn not in [each["PolicyArn"] for each in found["AttachedPolicies"]]:
            return None
        return {"role": role, "policyArn": arn}

    def update(self, account: Account, name: str, state: Values, inputs: Values, changed: Collection[str]) -> None:
        """Nothing of it can change."""

    def delete(self, account: Account, name: str, state: Values) -> None:
        role, _, arn = name.partition("/")
        with gone_is_fine(_GONE):
            account.call("iam", "detach_role_policy", RoleName=role, PolicyArn=arn)


class _Policy:
    def create(self, account: Account, inputs: Values) -> str:
        made = account.call(
            "iam",
            "create_policy",
            PolicyName=inputs["name"],
            PolicyDocument=inputs["policy"],
            Path=inputs["path"],
            Description=inputs.get("description"),
            Tags=as_pairs(inputs["tagsAll"]),
        )
        return str(made["Policy"]["Arn"])

    def read(self, account: Account, name: str, state: Values) -> Values | None:
        found = _found(account, "get_policy", "Policy", PolicyArn=name)
        if found is None:
            return None
        version = found["DefaultVersionId"]
        document = account.call("iam", "get_policy_version", PolicyArn=name, VersionId=version)["PolicyVersion"]
        return {
            "arn": name,
            "attachmentCount": found.get("AttachmentCount", 0),
            "name": found["PolicyName"],
            "path": found["Path"],
            "policy": _document(document["Document"]),
            "policyId": found["PolicyId"],
            "tagsAll": as_map(account.call("iam", "list_policy_tags", PolicyArn=name)["Tags"]),
        }

    def update(self, account: Account, name: str, state: Values, inputs: Values, changed: Collection[str]) -> None:
        if "policy" in changed:
            versions = self._others(account, name)
            if len(versions) + 1 >= _VERSIONS:
                account.call("iam", "delete_policy_version", PolicyArn=name, VersionId=versions[0])
            document = inputs["policy"]
            account.call("iam", "create_policy_version", PolicyArn=name, PolicyDocument=document, SetAsDefault=True)
        _tag(account, "policy", "PolicyArn", name, state, inputs)

    def delete(self, account: Account, name: str, state: Values) -> None:
        with gone_is_fine(_GONE):
            for version in self._others(account, name):
                account.call("iam", "delete_policy_version", PolicyArn=name, VersionId=version)
            account.call("iam", "delete_policy", PolicyArn=name)

    def _others(self, account: Account, name: str) -> list[str]:
        """Return the versions that are not the default, the oldest first."""
        found = account.call("iam", "list_policy_versions", PolicyArn=name)["Versions"]
        others = [each["VersionId"] for each in found if not each["IsDefaultVersion"]]
        return sorted(others, key=lambda version: int(version.removeprefix("v")))


class _Profile:
    def create(self, account: Account, inputs: Values) -> str:
        name = inputs["name"]
        tags = as_pairs(inputs["tagsAll"])
        account.call("iam", "create_instance_profile", InstanceProfileName=name, Path=inputs["path"], Tags=tags)
        if inputs.get("role"):
            with half_made(name):
                account.call("iam", "add_role_to_instance_profile", InstanceProfileName=name, RoleName=inputs["role"])
        return str(name)

    def read(self, account: Account, name: str, state: Values) -> Values | None:
        found = _found(account, "get_instance_profile", "InstanceProfile", InstanceProfileName=name)
        if found is None:
            return None
        return {
            "arn": found["Arn"],
            "createDate": found["CreateDate"].isoformat(),
            "name": found["InstanceProfileName"],
            "path": found["Path"],
            "role": next((role["RoleName"] for role in found["Roles"]), None),
            "tagsAll": as_map(found.get("Tags")),
            "uniqueId": found["InstanceProfileId"],
        }

    def update(self, account: Account, name: str, state: Values, inputs: Values, changed: Collection[str]) -> None:
        if "role" in changed:
            for operation, role in (("remove_role_from", state.get("role")), ("add_role_to", inputs.get("role"))):
                if role:
                    account.call("iam", f"{operation}_instance_profile", InstanceProfileName=name, RoleName=role)
        _tag(account, "instance_profile", "InstanceProfileName", name, state, inputs)

    def delete(self, account: Account, name: str, state: Values) -> None:
        with gone_is_fine(_GONE):
            if state.get("role"):
                with gone_is_fine(_GONE):  # the role may have left it already
                    account.call(
                        "iam",
                        "remove_role_from_instance_profile",
                        InstanceProfileName=name,
                        RoleName=state["role"],
                    )
            account.call("iam", "delete_instance_profile", InstanceProfileName=name)


class _IdentityProvider:
    def create(self, account: Account, inputs: Values) -> str:
        made = account.call(
            "iam",
            "create_open_id_connect_provider",
            Url=inputs["url"],
            ClientIDList=inputs["clientIdLists"],
            ThumbprintList=inputs.get("thumbprintLists"),
            Tags=as_pairs(inputs["tagsAll"]),
        )
        return str(made["OpenIDConnectProviderArn"])

    def read(self, account: Account, name: str, state: Values) -> Values | None:
        found = _found(account, "get_open_id_connect_provider", "", OpenIDConnectProviderArn=name)
        if found is None:
            return None
        return {
            "arn": name,
            "clientIdLists": found["ClientIDList"],
            "thumbprintLists": found["ThumbprintList"],
            "tagsAll": as_map(found.get("Tags")),
        }

    def update(self, account: Account, name: str, state: Values, inputs: Values, changed: Collection[str]) -> None:
        mine = {"OpenIDConnectProviderArn": name}
        if "thumbprintLists" in changed:
            prints = inputs["thumbprintLists"]
            account.call("iam", "update_open_id_connect_provider_thumbprint", **mine, ThumbprintList=prints)
        if "clientIdLists" in changed:
            before, after = set(state["clientIdLists"]), set(inputs["clientIdLists"])
            for each in sorted(after - before):
                account.call("iam", "add_client_id_to_open_id_connect_provider", **mine, ClientID=each)
            for each in sorted(before - after):
                account.call("iam", "remove_client_id_from_open_id_connect_provider", **mine, ClientID=each)
        _tag(account, "open_id_connect_provider", "OpenIDConnectProviderArn", name, state, inputs)

    def delete(self, account: Account, name: str, state: Values) -> None:
        with gone_is_fine(_GONE):
            account.call("iam", "delete_open_id_connect_provider", OpenIDConnectProviderArn=name)


RESOURCES: dict[str, Resource] = {
    "aws:iam/role:Role": _Role(),
    "aws:iam/rolePolicy:RolePolicy": _RolePolicy(),
    "aws:iam/rolePolicyAttachment:RolePolicyAttachment": _Attachment(),
    "aws:iam/policy:Policy": _Policy(),
    "aws:iam/instanceProfile:InstanceProfile": _Profile(),
    "aws:iam/openIdConnectProvider:OpenIdConnectProvider": _IdentityProvider(),
}
