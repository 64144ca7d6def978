"""The front door: every task of ramp-cloud. `./inv --list` shows them, `./inv --help TASK` explains one."""

import importlib
import importlib.util
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from invoke import Context, Exit, task

ROOT = Path(__file__).resolve().parent
IRIS = ROOT / "examples" / "iris" / "config.yml"
IRIS_AWS = IRIS.with_name("aws.yml")
# What tells that a set of packages is there already, whoever installed it.
SETS = {
    "aws": ("boto3", "paramiko"),
    "dask": ("cryptography", "dask_cloudprovider", "distributed", "paramiko"),
    "infra": ("boto3", "paramiko", "pulumi", "pulumi_aws"),
    "rehearsal": ("asyncssh", "boto3", "memory_profiler", "moto", "paramiko"),
}


def front_door(body: Callable[..., Any]) -> Callable[..., Any]:
    """Turn expected errors into one message and an exit code: 1 failed, 2 wrong use."""

    @wraps(body)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        from runner.errors import RampCloudError

        try:
            return body(*args, **kwargs)
        except RampCloudError as error:
            raise Exit(error.for_organiser(), code=error.exit_code) from error
        except (Exit, KeyboardInterrupt, BrokenPipeError):
            raise
        except Exception as error:  # the front door: nothing may end without a word on what to do
            traceback.print_exc()
            msg = f"This is a defect of ramp-cloud ({error}); please report the lines above."
            raise Exit(msg, code=1) from error

    return guarded


def _bring(requirements: str) -> None:
    """Install a further set of packages on its first use."""
    known = SETS.get(requirements, ())
    if known and all(importlib.util.find_spec(package) for package in known):
        return
    command = [sys.executable, str(ROOT / "inv"), "--bring", requirements]
    if subprocess.run(command, check=False).returncode:  # noqa: S603 - an argument list, never a shell
        msg = ""
        raise Exit(msg, code=1)  # inv has said what failed and what to do
    importlib.invalidate_caches()


def _open(config: str | None, deployment_dir: str | None) -> Any:
    from runner.event import open_event

    return open_event(_path(config) or IRIS, deployment_dir=_path(deployment_dir))


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _number(text: str, flag: str, kind: type[float]) -> Any:
    """Return what a flag says; invoke's own conversion would answer a slip with its traceback."""
    from runner.errors import UsageError

    try:
        return kind(text)
    except ValueError as error:
        msg = f"{flag} cannot be {text!r}; give a number"
        raise UsageError(msg) from error


def _warn(config: Any) -> None:
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _print_json(value: Any) -> None:
    print(json.dumps(value, allow_nan=False, ensure_ascii=False))


def _say(value: dict[str, Any], sentence: str, *, as_json: bool) -> None:
    if as_json:
        _print_json(value)
    else:
        print(sentence)


EVENT = {
    "config": "the event's config.yml (default: the bundled iris event)",
    "deployment_dir": "folder that relative paths start at (default: the config's own)",
}
EMULATED = {**EVENT, "emulated": "on an emulated AWS, kept in events/<event>/emulated; nothing is paid"}
LOOK = {**EVENT, "json_": "print one JSON object and nothing else"}

# -- an event ---------------------------------------------------------------------------------------------------------


@task(name="run-event", help=EMULATED)
@front_door
def run_event(_: Context, config: str | None = None, deployment_dir: str | None = None, emulated: bool = False) -> None:
    """Train and score every new submission of an event. Ctrl-C ends it and loses nothing."""
    with _account(config, deployment_dir, emulated=emulated) as (path, folder):
        _run_event(path, folder)


def _run_event(path: str | None, folder: str | None) -> None:
    from runner import console
    from runner.errors import LaunchStopped

    stopped: LaunchStopped | None = None
    with _open(path, folder) as event:
        _warn(event.config)
        if event.config.worker.worker_type in ("aws", "dask"):
            _bring(event.config.worker.worker_type)
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


