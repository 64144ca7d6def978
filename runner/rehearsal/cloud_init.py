"""What the first boot of a machine does: reads user data as cloud-init would, and the words of `shutdown`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.errors import ConfigError
from runner.yaml_lines import read_yaml


@dataclass(frozen=True, kw_only=True)
class FirstBoot:
    """What user data asks for. ``problem`` says why some of it is not done, for the console."""

    host_key: str = ""
    commands: tuple[tuple[str, ...], ...] = ()
    problem: str = ""


def read_user_data(path: Path) -> FirstBoot:
    """Read the user data in a file: a script, or a cloud-config with ssh_keys and runcmd.

    Nothing in it is fatal: on AWS too the machine boots, and the console tells what went wrong.
    """
    content = path.read_bytes()
    if not content:
        return FirstBoot()
    if content.startswith(b"#!"):
        return FirstBoot(commands=((str(path),),))
    if not content.startswith(b"#cloud-config"):
        return FirstBoot(problem="cloud-init: user data that is neither a script nor a #cloud-config is ignored")
    try:
        data = read_yaml(path).data
    except ConfigError as error:
        return FirstBoot(problem=f"cloud-init: {error.message}")
    keys = data.pop("ssh_keys", None) or {}
    commands = data.pop("runcmd", None) or []
    data.pop("ssh_deletekeys", None)
    left_out = f"cloud-init: a rehearsal does not do {', '.join(sorted(data))}" if data else ""
    return FirstBoot(
        host_key=str(keys.get("ed25519_private", "")),
        commands=tuple(_command(command) for command in commands),
        problem=left_out,
    )


def _command(entry: Any) -> tuple[str, ...]:
    return tuple(map(str, entry)) if isinstance(entry, list) else ("/bin/sh", "-c", str(entry))


@dataclass(frozen=True, kw_only=True)
class Shutdown:
    """What `shutdown` was told: end in so many minutes, or forget about it."""

    minutes: float = 1.0
    cancel: bool = False


def read_shutdown(words: list[str]) -> Shutdown:
    """Read the arguments of shutdown(8). A time of day, which a rehearsal cannot wait for, counts as now."""
    if "-c" in words:
        return Shutdown(cancel=True)
    times = [word for word in words if not word.startswith("-")]
    if not times:
        return Shutdown()
    time = times[0].removeprefix("+")
    return Shutdown(minutes=float(time) if time.isdigit() else 0.0)
