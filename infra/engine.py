"""The `pulumi` on PATH as the automation API runs it here: it can be stopped, and its trouble is told in our words.

It runs in a session of its own, so that Ctrl-C reaches it once, through us, and never the plugins that it needs to end
in good order.
"""

import contextlib
import getpass
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, TypeVar

from pulumi.automation import (
    CommandError,
    CommandResult,
    ConcurrentUpdateError,
    InvalidVersionError,
    PulumiCommand,
    StackNotFoundError,
)
from pulumi.automation.errors import create_command_error

from infra.changes import Listener
from runner.errors import RampCloudError, UsageError

INSTALL = "https://www.pulumi.com/docs/install/"

Result = TypeVar("Result")
OnOutput = Callable[[str], Any]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_HOLDER = re.compile(r"created by (\S+)@(\S+) \(pid (\d+)\)")  # of a lock, as backends that are files tell it
_MAX_LINES = 20  # of what Pulumi says, in an error

# What Pulumi or its AWS plugin says, and what to do.
_KNOWN = {
    "passphrase must be set": (
        "the stack's passphrase is not set; set PULUMI_CONFIG_PASSPHRASE or PULUMI_CONFIG_PASSPHRASE_FILE, the same "
        "each time, and repeat"
    ),
    "incorrect passphrase": (
        "this is not the stack's passphrase; set PULUMI_CONFIG_PASSPHRASE to the one that it was made with, and repeat"
    ),
    "must be set for login": (
        "Pulumi knows no place to keep the stack in; log in once: `pulumi login s3://BUCKET`, `pulumi login` for "
        "Pulumi Cloud (or set PULUMI_ACCESS_TOKEN), or `pulumi login --local` for this machine, and repeat"
    ),
    "no language plugin": f"this pulumi cannot run programs in Python; install it anew, see {INSTALL}",
    "no resource plugin": (
        "Pulumi's AWS plugin is missing; check the network, try `pulumi plugin install resource aws`, and repeat"
    ),
    "pending operations": (
        "an earlier run was broken off, and Pulumi does not know what became of some things; `./inv up` finds out and "
        "goes on"
    ),
    "No valid credential sources found": (
        "AWS credentials are missing or have expired; log in (`aws sso login` or `aws configure`), or set "
        "profile_name in config.yml, and repeat"
    ),
    "ExpiredToken": "the AWS credentials have expired; log in again (`aws sso login`), and repeat",
}


class StackFailed(RampCloudError):
    """Pulumi could not do what it was asked; what it had done until then is kept in the stack."""


class StackLocked(StackFailed):
    """Another run has the stack, or had it when it was killed."""


class StackStopped(StackFailed):
    """Ctrl-C, or a signal to end: Pulumi was let end in good order."""

    exit_code = 130


