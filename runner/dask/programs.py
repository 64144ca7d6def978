"""Scheduler and worker as programs of a machine that we reach by SSH: checked, given their keys, started, asked.

A program runs under a keeper, a few lines of shell that start it again when it can go on, and switch the machine off
when it has ended for good: nothing outlives a cluster that nobody uses. Keys come over the connection, never with the
launch, and lie on the machine's volume, which is encrypted and goes with it, for its login user alone.
"""

import io
import json
import platform
import shlex
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from runner.dask import limits as limits_module
from runner.dask.certificates import RoleFiles
from runner.errors import KitError, TransportError, WorkerError
from runner.transport.base import Transport

PORT = 8786
NO_DASHBOARD = ("--no-dashboard", "--dashboard-address=127.0.0.1:0")
# Of schedulers and workers: what their command lines cannot say.
TLS_SETTINGS = {
    "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True",
    "DASK_DISTRIBUTED__COMM__TLS__MIN_VERSION": "1.3",
}
_SHORT = 60.0  # seconds for a command that only looks
_FOLDER = ".ramp-cloud/dask"
_LOG_LINES = "40"
_JSON = "ramp-cloud:"  # a login shell may print what it likes; our line starts with this
_MODULES = {"scheduler": "distributed.cli.dask_scheduler", "worker": "distributed.cli.dask_worker"}
_LOOK = f"""
import json, platform
try:
    import distributed
    found = distributed.__version__
except ImportError as error:
    found = f"none ({{error}})"
print()
print({_JSON!r} + json.dumps({{"distributed": found, "python": platform.python_version()}}))
"""
_PLACE = 'umask 077; mkdir -p "$1/keys" "$1/local" && cd && pwd'
_KEEPER = """\
# keeper.sh ROLE LOG COMMAND...: starts a worker again that had found its scheduler, and a scheduler that did not end in
# good order. Otherwise, and after many quick ends, the machine is switched off.
role=$1 log=$2 left=20
shift 2
while :; do
    began=$(date +%s) known=$(grep -c 'Registered to:' "$log")
    "$@" & program=$!
    wait "$program"
    code=$? lasted=$(($(date +%s) - began)) left=$((left - 1))
    echo "ramp-cloud: the $role ended with code $code after $lasted s"
    [ "$lasted" -lt 60 ] || left=20
    [ "$left" -gt 0 ] || break
    if [ "$role" = scheduler ]; then
        [ "$code" -ne 0 ] || break
    else
        [ "$code" -ge 128 ] || [ "$(grep -c 'Registered to:' "$log")" -gt "$known" ] || break
    fi
    sleep 2
done
echo "ramp-cloud: switched off"
sudo -n shutdown -P now
"""
_START = """
umask 077
setsid sh "$1/keeper.sh" "$2" "$1/log" bash -lc '. "$1"' dask "$1/program.sh" </dev/null >>"$1/log" 2>&1 &
"""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When programs end by themselves, in seconds; and when the machine does, in minutes."""

    idle: float  # that a scheduler has neither a client nor a training
    death: float  # that a worker has no scheduler
    life: int  # minutes


def check(transport: Transport, python: str) -> None:
    """Check that a machine's Python can be part of our cluster.

    Args:
        transport: a connection as the login user.
        python: its interpreter there.

    Raises:
        KitError: it has no distributed, or one that does not fit ours.
        TransportError: the connection broke.
    """
    said = transport.run(["bash", "-lc", 'exec "$@"', "look", _at_home(python), "-c", _LOOK], timeout=_SHORT)
    lines = said.out.decode("utf-8", "replace").splitlines()
    found = next((json.loads(line.removeprefix(_JSON)) for line in lines if line.startswith(_JSON)), None)
    ours = {"distributed": version("distributed"), "python": platform.python_version()}
    if found is not None and _comparable(found) == _comparable(ours):
        return
    has = f"distributed {found['distributed']}, Python {found['python']}" if found else "no Python that answers"
    msg = (
        f"the image has {has} in the kit's environment; a cluster needs distributed {ours['distributed']} and Python "
        f"{'.'.join(ours['python'].split('.')[:2])}, as on this machine; build the image anew with this config.yml"
    )
    raise KitError(msg, detail=said.err.decode("utf-8", "replace")[-2000:])


def start(
    transport: Transport,
    role: str,
    *,
    python: str,
    files: RoleFiles,
    limits: Limits,
    arguments: Sequence[str],
) -> None:
    """Bring a role's keys to a machine and start its program, detached from the connection.

    Args:
        role: scheduler or worker.
        python: the machine's interpreter.
        files: the role's own certificate and key.
        limits: when it ends by itself.
        arguments: of the program, besides those for its keys.

    Raises:
        WorkerError: the machine refused.
        TransportError: the connection broke.
    """
    place = transport.run(["sh", "-c", _PLACE, "place", _FOLDER], timeout=_SHORT)
    if place.code:
        raise _refused(place.err, "its keys")
    home = place.out.decode().strip()
    folder = f"{home}/{_FOLDER}"
    keys = f"{folder}/keys"
    transport.put(_archive({name: getattr(files, name) for name in ("ca", "cert", "key")}), keys, timeout=_SHORT)
    tls = [part for name in ("ca", "cert", "key") for part in (f"--tls-{_OPTIONS[name]}", f"{keys}/{name}.pem")]
    own = [f"--local-directory={folder}/local"] if role == "worker" else [f"--preload={folder}/limits.py"]
    interpreter = home + python.removeprefix("~") if python.startswith("~/") else python
    command = [interpreter, "-m", _MODULES[role], *arguments, *own, *tls, *NO_DASHBOARD]
    settings = {**_CONFIG, limits_module.IDLE: f"{limits.idle:g}"}
    texts = {
        "keeper.sh": _KEEPER,
        "limits.py": Path(str(limits_module.__file__)).read_text(encoding="utf-8"),
        "program.sh": f"export {shlex.join(f'{name}={value}' for name, value in settings.items())}\n"
        f"exec {shlex.join(command)}\n",
    }
    transport.put(_archive(texts), _FOLDER, timeout=_SHORT)
    prolong(transport, limits.life)
    said = transport.run(["sh", "-c", _START, "start", folder, role], timeout=_SHORT)
    if said.code:
        raise _refused(said.err, f"the {role}")


def prolong(transport: Transport, minutes: int) -> None:
    """Set the machine's timer anew, which at its boot was short: nobody might have come.

    Raises:
        WorkerError: the machine refused.
        TransportError: the connection broke.
    """
    transport.run(["sudo", "-n", "shutdown", "-c"], timeout=_SHORT)
    said = transport.run(["sudo", "-n", "shutdown", "-P", f"+{minutes}"], timeout=_SHORT)
    if said.code:
        raise _refused(said.err, "its timer")


def last_words(transport: Transport) -> str:
    """Return the end of the program's log, "" when it cannot be read."""
    try:
        said = transport.run(["tail", "-n", _LOG_LINES, f"{_FOLDER}/log"], timeout=_SHORT)
    except TransportError:
        return ""
    return said.out.decode("utf-8", "replace")