@contextmanager
def _account(
    config: str | None, deployment_dir: str | None, *, emulated: bool
) -> Iterator[tuple[str | None, str | None]]:
    """Yield config and deployment folder to work with: the given ones, or those of the event on an emulated AWS."""
    if not emulated:
        yield config, deployment_dir
        return
    _bring("rehearsal")
    from runner.config import load_config
    from runner.layout import emulated_folder
    from runner.rehearsal.emulation import emulated as on_emulated_aws

    path = _path(config) or IRIS_AWS
    event = load_config(path, deployment_dir=_path(deployment_dir))
    folder = emulated_folder(event.deployment_dir, event.event_name)
    with on_emulated_aws(path, deployment_dir=_path(deployment_dir), folder=folder, seed_image=False) as emulation:
        yield str(emulation.config), None


def _stop_on_signals(dispatcher: Any) -> list[int]:
    """Let Ctrl-C and SIGTERM end the dispatcher in good order; return the list that notes which came."""
    received: list[int] = []

    def stop(number: int, _frame: object) -> None:
        received.append(number)
        dispatcher.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
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

    with _open(config, deployment_dir) as event:
        _warn(event.config)
        found = event.status()
    if json_:
        _print_json(found)
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
    with _open(config, deployment_dir) as event:
        rows, kit = event.rows(step), event.kit()
    if json_:
        _print_json(leaderboard_json(event.config.event_name, rows, kit))
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
    with _open(config, deployment_dir) as event:
        for text in event.log(name, follow=follow and not json_):
            if json_:
                _print_json({"event": event.config.event_name, "name": name, "log": text})
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
    with _open(config, deployment_dir) as event:
        name = name or source.stem
        event.submit(source, name)
        limit = event.config.worker.timeout
    said = {"event": event.config.event_name, "name": name, "state": "new", "time_limit": limit}
    _say(said, f"Submitted {name!r}; it may train for {limit:g} s.", as_json=json_)


@task(positional=["name"], help={**LOOK, "name": "the submission"})
@front_door
def cancel(
    _: Context, name: str, config: str | None = None, deployment_dir: str | None = None, json_: bool = False
) -> None:
    """Cancel a submission that waits or runs."""
    with _open(config, deployment_dir) as event:
        state = event.store.request_cancel(name)
    said = {"event": event.config.event_name, "name": name, "state": state.value}
    ending = "is cancelled" if state.is_final else "is being ended by the dispatcher that runs it"
    _say(said, f"Submission {name!r} {ending}.", as_json=json_)


@task(positional=["name"], help={**LOOK, "name": "the submission"})
@front_door
def rerun(
    _: Context, name: str, config: str | None = None, deployment_dir: str | None = None, json_: bool = False
) -> None:
    """Train a submission that has ended once more."""
    with _open(config, deployment_dir) as event:
        event.store.rerun(name)
    _say(
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
        _path(config) or IRIS, deployment_dir=_path(deployment_dir), bring=_bring, address=address, launch=launch
    )
    if json_:
        _print_json(found)
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

    hours = _number(older_than, "--older-than", float)
    with _open(config, deployment_dir) as event:
        swept = sweep_event(event, bring=_bring, owner=owner, older_than_hours=hours, everything=all_, really=yes)
    if json_:
        _print_json(swept)
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
    _bring("rehearsal")
    from runner import console
    from runner.rehearsal.rehearse import rehearse as run

    rehearsed = run(_path(config) or IRIS_AWS, deployment_dir=_path(deployment_dir), faults=faults)
    if json_:
        _print_json(rehearsed)
    else:
        console.show_rehearsal(rehearsed)


# -- Dask -------------------------------------------------------------------------------------------------------------

CLUSTER = {
    **EVENT,
    "config": "the event's config.yml, which names the scheduler",
    "port": "port that it listens on (default: scheduler as in config.yml, workers 8790)",
    "hosts": "run it on these machines over SSH in place of this one: [USER@]HOST[:PORT], comma separated",
    "python": "interpreter that has distributed (default: this one; on --hosts the same path)",
    "key": "private key for --hosts (default: that of ~/.ssh)",
    "known_hosts": "file with the host keys of --hosts (default: ~/.ssh/known_hosts)",
}


