"""The tasks of an event's stack: what it would change, up, down."""

import sys
from typing import Any

from invoke import Context, Exit, task

from runner.front_door import IRIS_AWS, bring, front_door, opened, path_of

STACK = {"config": "the event's config.yml (default: the bundled examples/iris/aws.yml)"}


def _stack(config: str | None) -> Any:
    bring("infra")
    from infra.automation import EventStack

    return EventStack(path_of(config) or IRIS_AWS, say=lambda line: print(line, file=sys.stderr, flush=True))


def _agreed(question: str, *, yes: bool) -> None:
    """Return when the user wants it done; ask where somebody can answer."""
    from runner.errors import UsageError

    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        msg = "nobody is there to be asked; look at `./inv preview`, then give --yes"
        raise UsageError(msg)
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        msg = "Nothing was done."
        raise Exit(msg, code=1)


@task(help=STACK)
@front_door
def preview(_: Context, config: str | None = None) -> None:
    """Show what `./inv up` would change in AWS, and change nothing."""
    print("\n".join(_stack(config).preview().in_words()))


@task(help={**STACK, "yes": "do it without asking"})
@front_door
def up(_: Context, config: str | None = None, yes: bool = False) -> None:
    """Make in AWS what the event needs, or bring it up to date: shows what changes, asks, and does it."""
    stack = _stack(config)
    plan = stack.preview()
    print("\n".join(plan.in_words()))
    if plan.changes:
        _agreed("Do it?", yes=yes)
    outputs = stack.up()
    named = f" --config {config}" if config else ""
    print(f"Wrote {outputs}. Next: `./inv doctor{named}`, then `./inv build-image{named}`.")


@task(help={**STACK, "yes": "do it without asking"})
@front_door
def down(_: Context, config: str | None = None, yes: bool = False) -> None:
    """Delete in AWS what `./inv up` made; images stay. Refuses while instances or builds of the event run."""
    from infra.remains import Remains
    from runner.checkup import sweep_event
    from runner.errors import UsageError

    stack = _stack(config)
    with opened(config or str(IRIS_AWS), None) as event:
        # Where nothing on this machine says whose the instances are, the stack does.
        owner = _owner_here(event.config) or stack.owner()
        remains = Remains(event.config, owner=owner)
        remains.look()  # first, for the instance of a build is nothing that a sweep should end
        found = sweep_event(event, bring=bring, owner=owner)["found"]
    running = [row["id"] for row in found if row["kind"] == "instance" and row["event"] == event.config.event_name]
    if running:
        msg = f"{', '.join(running)} of this event run; let them end, or stop run-event and `./inv sweep --yes`"
        raise UsageError(msg)
    print("\n".join(stack.preview_down().in_words()))
    print("Images and their snapshots stay; `./inv prune-images` shows them, and works only until then.")
    _agreed("Do it?", yes=yes)
    left = stack.down()
    for line in remains.clear():
        print(line)
    if left:
        print(f"Protected, and so still there: {', '.join(left)}.")
        print("With `force: true` under `infra:`, `./inv up` and then `./inv down` delete them and all they hold.")
    else:
        print("Done. Pulumi keeps the stack itself, empty: `pulumi stack rm` removes it.")


def _owner_here(event: Any) -> str | None:
    """Return whom the event's things belong to, as far as its files say it."""
    from infra.automation import outputs_file
    from runner.stack import StackFileBroken, read

    try:
        outputs = read(outputs_file(event))
    except StackFileBroken:  # the stack itself knows better
        outputs = None
    noted = outputs.owner if outputs else None
    return event.worker.owner or noted
