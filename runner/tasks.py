"""The tasks of an event: run it, look at it, steer it, check it."""

import logging
import signal
import sys
from pathlib import Path
from typing import Any

from invoke import Context, Exit, task

from runner.front_door import (
    EMULATED,
    EVENT,
    IRIS,
    IRIS_AWS,
    LOOK,
    account,
    bring,
    front_door,
    number,
    opened,
    path_of,
    print_json,
    say,
    warn,
)


@task(name="run-event", help=EMULATED)
@front_door
def run_event(_: Context, config: str | None = None, deployment_dir: str | None = None, emulated: bool = False) -> None:
    """Train and score every new submission of an event. Ctrl-C ends it and loses nothing."""
    with account(config, deployment_dir, emulated=emulated) as (path, folder):
        _run_event(path, folder)


def _run_event(path: str | None, folder: str | None) -> None:
    from runner import console
    from runner.errors import LaunchStopped

    stopped: LaunchStopped | None = None
    with opened(path, folder) as event:
        warn(event.config)
        if event.config.worker.worker_type in ("aws", "dask"):
            bring(event.config.worker.worker_type)
        watched = sys.stdout.isatty()
        view = console.LiveView(event.states()) if watched else console.PlainView()
        logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[view.log_handler()])
        dispatcher = event.dispatcher(view)
        signals = _stop_on_signals(dispatcher)
        with view.shown(dispatcher.lives):
            try:
                dispatcher.run()
            except LaunchStopped as error:  # what has ended until then is shown all the same
                stopped = error
        failed = event.finish()
        console.show_status(event.status())
        console.show_leaderboard(event.rows(), event.kit(), step="valid")
        print(f"Leaderboard written to {event.paths.leaderboard}")
    if signals:
        msg = "Stopped. What was running is new again; the next run-event goes on."
        raise Exit(msg, code=128 + signals[0])
    if stopped:
        raise Exit(stopped.for_organiser(), code=stopped.exit_code)
    if failed:
        msg = "Some submissions ended in checking_error: look at `./inv status`, then `./inv rerun NAME`."
        raise Exit(msg, code=1)


def _stop_on_signals(dispatcher: Any) -> list[int]:
    """Let Ctrl-C and SIGTERM end the dispatcher in good order; return the list that notes which came."""
    received: list[int] = []

    def stop(signal_number: int, _frame: object) -> None:
        received.append(signal_number)
        dispatcher.stop()

    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, stop)
    return received


@task(
    name="new-event",
    positional=["name"],
    help={
        "name": "the event's name",
        "kit": "folder or git URL of the kit",
        "worker": "local, conda, aws or dask",
        "into": "folder that the event's folder is made in (default: here)",
    },
)
@front_door
def new_event(_: Context, name: str, kit: str, worker: str = "local", into: str = ".") -> None:
    """Make the folders and a commented config.yml of a new event."""
    from runner.new_event import new_event as make

    config = make(Path(into), name, kit, worker)
    print(f"Wrote {config}. Look through it, then: ./inv run-event --config {config}")


@task(name="create-env", help=EVENT)
@front_door
def create_env(_: Context, config: str | None = None, deployment_dir: str | None = None) -> None:
    """Create the conda environment of an event from the kit's environment.yml."""
    from runner.conda_env import create_environment
    from runner.config import load_config

    print(create_environment(load_config(config or IRIS, deployment_dir=deployment_dir)))


@task(name="update-env", help=EVENT)
@front_door
def update_env(_: Context, config: str | None = None, deployment_dir: str | None = None) -> None:
    """Bring the conda environment of an event up to date with the kit's environment.yml."""
    from runner.conda_env import update_environment
    from runner.config import load_config

    print(update_environment(load_config(config or IRIS, deployment_dir=deployment_dir)))


# -- looking ----------------------------------------------------------------------------------------------------------


@task(help=LOOK)
@front_door
def status(_: Context, config: str | None = None, deployment_dir: str | None = None, json_: bool = False) -> None:
    """Show every submission: its state, why it ended, what it used."""
    from runner import console

    with opened(config, deployment_dir) as event:
        warn(event.config)
        found = event.status()
    if json_:
        print_json(found)
    else:
        console.show_status(found)


@task(help={**LOOK, "step": "rank by valid (default) or test"})
@front_door
def leaderboard(
    _: Context,
    config: str | None = None,
    deployment_dir: str | None = None,
    step: str = "valid",
    json_: bool = False,
) -> None:
    """Show the scores, best first by the kit's official score."""
    from runner import console
    from runner.errors import UsageError
    from runner.status import leaderboard_json

    if step not in ("valid", "test"):
        msg = f"--step cannot be {step!r}; give valid or test"
        raise UsageError(msg)
    with opened(config, deployment_dir) as event:
        rows, kit = event.rows(step), event.kit()
    if json_:
        print_json(leaderboard_json(event.config.event_name, rows, kit))
    else:
        console.show_leaderboard(rows, kit, step=step)


