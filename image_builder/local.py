"""Runs an image's documents in a folder of this machine, to try a kit before paying for a build: `bake-image --local`.

The folder is the login user's home, and what a document writes to /var and the like goes to a folder within it. What
would act on the machine (sudo, apt-get, systemctl, chown and such) is replaced by stand-ins; documents whose whole
purpose that is are left out.
"""

import contextlib
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from image_builder.documents import ARCHIVE, Document
from image_builder.kit import FolderKit
from image_builder.recipe import ImagePlan
from image_builder.steps import Heard, refuse_others, run_documents
from runner.errors import ConfigError, ImageError, UsageError

CHANGE_THE_SYSTEM = ("system", "gpu")
PHASES = ("build", "validate", "test")
_OURS = ".ramp-cloud"
_TICK = 0.2  # seconds between two looks whether a script has ended that left something holding its output
_LONGEST = 10_000  # characters of a line
_WITHHELD = ("AWS_", "CONDA", "PYTHON", "VIRTUAL_ENV", "RAMP_", "_CE_")
_LEFT_OUT = """#!/bin/sh
echo "ramp-cloud: left out, since it would change this machine: ${0##*/} $*"
"""
_CHANGERS = (
    *("apt", "apt-get", "apt-mark", "dpkg", "dnf", "yum", "snap", "ubuntu-drivers", "systemctl", "service", "modprobe"),
    *("useradd", "usermod", "groupadd", "reboot", "shutdown", "poweroff", "halt"),
)
# Everything in the folder is the current user's already.
_NOTHING_TO_DO = "#!/bin/sh\n"
_OWNERS = ("chown", "chgrp")
# `sudo -u USER -H COMMAND …` and `sudo COMMAND …`: there is nobody else to become.
_SUDO = """#!/bin/bash
while true; do
    case "${1:-}" in
        -u | --user | -g | --group) shift 2 ;;
        -*) shift ;;
        *) break ;;
    esac
done
exec "$@"
"""


class LocalShell:
    """Runs scripts as the current user with a folder as home; see ``steps.Shell``.

    Args:
        folder: the home; exists.
        user: the name that the documents know the login user by.
        with_aws: whether the scripts may use this machine's AWS credentials.
    """

    def __init__(self, folder: Path, *, user: str, with_aws: bool = False) -> None:
        self._folder = folder
        self._user = user
        self._with_aws = with_aws

    @property
    def root(self) -> Path:
        """What stands for / where documents write outside the home."""
        return self._folder / _OURS / "root"

    def run(self, script: str, *, timeout: float, heard: Heard) -> int:
        """See ``steps.Shell``. Ctrl-C ends the script, too.

        Raises:
            ImageError: this machine cannot start it.
        """
        with tempfile.TemporaryDirectory(prefix="ramp-cloud-", ignore_cleanup_errors=True) as scratch:
            try:
                process = self._start(script, Path(scratch))
            except OSError as error:
                msg = f"the script of a step cannot be started here: {error}; make room or install bash, and repeat"
                raise ImageError(msg) from error
            try:
                _listen(process, time.monotonic() + timeout, heard)
                return process.wait()
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if process.stdout:
                    process.stdout.close()

    def _start(self, script: str, scratch: Path) -> "subprocess.Popen[bytes]":
        programs = scratch / "bin"
        self._write_stand_ins(programs)
        path = scratch / "step.sh"
        path.write_text(script)
        return subprocess.Popen(  # noqa: S603 - an argument list, never a shell
            ["/bin/bash", str(path)],
            cwd=self._folder,
            env=self._environment(programs),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _environment(self, programs: Path) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_WITHHELD)}
        if self._with_aws:
            home = Path.home() / ".aws"  # HOME is another one for the script
            kept |= {
                "AWS_CONFIG_FILE": str(home / "config"),
                "AWS_SHARED_CREDENTIALS_FILE": str(home / "credentials"),
                **{name: value for name, value in os.environ.items() if name.startswith("AWS_")},
            }
        return kept | {
            "HOME": str(self._folder),
            "PATH": os.pathsep.join([str(programs), os.environ.get("PATH", os.defpath)]),
            "RAMP_CLOUD_ROOT": str(self.root),
        }

    def _write_stand_ins(self, programs: Path) -> None:
        entry = f"{self._user}:x:{os.getuid()}:{os.getgid()}::{self._folder}:/bin/bash"
        real = shutil.which("getent") or "false"
        getent = (
            f'#!/bin/sh\nif [ "$1 $2" = {shlex.quote(f"passwd {self._user}")} ]; then echo {shlex.quote(entry)}; '
            f'else exec {shlex.quote(real)} "$@"; fi\n'
        )
        programs.mkdir()
        changers = dict.fromkeys(_CHANGERS, _LEFT_OUT) | dict.fromkeys(_OWNERS, _NOTHING_TO_DO)
        for name, text in {"sudo": _SUDO, "getent": getent, **changers}.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)


