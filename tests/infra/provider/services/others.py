"""Logs, Secrets Manager, SSM parameters, budgets and ECS: a kind of resource or two of each."""

from collections.abc import Collection
from typing import Any

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


class _LogGroup:
    def create(self, account: Account, inputs: Values) -> str:
        name = inputs["name"]
        account.call(
            "logs",
            "create_log_group",
            logGroupName=name,
            kmsKeyId=inputs.get("kmsKeyId"),
            tags=inputs["tagsAll"] or None,
        )
        with half_made(name):
            self._keep(account, name, inputs["retentionInDays"])
        return str(name)

    def read(self, account: Account, name: str, state: Values) -> Values | None:
        groups = account.call("logs", "describe_log_groups", logGroupNamePrefix=name)["logGroups"]
        found = next((each for each in groups if each["logGroupName"] == name), None)
        if found is None:
            return None
        arn = found["arn"].removesuffix(":*")
        return {
            "arn": arn,
            "kmsKeyId": found.get("kmsKeyId"),
            "logGroupClass": found.get("logGroupClass"),
            "name": name,
            "retentionInDays": found.get("retentionInDays", 0),
            "tagsAll": account.call("logs", "list_tags_for_resource", resourceArn=arn)["tags"],
        }

    def update(self, account: Account, name: str, state: Values, inputs: Values, changed: Collection[str]) -> None:
        if "retentionInDays" in changed:
            self._keep(account, name, inputs["retentionInDays"])
        gone, new = tag_changes(state, inputs)
        if gone:
            account.call("logs", "untag_resource", resourceArn=state["arn"], tagKeys=gone)
        if new:
            account.call("logs", "tag_resource", resourceArn=state["arn"], tags=new)

    def delete(self, account: Account, name: str, state: Values) -> None:
        if state.get("skipDestroy"):
            return
        with gone_is_fine("ResourceNotFoundException"):
            account.call("logs", "delete_log_group", logGroupName=name)

    def _keep(self, account: Account, name: str, days: int) -> None:
        if days:
            account.call("logs", "put_retention_policy", logGroupName=name, retentionInDays=days)
        else:
            account.call("logs", "delete_retention_policy", logGroupName=name)


class _Secret:
    def create(self, account: Account, inputs: Values) -> str:
        made = account.call(
            "secretsmanager",
            "create_secret",
            Name=inputs["name"],
            Description=inputs.get("description"),
            KmsKeyId=inputs.get("kmsKeyId"),
            Tags=as_pairs(inputs["tagsAll"]) or None,
        )
        return str(made["ARN"])

    def read(self, account: Account, name: str, state: Values) -> Values | None:
        try:
            found = account.call("secretsmanager", "describe_secret", SecretId=name)
        except ClientError as error:
            if code_of(error) == "ResourceNotFoundException":
                return None
            raise
        if found.get("DeletedDate"):
            return None
        return {
            "arn": found["ARN"],
            "description": found.get("Description"),
            "kmsKeyId": found.get("KmsKeyId"),
            "name": found["Name"],
            "tagsAll": as_map(found.get("Tags")),
        }

    def update(self, account: Account, name: str, state: Values, inputs: Values, changed: Collection[str]) -> None:
        if {"description", "kmsKeyId"} & set(changed):
            values = {"Description": inputs.get("description", ""), "KmsKeyId": inputs.get("kmsKeyId")}
            account.call("secretsmanager", "update_secret", SecretId=name, **values)
        gone, new = tag_changes(state, inputs)
        if gone:
            account.call("secretsmanager", "untag_resource", SecretId=name, TagKeys=gone)
        if new:
            account.call("secretsmanager", "tag_resource", SecretId=name, Tags=as_pairs(new))

    def delete(self, account: Account, name: str, state: Values) -> None:
        days = state.get("recoveryWindowInDays", 30)
        how: dict[str, Any] = {"RecoveryWindowInDays": days} if days else {"ForceDeleteWithoutRecovery": True}
        if self.read(account, name, state) is None:
            return  # one that waits for its end counts as gone
        with gone_is_fine("ResourceNotFoundException"):
            account.call("secretsmanager", "delete_secret", SecretId=name, **how)


