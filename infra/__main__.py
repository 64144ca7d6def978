"""`pulumi up`: everything that one event needs in AWS, from its config.yml. Wires the parts and exports what they made.

The names that the runner reads are those of runner/stack.py.
"""

from pathlib import Path

import pulumi

from infra.program import declare
from infra.settings import Settings
from runner.errors import RampCloudError

_PROJECT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Declare the stack of the event that `ramp-cloud:event` names."""
    event = pulumi.Config("ramp-cloud").get("event")
    if event is None:
        msg = "which event? pulumi config set ramp-cloud:event PATH/TO/config.yml"
        raise pulumi.RunError(msg)
    try:
        outputs = declare(Settings.load(_PROJECT / Path(event).expanduser()))
    except RampCloudError as error:
        raise pulumi.RunError(error.message) from error
    for name, value in outputs.items():
        pulumi.export(name, value)


main()
