"""An alarm by mail when the event costs more than it should."""

import pulumi
import pulumi_aws as aws

from infra.settings import Place, Settings
from runner.aws.tags import EVENT

_ALARM_PERCENT = 80


class Budget(pulumi.ComponentResource):
    """The budget of a month for all that bears the event's tag.

    AWS counts by a tag only once it is activated as a cost allocation tag, which nobody but the payer's account can do.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        place: Place,
        *,
        usd: float,
        mail: str,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("ramp-cloud:infra:Budget", name, None, opts)
        alarms = (("ACTUAL", _ALARM_PERCENT), ("FORECASTED", 100))
        aws.budgets.Budget(
            f"{place.prefix}-budget",
            budget_type="COST",
            limit_amount=f"{usd:.2f}",
            limit_unit="USD",
            time_unit="MONTHLY",
            cost_filters=[aws.budgets.BudgetCostFilterArgs(name="TagKeyValue", values=[f"user:{EVENT}${place.event}"])],
            notifications=[
                aws.budgets.BudgetNotificationArgs(
                    comparison_operator="GREATER_THAN",
                    notification_type=kind,
                    threshold=percent,
                    threshold_type="PERCENTAGE",
                    subscriber_email_addresses=[mail],
                )
                for kind, percent in alarms
            ],
            opts=pulumi.ResourceOptions(parent=self),
        )
        self.register_outputs({})