class _Parameter:
    def create(self, account: Account, inputs: Values) -> str:
        tags = None if inputs.get("overwrite") else as_pairs(inputs["tagsAll"]) or None
        self._put(account, inputs, Overwrite=bool(inputs.get("overwrite")), Tags=tags)
        return str(inputs["name"])

    def read(self, account: Account, name: str, state: Values) -> Values | None:
        try:
            found = account.call("ssm", "get_parameter", Name=name, WithDecryption=True)["Parameter"]
        except ClientError as error:
            if code_of(error) == "ParameterNotFound":
                return None
            raise
        tags = account.call("ssm", "list_tags_for_resource", ResourceType="Parameter", ResourceId=name)["TagList"]
        return {
            "arn": found["ARN"],
            "dataType": found.get("DataType"),
            "name": name,
            "tagsAll": as_map(tags),
            "type": found["Type"],
            "value": found["Value"],
            "version": found["Version"],
        }

    def update(self, account: Account, name: str, state: Values, inputs: Values, changed: Collection[str]) -> None:
        if set(changed) - {"tagsAll", "overwrite"}:
            self._put(account, inputs, Overwrite=True)
        gone, new = tag_changes(state, inputs)
        if gone:
            mine = {"ResourceType": "Parameter", "ResourceId": name}
            account.call("ssm", "remove_tags_from_resource", **mine, TagKeys=gone)
        if new:
            mine = {"ResourceType": "Parameter", "ResourceId": name}
            account.call("ssm", "add_tags_to_resource", **mine, Tags=as_pairs(new))

    def delete(self, account: Account, name: str, state: Values) -> None:
        with gone_is_fine("ParameterNotFound"):
            account.call("ssm", "delete_parameter", Name=name)

    def _put(self, account: Account, inputs: Values, **more: Any) -> None:
        account.call(
            "ssm",
            "put_parameter",
            Name=inputs["name"],
            Value=inputs["value"],
            Type=inputs["type"],
            Description=inputs.get("description"),
            **more,
        )


class _Budget:
    def create(self, account: Account, inputs: Values) -> str:
        account.call(
            "budgets",
            "create_budget",
            AccountId=account.id,
            Budget=_budget(inputs),
            ResourceTags=as_pairs(inputs["tagsAll"]) or None,
        )
        name = f"{account.id}:{inputs['name']}"
        with half_made(name):
            self._notify(account, inputs)
        return name

    def read(self, account: Account, name: str, state: Values) -> Values | None:
        owner, _, budget = name.partition(":")
        try:
            found = account.call("budgets", "describe_budget", AccountId=owner, BudgetName=budget)["Budget"]
        except ClientError as error:
            if code_of(error) == "NotFoundException":
                return None
            raise
        told = account.call("budgets", "describe_notifications_for_budget", AccountId=owner, BudgetName=budget)
        limit = found["BudgetLimit"]
        arn = f"arn:aws:budgets::{owner}:budget/{budget}"
        shown: Values = {
            "accountId": owner,
            "arn": arn,
            "budgetType": found["BudgetType"],
            "limitAmount": str(limit["Amount"]),
            "limitUnit": limit["Unit"],
            "name": budget,
            "tagsAll": as_map(account.call("budgets", "list_tags_for_resource", ResourceARN=arn)["ResourceTags"]),
            "timeUnit": found["TimeUnit"],
        }
        if len(told["Notifications"]) != len(state.get("notifications", ())):
            shown["notifications"] = [
                {
                    "comparisonOperator": each["ComparisonOperator"],
                    "notificationType": each["NotificationType"],
                    "threshold": each["Threshold"],
                    "thresholdType": each.get("ThresholdType", "PERCENTAGE"),
                }
                for each in told["Notifications"]
            ]
        return shown

    def update(self, account: Account, name: str, state: Values, inputs: Values, changed: Collection[str]) -> None:
        budget = inputs["name"]
        mine = {"AccountId": account.id, "BudgetName": budget}
        if set(changed) - {"tagsAll", "notifications"}:
            account.call("budgets", "update_budget", AccountId=account.id, NewBudget=_budget(inputs))
        if "notifications" in changed:
            for each in state.get("notifications", ()):
                account.call("budgets", "delete_notification", **mine, Notification=_notification(each))
            self._notify(account, inputs)
        gone, new = tag_changes(state, inputs)
        if gone:
            account.call("budgets", "untag_resource", ResourceARN=state["arn"], ResourceTagKeys=gone)
        if new:
            account.call("budgets", "tag_resource", ResourceARN=state["arn"], ResourceTags=as_pairs(new))

    def delete(self, account: Account, name: str, state: Values) -> None:
        owner, _, budget = name.partition(":")
        with gone_is_fine("NotFoundException"):
            account.call("budgets", "delete_budget", AccountId=owner, BudgetName=budget)

    def _notify(self, account: Account, inputs: Values) -> None:
        for each in inputs.get("notifications", ()):
            account.call(
                "budgets",
                "create_notification",
                AccountId=account.id,
                BudgetName=inputs["name"],
                Notification=_notification(each),
                Subscribers=_subscribers(each),
            )


