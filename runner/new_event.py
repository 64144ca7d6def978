"""Makes the folder of a new event: a commented config.yml, the kit, the first submission, folders for what comes.

<folder>/NAME/config.yml                 the folder NAME is the event's deployment folder
<folder>/NAME/ramp-kits/<problem>        the kit, when it was cloned; a kit on this machine stays where it is
<folder>/NAME/events/NAME/submissions    with the kit's starting kit; beside it predictions and logs
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import textwrap
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from runner.config import WORKER_SECTIONS, DispatcherSection, RampSection, StoreSection
from runner.config_file import allowed_values
from runner.config_types import GIT_ADDRESS
from runner.config_worker import WorkerSection
from runner.errors import KitError, UsageError
from runner.inbox import put
from runner.reference import default_value, meaning, one_line, said_default

CLONE_LIMIT = 600.0  # seconds
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_SCHEMA = Path(__file__).parents[1] / "docs" / "config.schema.json"
_SANDBOX = str(RampSection.model_fields["sandbox_dir"].default)
_LAST_LINES = 8


def new_event(folder: Path, name: str, kit: str, worker: str, *, clone_limit: float = CLONE_LIMIT) -> Path:
    """Make ``<folder>/<name>`` and return the config.yml in it. After a failure nothing of it is there.

    Args:
        folder: where the event's folder comes.
        name: the event's name.
        kit: folder of a kit, which is used where it is, or the address of a git repository, which is cloned.
        worker: local, conda, aws or dask.
        clone_limit: seconds after which a clone is given up.

    Raises:
        UsageError: the name is taken or cannot be an event's, the worker is not known, or ``kit`` is neither a folder
            nor an address that git may be given.
        KitError: the kit has no problem.py, or git is missing or failed.
        SubmissionUnusable: the kit's starting kit holds links or devices.
    """
    _check(name, worker)
    home = Path(os.path.abspath(folder)) / name  # noqa: PTH100 - resolve() would follow links
    if os.path.lexists(home):
        msg = f"{home} is there already; give another name, or remove it"
        raise UsageError(msg)
    problem, source = _problem_name(kit), _local_kit(kit)
    # Made under another name and renamed at the end, so that there is all of it or nothing.
    partial = home.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        kit_dir = source or partial / "ramp-kits" / problem
        event_dir = partial / "events" / name
        for part in ("submissions", "predictions", "logs"):
            (event_dir / part).mkdir(parents=True)
        if source is None:
            kit_dir.parent.mkdir()
            _clone(kit, kit_dir, clone_limit)
        if not (kit_dir / "problem.py").is_file():
            msg = f"{kit} is no kit: it has no problem.py; give the folder or repository that has one"
            raise KitError(msg)
        sandbox = kit_dir / "submissions" / _SANDBOX
        if sandbox.is_dir():
            put(sandbox, event_dir / "submissions", _SANDBOX)
        values = {"problem_name": problem, "event_name": name, "worker_type": worker, "hunger_policy": "exit"}
        if source is not None:
            values["kit_dir"] = _written(source, home)
        if (kit_dir / "data").is_dir():
            values["data_dir"] = values.get("kit_dir", f"ramp-kits/{problem}")
        values |= {"conda": {"conda_env": f"ramp-{problem}"}, "dask": {"dask_scheduler": "local"}}.get(worker, {})
        (partial / "config.yml").write_text(_config(values, home), encoding="utf-8")
        partial.rename(home)
    except OSError as error:
        msg = f"{home} cannot be made: {error.strerror}; mend that or choose another folder"
        raise UsageError(msg) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return home / "config.yml"


def _check(name: str, worker: str) -> None:
    if not _NAME.fullmatch(name):
        msg = (
            f"an event cannot be named {name!r:.120}; use up to 100 letters, digits, `_`, `.` and `-`, "
            "a letter or digit first"
        )
        raise UsageError(msg)
    if worker not in WORKER_SECTIONS:
        msg = f"{worker!r} is no worker; give --worker {', '.join(WORKER_SECTIONS)}"
        raise UsageError(msg)


def _local_kit(kit: str) -> Path | None:
    """Return the kit's folder, None when it is to be cloned."""
    if kit and not kit.startswith("-"):
        path = Path(kit)
        if path.is_dir():
            return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
        if re.fullmatch(GIT_ADDRESS, kit) and "::" not in kit.partition("/")[0]:
            return None
    msg = (
        f"{_without_secrets(kit)!r} is no folder and no git address; "
        "give --kit a folder, or an address such as https://github.com/ramp-kits/iris"
    )
    raise UsageError(msg)