@task(
    positional=["name"],
    help={**LOOK, "name": "the submission", "follow": "go on until the submission has ended"},
)
@front_door
def logs(
    _: Context,
    name: str,
    config: str | None = None,
    deployment_dir: str | None = None,
    follow: bool = False,
    json_: bool = False,
) -> None:
    """Print the log of a submission; with --follow as it is written."""
    with opened(config, deployment_dir) as event:
        for text in event.log(name, follow=follow and not json_):
            if json_:
                print_json({"event": event.config.event_name, "name": name, "log": text})
            else:
                print(text, end="", flush=True)


# -- steering ---------------------------------------------------------------------------------------------------------


@task(
    positional=["path"],
    help={**LOOK, "path": "folder (or single file) to submit", "name": "its name (default: the folder's)"},
)
@front_door
def submit(
    _: Context,
    path: str,
    name: str | None = None,
    config: str | None = None,
    deployment_dir: str | None = None,
    json_: bool = False,
) -> None:
    """Send a submission in. A running event starts it at once."""
    source = Path(path).resolve()
    with opened(config, deployment_dir) as event:
        name = name or source.stem
        event.submit(source, name)
        limit = event.config.worker.timeout
    said = {"event": event.config.event_name, "name": name, "state": "new", "time_limit": limit}
    say(said, f"Submitted {name!r}; it may train for {limit:g} s.", as_json=json_)


@task(positional=["name"], help={**LOOK, "name": "the submission"})
@front_door
def cancel(
    _: Context, name: str, config: str | None = None, deployment_dir: str | None = None, json_: bool = False
) -> None:
    """Cancel a submission that waits or runs."""
    with opened(config, deployment_dir) as event:
        state = event.store.request_cancel(name)
    said = {"event": event.config.event_name, "name": name, "state": state.value}
    ending = "is cancelled" if state.is_final else "is being ended by the dispatcher that runs it"
    say(said, f"Submission {name!r} {ending}.", as_json=json_)


@task(positional=["name"], help={**LOOK, "name": "the submission"})
@front_door
def rerun(
    _: Context, name: str, config: str | None = None, deployment_dir: str | None = None, json_: bool = False
) -> None:
    """Train a submission that has ended once more."""
    with opened(config, deployment_dir) as event:
        event.store.rerun(name)
    say(
        {"event": event.config.event_name, "name": name, "state": "new"},
        f"Submission {name!r} is new again; a running event starts it, otherwise `./inv run-event` does.",
        as_json=json_,
    )


# -- AWS --------------------------------------------------------------------------------------------------------------


@task(
    help={
        **LOOK,
        "address": "address from which AWS sees this machine, to compare with the security group",
        "launch": "also launch one instance, look for the kit on it, and end it (costs a few cents)",
    }
)
@front_door
def doctor(
    _: Context,
    config: str | None = None,
    deployment_dir: str | None = None,
    address: str | None = None,
    launch: bool = False,
    json_: bool = False,
) -> None:
    """Check everything that an event needs and say what to do about what is wrong. Changes nothing."""
    from runner import console
    from runner.checkup import examine

    found = examine(
        path_of(config) or IRIS, deployment_dir=path_of(deployment_dir), bring=bring, address=address, launch=launch
    )
    if json_:
        print_json(found)
    else:
        console.show_findings(found)
    if not found["ok"]:
        msg = ""
        raise Exit(msg, code=1)


@task(
    help={
        **LOOK,
        "owner": "whose instances (default: those of the event's owner)",
        "older_than": "only what is older than so many hours",
        "yes": "do it; without this it is only said",
        "all_": "also what is in use, kept to be looked at, or of another event",
    }
)
@front_door
def sweep(
    _: Context,
    config: str | None = None,
    deployment_dir: str | None = None,
    owner: str | None = None,
    older_than: str = "0",
    yes: bool = False,
    all_: bool = False,
    json_: bool = False,
) -> None:
    """Find what was left running on EC2 and end it. Without --yes nothing is done."""
    from runner import console
    from runner.checkup import sweep_event

    hours = number(older_than, "--older-than", float)
    with opened(config, deployment_dir) as event:
        swept = sweep_event(event, bring=bring, owner=owner, older_than_hours=hours, everything=all_, really=yes)
    if json_:
        print_json(swept)
    else:
        console.show_sweep(swept)


@task(
    help={
        "config": "the event's config.yml (default: the bundled examples/iris/aws.yml)",
        "deployment_dir": EVENT["deployment_dir"],
        "faults": "what goes wrong on the way, comma separated: spot, capacity, ssh ...",
        "json_": LOOK["json_"],
    }
)
@front_door
def rehearse(
    _: Context,
    config: str | None = None,
    deployment_dir: str | None = None,
    faults: str = "",
    json_: bool = False,
) -> None:
    """Run an AWS event on an emulated AWS on this machine: nothing is launched, nothing is paid."""
    bring("rehearsal")
    from runner import console
    from runner.rehearsal.rehearse import rehearse as run

    rehearsed = run(path_of(config) or IRIS_AWS, deployment_dir=path_of(deployment_dir), faults=faults)
    if json_:
        print_json(rehearsed)
    else:
        console.show_rehearsal(rehearsed)