@task(name="dask-scheduler", help={**CLUSTER, "address": "address that it listens on (default: as in config.yml)"})
@front_door
def dask_scheduler(
    _: Context,
    config: str,
    deployment_dir: str | None = None,
    address: str | None = None,
    port: str = "",
    hosts: str = "",
    python: str | None = None,
    key: str | None = None,
    known_hosts: str = "~/.ssh/known_hosts",
) -> None:
    """Run the scheduler of an event's Dask cluster, here or on one other machine, until Ctrl-C."""
    _bring("dask")
    from runner.config import load_config
    from runner.dask import launch
    from runner.errors import UsageError

    keys = load_config(config, deployment_dir=deployment_dir).worker_config()
    plan = launch.scheduler_plan(keys, address=address, port=_number(port, "--port", int) if port else None)
    places = _places(hosts, python, key, known_hosts)
    if len(places) > 1:
        msg = "a cluster has one scheduler; name one machine with --hosts"
        raise UsageError(msg)
    _keep(plan, places, launch.firewall_rules(plan, keys))


@task(
    name="dask-worker",
    help={
        **CLUSTER,
        "address": "by which the scheduler reaches the workers (default: the one that leads to the scheduler)",
        "slots": "submissions that a machine trains at once (default: its cores)",
    },
)
@front_door
def dask_worker(
    _: Context,
    config: str,
    deployment_dir: str | None = None,
    address: str | None = None,
    port: str = "",
    slots: str = "",
    hosts: str = "",
    python: str | None = None,
    key: str | None = None,
    known_hosts: str = "~/.ssh/known_hosts",
) -> None:
    """Run workers of an event's Dask cluster, here or on other machines, until Ctrl-C."""
    _bring("dask")
    from runner.config import load_config
    from runner.dask import launch

    keys = load_config(config, deployment_dir=deployment_dir).worker_config()
    plan = launch.worker_plan(
        keys,
        address=address,
        port=_number(port, "--port", int) if port else None,
        slots=_number(slots, "--slots", int) if slots else None,
        elsewhere=bool(hosts),
    )
    places = _places(hosts, python, key, known_hosts)
    _keep(plan, places, launch.firewall_rules(plan, keys, [place.name for place in places] if hosts else []))


def _places(hosts: str, python: str | None, key: str | None, known_hosts: str) -> list[Any]:
    from runner.dask.hosts import hosts_of
    from runner.dask.launch import Here

    if not hosts:
        return [Here(python)]
    known = Path(known_hosts).expanduser()
    return list(hosts_of(hosts, key=_path(key), python=python or sys.executable, known_hosts=known))


def _keep(plan: Any, places: list[Any], rules: list[str]) -> None:
    """Keep a plan running until Ctrl-C or SIGTERM; what is said comes as it is said."""
    from runner.dask.launch import keep_all

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: stop.set())
    print("\n".join([*rules, "Ctrl-C ends it."]), flush=True)
    if failed := keep_all(plan, places, lambda line: print(line, flush=True), stop):
        msg = f"It could not run, or not any more, on {', '.join(failed)}."
        raise Exit(msg, code=1)


# -- the stack of an event --------------------------------------------------------------------------------------------

STACK = {"config": "the event's config.yml (default: the bundled examples/iris/aws.yml)"}


def _stack(config: str | None) -> Any:
    _bring("infra")
    from infra.automation import EventStack

    return EventStack(_path(config) or IRIS_AWS, say=lambda line: print(line, file=sys.stderr, flush=True))


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
    """Delete in AWS what `./inv up` made; images stay. Refuses while instances of the event run."""
    from runner.checkup import sweep_event
    from runner.errors import UsageError

    stack = _stack(config)
    with _open(config or str(IRIS_AWS), None) as event:
        # Where nothing on this machine says whose the instances are, the stack does.
        known = getattr(event.config.worker, "owner", None) or _outputs_file(event.config).exists()
        found = sweep_event(event, bring=_bring, owner=None if known else stack.owner())["found"]
    running = [row["id"] for row in found if row["kind"] == "instance" and row["event"] == event.config.event_name]
    if running:
        msg = f"{', '.join(running)} of this event run; let them end, or stop run-event and `./inv sweep --yes`"
        raise UsageError(msg)
    print("\n".join(stack.preview_down().in_words()))
    print("Images and their snapshots stay; `./inv prune-images` shows them, and works only until then.")
    _agreed("Do it?", yes=yes)
    if left := stack.down():
        print(f"Protected, and so still there: {', '.join(left)}.")
        print("With `force: true` under `infra:`, `./inv up` and then `./inv down` delete them and all they hold.")
    else:
        print("Done. Pulumi keeps the stack itself, empty: `pulumi stack rm` removes it.")