_OPTIONS = {"ca": "ca-file", "cert": "cert", "key": "key"}
_CONFIG: Mapping[str, str] = {
    **TLS_SETTINGS,
    # The server of the dashboard starts even without one: it serves nothing, on the machine's loopback.
    "DASK_DISTRIBUTED__SCHEDULER__HTTP__ROUTES": "[]",
    "DASK_DISTRIBUTED__WORKER__HTTP__ROUTES": "[]",
    "DASK_DISTRIBUTED__SCHEDULER__REUSE_BROADCAST_COMM": "True",  # or every question costs a handshake
    "DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING_INTERVAL": "100ms",
    "PYTHONUNBUFFERED": "1",
}


def _at_home(python: str) -> str:
    return python.removeprefix("~/")


def _comparable(found: Mapping[str, Any]) -> tuple[str, ...]:
    return (str(found["distributed"]), *str(found["python"]).split(".")[:2])


def _archive(files: Mapping[str, Path | str]) -> io.BytesIO:
    """Pack files that only their owner may read: PEM files by their paths, others by their text."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            is_key = isinstance(content, Path)
            data = content.read_bytes() if isinstance(content, Path) else content.encode()
            entry = tarfile.TarInfo(f"{name}.pem" if is_key else name)
            entry.size, entry.mode = len(data), 0o600
            archive.addfile(entry, io.BytesIO(data))
    packed.seek(0)
    return packed


def _refused(said: bytes, what: str) -> WorkerError:
    msg = f"the machine did not take {what}; another one is tried"
    return WorkerError(msg, detail=said.decode("utf-8", "replace")[-2000:])
