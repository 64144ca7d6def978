"""Runs the scripts of documents on an instance, as root, over the connection that the runner uses for trainings."""

import contextlib
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from runner.archive import Entry, pack
from runner.errors import TransportError
from runner.transport.base import Stream, Transport

_FOLDER = ".ramp-cloud/build"  # in the login user's home; the clean-up of an image removes it
_PUT = 60.0  # seconds for bringing a script there
_END = 60.0  # seconds between a script's last output and its exit code
_KILL_AFTER = 10  # seconds that a script has to end after it was told to
_SLACK = 30.0  # seconds that the machine has for ending a script, before we give it up from here
_KILLED = {124, 137, -1}  # exit codes of what timeout(1) ended, by itself or by SIGKILL
_CHUNK = 1 << 16
_LONGEST_LINE = 1 << 16  # bytes; what is longer is told in parts

# $0: the script. Its errors come in the order in which they are printed, so both ways are one; it starts in the root
# folder, so that what it writes without saying where does not lie in the user's home.
_RUN = 'script=$PWD/$0; cd "${RAMP_CLOUD_ROOT:-}/" && exec bash "$script" 2>&1 </dev/null'


class SshShell:
    """A root shell on a machine whose login user may use sudo without a password. See ``image_builder.steps.Shell``.

    Args:
        transport: the connection; a script that it breaks under is not started again.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def run(self, script: str, *, timeout: float, heard: Callable[[str], None]) -> int:
        """Run a bash script as root and return its exit code, -1 when a signal ended it.

        Args:
            script: the text; any length.
            timeout: seconds; infinite for none. The machine itself ends what takes longer.
            heard: gets output and errors line by line, as they come.

        Raises:
            TimeoutError: it was ended at its time limit.
            TransportError: the connection broke, or the machine did not end the script at its time limit.
        """
        path = f"{_FOLDER}/{uuid.uuid4().hex}.sh"
        with pack([Entry(name=path, content=script.encode())]) as archive:
            self._transport.put(archive, ".", timeout=_PUT)
        seconds = 0.0 if math.isinf(timeout) else timeout  # 0 is none to timeout(1)
        limit = ["timeout", f"--kill-after={_KILL_AFTER}", f"{seconds:.3f}"]
        stream = self._transport.open(["sudo", "-n", *limit, "bash", "-c", _RUN, path])
        began = time.monotonic()
        try:
            with _given_up(stream, timeout + _KILL_AFTER + _SLACK):
                _listen(stream, heard)
                code = stream.wait(_END)
        finally:
            stream.close()
        with contextlib.suppress(TransportError):  # the next script finds out; the image loses the folder anyway
            self._transport.run(["rm", "-f", "--", path], timeout=_PUT)
        if code in _KILLED and time.monotonic() - began >= timeout:
            msg = f"it did not end within {timeout:g} s"
            raise TimeoutError(msg)
        return code


@contextlib.contextmanager
def _given_up(stream: Stream, seconds: float) -> Iterator[None]:
    """Close a stream that is still open after its time: the machine failed to end what it ran."""
    if math.isinf(seconds):
        yield
        return
    over = threading.Event()

    def give_up() -> None:
        over.set()
        stream.close()

    watchdog = threading.Timer(seconds, give_up)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    except TransportError as error:
        if not over.is_set():
            raise
        msg = "the machine did not end a script at its time limit; look at what the script starts"
        raise TransportError(msg, detail=error.message, **error.fields) from error
    finally:
        watchdog.cancel()


def _listen(stream: Stream, heard: Callable[[str], None]) -> None:
    """Tell every line as soon as it is complete; of one that was written over and over only its last form."""
    waiting = b""
    while chunk := stream.read(_CHUNK):
        *lines, waiting = (waiting + chunk).split(b"\n")
        for line in lines:
            heard(_text(line))
        if len(waiting) > _LONGEST_LINE:
            heard(_text(waiting))
            waiting = b""
    if waiting:
        heard(_text(waiting))


def _text(line: bytes) -> str:
    return line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", "replace")