def _problem_name(kit: str) -> str:
    last = re.split(r"[/:]", kit.rstrip("/"))[-1].removesuffix(".git")
    if last in {"", ".", ".."}:
        last = Path(kit).resolve().name
    return re.sub(r"[^A-Za-z0-9_.-]", "_", last).lstrip("_.-")[:100] or "kit"


def _written(path: Path, home: Path) -> str:
    """Return a path for config.yml: relative when it lies beside the event, so that both can be moved together."""
    return os.path.relpath(path, home) if path.is_relative_to(home.parent) else str(path)


# -- git -------------------------------------------------------------------------------------------------------------


def _clone(address: str, target: Path, limit: float) -> None:
    # Addresses of the form helper::address make git run a program; the flag holds for redirects and all else too.
    command = ["git", "-c", "protocol.ext.allow=never", "clone", "--depth", "1", "--", address, str(target)]
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(  # noqa: S603 - an argument list, never a shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={"GIT_SSH_COMMAND": "ssh -o BatchMode=yes", **os.environ, "GIT_TERMINAL_PROMPT": "0"},
                start_new_session=True,
            )
        except FileNotFoundError as error:
            msg = "git is not installed, so the kit cannot be cloned; install it or give a folder"
            raise KitError(msg) from error
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired as error:
            msg = (
                f"{_without_secrets(address)} was not cloned within {limit:g} s; clone it yourself and give its folder"
            )
            raise KitError(msg) from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with the helpers that git started
                process.wait()
        if code:
            output.seek(0)
            lines = output.read().decode("utf-8", "replace").splitlines()[-_LAST_LINES:]
            said = _without_secrets("\n".join(lines))
            msg = f"git could not clone {_without_secrets(address)}; check the address:\n{said}"
            raise KitError(msg)


def _without_secrets(text: str) -> str:
    """Hide user and password of addresses; ssh users stay."""
    return re.sub(r"://[^/@\s]*@", "://…@", text)


# -- config.yml ------------------------------------------------------------------------------------------------------


def _config(values: Mapping[str, str], home: Path) -> str:
    """Return the text of config.yml: every key of the worker, those without a value as comments with their default."""
    groups: dict[str, type[BaseModel]] = {
        "What the event is and where its files are": RampSection,
        "What runs the submissions": WORKER_SECTIONS[values["worker_type"]],
        "How many at once, and what then": DispatcherSection,
        "Where the event's truth is kept": StoreSection,
    }
    lines = [
        *_schema_line(home),
        f"# The event {values['event_name']}. Run it with `./inv run-event --config <this file>`.",
        "# A key that is commented out shows its default. Relative paths start at the folder of this file.",
    ]
    for title, section in groups.items():
        lines += ["", f"# -- {title} --"]
        needed = {group[0] for group in section.one_of} if issubclass(section, WorkerSection) else set()
        for key, field in section.model_fields.items():
            lines += _entry(key, field, values, needed=field.is_required() or key in needed)
    return "\n".join(lines) + "\n"


def _entry(key: str, field: FieldInfo, values: Mapping[str, str], *, needed: bool) -> Iterator[str]:
    text = meaning(field) + ("" if key == "worker_type" else f" Takes {allowed_values(field)}.")
    default = default_value(key, field, values)
    if said_default(field) and not default and not needed:
        text += f" Default: {said_default(field)}."  # it cannot be shown as a value
    yield from textwrap.wrap(text, 110, initial_indent="# ", subsequent_indent="# ")
    if key in values:
        yield one_line(key, values[key])
    elif needed:
        yield f"{one_line(key, _example(key, values['problem_name']))}  # fill in: this is only an example"
    else:
        yield f"# {key}: {default}".rstrip()


def _example(key: str, problem: str) -> str:
    return {
        "ami_image_name": problem,
        "remote_ramp_kit_folder": f"/home/ubuntu/ramp-kits/{problem}",
    }.get(key, "fill-in")


def _schema_line(home: Path) -> list[str]:
    # Only inside a checkout is there a path that stays right when the checkout is moved.
    if not _SCHEMA.is_file() or not home.is_relative_to(_SCHEMA.parents[1]):
        return []
    return [f"# yaml-language-server: $schema={os.path.relpath(_SCHEMA, home)}"]