def _outputs_file(event: Any) -> Path:
    from infra.automation import outputs_file

    return outputs_file(event)


# -- the image of an event --------------------------------------------------------------------------------------------


@contextmanager
def _release(config: str | None, deployment_dir: str | None, *, emulated: bool = False) -> Iterator[Any]:
    """Open the images of an event; on an emulated AWS with what `pulumi up` would have made."""
    _bring("aws")
    with _account(config or str(IRIS_AWS), deployment_dir, emulated=emulated) as (path, folder):
        from image_builder.release import Release

        with _open(path, folder) as event:
            _warn(event.config)
            release = Release(config=event.config, store=event.store)
            if emulated:
                from image_builder.emulated import bring_up

                release = bring_up(release)
            yield release


def _follow(release: Any, begin: Callable[[Any], Any]) -> str:
    """Follow a build and return its image, tested. After Ctrl-C it may be cancelled; left alone it goes on in AWS."""
    from image_builder import view

    build = None
    try:
        with view.following() as heard:
            build = begin(heard)
            images = release.follow(build, heard)
    except KeyboardInterrupt:
        if build is None:
            raise
        msg = f"{build} goes on in AWS; `./inv follow-build` shows it again, with --cancel it ends it."
        if view.asks_to_cancel(build):
            release.builder.cancel(build)
            msg = f"{build} is being cancelled; AWS takes some minutes to end its instances."
        raise Exit(msg, code=130) from None
    with view.following() as heard:
        return str(release.accepted(images, heard.note))


@task(
    name="build-image",
    help={**EMULATED, "if_changed": "build nothing when the newest image holds what config.yml says"},
)
@front_door
def build_image(
    _: Context,
    config: str | None = None,
    deployment_dir: str | None = None,
    if_changed: bool = False,
    emulated: bool = False,
) -> None:
    """Build the event's image with its pipeline, test it, and print its id."""
    with _release(config, deployment_dir, emulated=emulated) as release:
        from image_builder import view

        if if_changed and (same := release.unchanged(view.say)):
            view.show_image(same)
            return
        image = _follow(release, release.start)
        if release.section.keep is not None:
            view.say(view.pruning_in_words(release.prune(really=True).as_json()))
        view.show_image(image)


@task(name="follow-build", help={**EVENT, "cancel": "end it in place of following it"})
@front_door
def follow_build(
    _: Context, config: str | None = None, deployment_dir: str | None = None, cancel: bool = False
) -> None:
    """Follow the build that began last, from whatever machine it was started; then test its image."""
    with _release(config, deployment_dir) as release:
        from image_builder import view

        build = release.running()
        if cancel:
            release.builder.cancel(build)
            view.say(f"{build} is being cancelled; AWS takes some minutes to end its instances.")
            return
        view.show_image(_follow(release, lambda _: build))


@task(
    name="bake-image",
    help={**EMULATED, "local": "only run the documents, in this folder of this machine; nothing is launched"},
)
@front_door
def bake_image(
    _: Context,
    config: str | None = None,
    deployment_dir: str | None = None,
    local: str | None = None,
    emulated: bool = False,
) -> None:
    """Build the event's image over SSH, without Image Builder, test it, and print its id."""
    with _release(config, deployment_dir, emulated=emulated) as release:
        from image_builder import view

        with view.following() as heard:
            if local is not None:
                release.try_here(Path(local), heard.line)
                heard.note(f"every document ran to its end in {local}")
                return
            images = {release.session.region(): release.bake(heard)}
            image = release.accepted(images, heard.note)
        view.show_image(image)


@task(name="test-image", help={**EMULATED, "ami": "the image (default: the newest of the event)"})
@front_door
def accept_image(
    _: Context,
    config: str | None = None,
    deployment_dir: str | None = None,
    ami: str | None = None,
    emulated: bool = False,
) -> None:
    """Launch one instance of an image, train the starting kit on it as an event would, and mark the image."""
    with _release(config, deployment_dir, emulated=emulated) as release:
        from image_builder import view

        with view.following() as heard:
            image = release.accepted({release.session.region(): ami or release.newest()}, heard.note)
        view.show_image(image)