def _budget(inputs: Values) -> Values:
    return {
        "BudgetName": inputs["name"],
        "BudgetType": inputs["budgetType"],
        "BudgetLimit": {"Amount": inputs["limitAmount"], "Unit": inputs["limitUnit"]},
        "TimeUnit": inputs["timeUnit"],
        "CostFilters": {each["name"]: each["values"] for each in inputs.get("costFilters", ())},
    }


def _notification(given: Values) -> Values:
    return {
        "NotificationType": given["notificationType"],
        "ComparisonOperator": given["comparisonOperator"],
        "Threshold": given["threshold"],
        "ThresholdType": given["thresholdType"],
    }


def _subscribers(given: Values) -> list[Values]:
    by_mail = [{"SubscriptionType": "EMAIL", "Address": each} for each in given.get("subscriberEmailAddresses", ())]
    return by_mail + [{"SubscriptionType": "SNS", "Address": each} for each in given.get("subscriberSnsTopicArns", ())]


class _Cluster:
    def create(self, account: Account, inputs: Values) -> str:
        made = account.call(
            "ecs",
            "create_cluster",
            clusterName=inputs["name"],
            settings=inputs.get("settings"),
            tags=[{"key": key, "value": value} for key, value in inputs["tagsAll"].items()] or None,
        )
        return str(made["cluster"]["clusterArn"])

    def read(self, account: Account, name: str, state: Values) -> Values | None:
        found = account.call("ecs", "describe_clusters", clusters=[name], include=["TAGS", "SETTINGS"])["clusters"]
        if not found or found[0]["status"] == "INACTIVE":
            return None
        return {
            "arn": name,
            "name": found[0]["clusterName"],
            "tagsAll": {each["key"]: each["value"] for each in found[0].get("tags", ())},
        }

    def update(self, account: Account, name: str, state: Values, inputs: Values, changed: Collection[str]) -> None:
        if "settings" in changed:
            account.call("ecs", "update_cluster", cluster=name, settings=inputs["settings"])
        gone, new = tag_changes(state, inputs)
        if gone:
            account.call("ecs", "untag_resource", resourceArn=name, tagKeys=gone)
        if new:
            tags = [{"key": key, "value": value} for key, value in new.items()]
            account.call("ecs", "tag_resource", resourceArn=name, tags=tags)

    def delete(self, account: Account, name: str, state: Values) -> None:
        with gone_is_fine("ClusterNotFoundException"):
            account.call("ecs", "delete_cluster", cluster=name)


RESOURCES: dict[str, Resource] = {
    "aws:cloudwatch/logGroup:LogGroup": _LogGroup(),
    "aws:secretsmanager/secret:Secret": _Secret(),
    "aws:ssm/parameter:Parameter": _Parameter(),
    "aws:budgets/budget:Budget": _Budget(),
    "aws:ecs/cluster:Cluster": _Cluster(),
}