class Engine(PulumiCommand):
    """The program on PATH. Making one asks it for its version.

    Args:
        say: told a line when a signal is passed on.

    Raises:
        StackFailed: there is none, or one that cannot be used.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        try:
            super().__init__()
        except (OSError, subprocess.CalledProcessError) as error:
            msg = f"the pulumi program is not installed, or not on PATH; get it from {INSTALL}, and repeat"
            raise StackFailed(msg, detail=str(error)) from error
        except InvalidVersionError as error:
            msg = f"the pulumi program on PATH cannot be used; install a newer one, see {INSTALL}, and repeat"
            raise StackFailed(msg, detail=str(error)) from error
        self._say = say
        self._running: subprocess.Popen[str] | None = None
        self._last = ""  # what the newest command said
        self._signals = 0

    def run(
        self,
        args: list[str],
        cwd: str,
        additional_env: Mapping[str, str],
        on_output: OnOutput | None = None,
        on_error: OnOutput | None = None,
    ) -> CommandResult:
        """Run a command, as the automation API asks for it; raise CommandError when it fails."""
        command = [self.command, "--non-interactive", *args]
        environment = {**os.environ, **additional_env, "PULUMI_AUTOMATION_API": "true"}
        with subprocess.Popen(  # noqa: S603 - an argument list, never a shell
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        ) as process:
            self._running = process
            try:
                said = [_Reader(process.stdout, on_output), _Reader(process.stderr, on_error)]
                texts = [reader.text() for reader in said]
                code = process.wait()
            finally:
                self._running = None
        result = CommandResult(stdout=texts[0], stderr=texts[1], code=code)
        self._last = "\n".join(texts)
        if code:
            raise create_command_error(result)
        return result

    @contextlib.contextmanager
    def stoppable(self) -> Iterator[None]:
        """Pass signals on to what runs: the first lets it end in good order, the second ends it at once."""
        before = {number: signal.signal(number, self._pass_on) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pass_on(self, _number: int, _frame: object) -> None:
        self._signals += 1
        if self._signals == 1:
            self._say("Stopping after what is under way now; once more ends it at once, and may leave things unknown.")
        if self._running is not None:
            self._running.send_signal(signal.SIGINT)

    def told(self, stack: str, do: Callable[[], Result], listener: Listener | None = None) -> Result:
        """Return what ``do`` returns, which runs commands; what they raise becomes ours.

        Raises:
            StackFailed, StackStopped, UsageError: see above; with what to do next.
        """
        error: CommandError | None = None
        try:
            result = do()
        except CommandError as raised:
            error = raised
            if listener is not None:
                listener.wait()
        if self._signals:
            msg = (
                "Stopped. What was made or deleted until then is kept in the stack, and the same command goes on from "
                f"there. Should it say that the stack is locked: `pulumi cancel --stack {stack}` first"
            )
            raise StackStopped(msg) from error
        if error is not None:
            raise self._in_our_words(error, stack, listener.errors if listener else []) from error
        return result

    def _in_our_words(self, error: CommandError, stack: str, errors: list[str]) -> RampCloudError:
        if isinstance(error, StackNotFoundError):
            msg = f"there is no stack {stack!r}, so there is nothing to take down; see `pulumi stack ls`"
            return UsageError(msg)
        if isinstance(error, ConcurrentUpdateError):
            msg = (
                f"another run changes the stack {stack!r} now; wait for its end. If there is none, for it was killed: "
                f"`pulumi cancel --stack {stack}`, and repeat"
            )
            return StackLocked(msg, is_left=_is_left(str(error)))
        said = "\n".join([*errors, self._last])
        for words, advice in _KNOWN.items():
            if words in said:
                return StackFailed(advice.format(stack=stack), detail=_shortened(errors))
        msg = "Pulumi could not finish; mend what it says and repeat: what is done is not done again"
        return StackFailed(msg, detail=_shortened(errors or self._last.splitlines()))


def _is_left(said: str) -> bool:
    """Whether all that lock a stack were processes of ours on this machine, and have ended without unlocking it."""
    holders = _HOLDER.findall(said)
    mine = (getpass.getuser(), socket.gethostname())
    return bool(holders) and all((user, host) == mine and not _runs(int(pid)) for user, host, pid in holders)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it does, as somebody else's
    return True


class _Reader:
    """Reads a stream to its end beside the others, and hands its lines on."""

    def __init__(self, stream: IO[str] | None, heard: OnOutput | None) -> None:
        self._stream = stream
        self._heard = heard
        self._lines: list[str] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def text(self) -> str:
        """Return all of it, when it has ended."""
        self._thread.join()
        return "\n".join(self._lines)

    def _read(self) -> None:
        for line in self._stream or ():
            self._lines.append(line.rstrip())
            if self._heard is not None:
                self._heard(line.rstrip())


def _shortened(said: list[str]) -> str:
    lines = [line for text in said for line in _without_traceback(text).splitlines() if line.strip()]
    left_out = [f"... {len(lines) - _MAX_LINES} lines more"] if len(lines) > _MAX_LINES else []
    return "\n".join([*lines[:_MAX_LINES], *left_out])


def _without_traceback(text: str) -> str:
    """Return the error that ended the program, without the lines that only its authors can read."""
    _, traceback, rest = text.rpartition("Traceback (most recent call last):")
    if not traceback:
        return text
    lines = rest.strip("\n").splitlines()
    last = max((number for number, line in enumerate(lines) if line.startswith("  ")), default=-1)
    return "\n".join(lines[last + 1 :])