@task(help={**LOOK, "emulated": EMULATED["emulated"]})
@front_door
def images(
    _: Context,
    config: str | None = None,
    deployment_dir: str | None = None,
    json_: bool = False,
    emulated: bool = False,
) -> None:
    """Show the event's images: what they hold, whether they passed their test, what uses them."""
    with _release(config, deployment_dir, emulated=emulated) as release:
        from image_builder import view

        found = release.listing().as_json()
    if json_:
        _print_json(found)
    else:
        view.show_images(found)


@task(
    name="prune-images",
    help={
        **LOOK,
        "keep": "how many of the newest images stay (default: image.keep of config.yml)",
        "yes": "do it; without this it is only said",
        "emulated": EMULATED["emulated"],
    },
)
@front_door
def prune_images(
    _: Context,
    config: str | None = None,
    deployment_dir: str | None = None,
    keep: str = "",
    yes: bool = False,
    json_: bool = False,
    emulated: bool = False,
) -> None:
    """Remove old images, their snapshots, and what Image Builder kept of them. Without --yes nothing is done."""
    with _release(config, deployment_dir, emulated=emulated) as release:
        from image_builder import view

        pruned = release.prune(_number(keep, "--keep", int) if keep else None, really=yes)
    if json_:
        _print_json(pruned.as_json())
    else:
        view.show_pruning(pruned.as_json())
    if pruned.failed:
        msg = ""
        raise Exit(msg, code=1)


# -- this project -----------------------------------------------------------------------------------------------------


@task(help={"only": "a test file or folder"})
@front_door
def test(context: Context, only: str = "tests") -> None:  # noqa: PT028 - a task, not a test
    """Run the tests, all of them or a part."""
    _bring("dev")
    # Two processes per core, since half of them wait for machines to boot; a part is run as it is, quicker to start.
    parallel = ["-n", str(2 * (os.cpu_count() or 1)), "--dist", "loadgroup"] if only == "tests" else []
    _run(context, [sys.executable, "-m", "pytest", *parallel, only])


@task
@front_door
def check(context: Context) -> None:
    """Check format, lint, types and documents, then run the tests. This is what CI runs."""
    _bring("dev")
    _run(context, [sys.executable, "-m", "ruff", "format", "--check", "."])
    _run(context, [sys.executable, "-m", "ruff", "check", "."])
    _run(context, [sys.executable, "-m", "mypy"])
    _run(context, [sys.executable, "-m", "pytest", "-q", "tests/unit/test_docs.py"])
    test(context)


@task
@front_door
def document(_: Context) -> None:
    """Write the generated parts of the documents anew: config reference, JSON Schema, README."""
    from runner.reference import documents

    for path, text in documents(ROOT).items():
        path.write_text(text, encoding="utf-8")
        print(f"Wrote {path.relative_to(ROOT)}")


@task(help={"upgrade": "take the newest versions in place of those locked now"})
@front_door
def lock(context: Context, upgrade: bool = False) -> None:
    """Compile requirements/*.txt from pyproject.toml, with hashes and without addresses. Needs uv on PATH."""
    same = ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-emit-index-url", "--no-header"]
    same += ["--quiet", *(["--upgrade"] if upgrade else [])]
    # The set of everything first, and the others in its versions, so that any can be added to any other.
    sets = {"dev": ["aws", "dask", "infra", "rehearsal", "dev"], "rehearsal": ["aws", "rehearsal"]}
    sets |= {"infra": ["aws", "infra"], "dask": ["aws", "dask"]}
    whole: list[str] = []
    for name, extras in {**sets, "aws": ["aws"], "run": []}.items():
        wanted = [word for extra in ("build", *extras) for word in ("--extra", extra)]
        target = f"requirements/{name}.txt"
        _run(context, ["uv", "pip", "compile", "pyproject.toml", *wanted, *same, *whole, "-o", target])
        whole = whole or ["-c", target]
    _run(context, ["uv", "pip", "compile", "-", "--no-annotate", *same, "-o", "requirements/uv.txt"], given="uv")


def _run(_: Context, command: list[str], given: str | None = None) -> None:
    finished = subprocess.run(command, cwd=ROOT, check=False, input=given, text=True)  # noqa: S603 - an argument list
    if finished.returncode:
        msg = f"failed: {shlex.join(command[1:])}"
        raise Exit(msg, code=1)