def run_local(plan: ImagePlan, folder: Path, *, documents: Sequence[str] | None = None, heard: Heard) -> None:
    """Run build, validate and test phases of a plan's documents in a folder. Can be repeated in the same folder.

    Args:
        plan: made without a bucket.
        folder: new, empty, or used for this before.
        documents: names of those to run. Default: all but those that only change the system.
        heard: gets what the documents print, line by line.

    Raises:
        UsageError: the folder is used for something else, or there is no such document.
        ConfigError: the kit's folder on the image is outside the home.
        ImageError, BuildFailed: see ``steps.run_documents``.
    """
    chosen = _chosen(plan, documents, heard)
    refuse_others(chosen, PHASES)
    for document in chosen:
        place = document.parameters.get("kit_folder", "~/")
        if not place.startswith("~/"):
            msg = (
                f"remote_ramp_kit_folder is {place}, outside the home of {plan.user}, which cannot be tried in a "
                "folder; set it to ~/… or /home/…"
            )
            raise ConfigError(msg)
    folder = folder.absolute()
    _take(folder)
    shell = LocalShell(folder, user=plan.user)
    if isinstance(plan.kit, FolderKit) and any(document.name == "kit" for document in chosen):
        _bring(plan.kit, shell.root)
    for phase in PHASES:
        for document in chosen:
            # Credentials of this machine are for fetching data, and not for what a kit does otherwise.
            fetches = document.name == "data"
            run_documents([document], [phase], LocalShell(folder, user=plan.user, with_aws=fetches), heard)


def _chosen(plan: ImagePlan, names: Sequence[str] | None, heard: Heard) -> list[Document]:
    known = {document.name: document for document in plan.documents}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        msg = f"the image has no document {', '.join(unknown)}; it has {', '.join(known)}"
        raise UsageError(msg)
    chosen = []
    for name, document in known.items():
        if names is not None and name not in names:
            continue
        if name in CHANGE_THE_SYSTEM:
            heard(f"ramp-cloud: document {name} is left out, since it changes the system that it runs on")
            continue
        chosen.append(document)
    return chosen


def _take(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_free = (folder / _OURS).is_dir() or not any(folder.iterdir())
        if folder.resolve() == Path.home().resolve() or not is_free:
            msg = f"{folder} holds something else, which documents would change; name a new folder"
            raise UsageError(msg)
        (folder / _OURS).mkdir(exist_ok=True)
    except OSError as error:
        msg = f"{folder} cannot be used: {error.strerror}; name another folder"
        raise UsageError(msg) from error


def _bring(kit: FolderKit, root: Path) -> None:
    target = root / ARCHIVE.lstrip("/")
    archive = kit.archive()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(archive, target)
    except OSError as error:
        msg = f"the kit cannot be brought to {target}: {error}; make room, or name another folder"
        raise ImageError(msg) from error
    finally:
        archive.unlink(missing_ok=True)


def _listen(process: "subprocess.Popen[bytes]", deadline: float, heard: Heard) -> None:
    """Pass on what a process prints until it has ended.

    Raises:
        TimeoutError: it has not ended at the deadline.
    """
    output = process.stdout
    if output is None:
        return
    pending = b""
    os.set_blocking(output.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while (data := _next(process, output.fileno(), selector, deadline)) is not None:
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                heard(_readable(line))
            if len(pending) > _LONGEST:
                heard(_readable(pending))
                pending = b""
    if pending:
        heard(_readable(pending))
    try:
        process.wait(None if deadline == float("inf") else max(deadline - time.monotonic(), 0))
    except subprocess.TimeoutExpired as error:
        raise TimeoutError from error


def _next(
    process: "subprocess.Popen[bytes]", output: int, selector: selectors.BaseSelector, deadline: float
) -> bytes | None:
    """Return what a process printed next, None when there is no more to come."""
    while (remaining := deadline - time.monotonic()) > 0:
        if selector.select(min(remaining, _TICK)):
            return os.read(output, 1 << 16) or None
        if process.poll() is not None:
            return None  # what it left behind may hold its output for ever
    raise TimeoutError


def _readable(line: bytes) -> str:
    """Return a line as a terminal would leave it: of what a progress bar wrote over itself, the last."""
    return line.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2][:_LONGEST]
