"""Reads what watch.py says about a training: the format is described there. Nothing of it is trusted further than that
it is such a frame: whoever trains on a machine can change what runs there."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from runner.errors import TransportError

MAX_CHUNK = 1 << 16  # bytes of the log in one frame
_MAX_LINE = 1 << 16  # bytes of any other frame
_ACTIONS = {"stop", "terminate", "hibernate"}


class Frame:
    """One thing that the watcher said."""


@dataclass(frozen=True)
class Log(Frame):
    """The next bytes of the log."""

    data: bytes


@dataclass(frozen=True)
class Notice(Frame):
    """AWS takes the machine back. ``action`` is stop, terminate or hibernate; ``time`` is ISO 8601 UTC."""

    action: str
    time: str


@dataclass(frozen=True)
class Beat(Frame):
    """The watcher is alive and has nothing to say."""


@dataclass(frozen=True)
class Ended(Frame):
    """The training ended, and its whole log was sent. ``outcome`` is what the supervisor wrote, {} if unreadable."""

    outcome: dict[str, Any]


@dataclass(frozen=True)
class Gone(Frame):
    """The supervisor is not there and left no outcome."""


class Readable(Protocol):
    """Whatever frames come from."""

    def read(self, size: int, /) -> bytes:
        """Return at least one and at most ``size`` bytes, b"" at the end."""


def read_frames(stream: Readable) -> Iterator[Frame]:
    """Yield frames until the stream ends, wherever that is; the bytes of the log as they come.

    Raises:
        TransportError: reason failed when what comes are no frames, besides what the stream raises.
    """
    waiting = b""
    while True:
        while b"\n" not in waiting:
            if len(waiting) > _MAX_LINE:
                raise _refusal(waiting)
            more = stream.read(MAX_CHUNK)
            if not more:
                return
            waiting += more
        line, _, waiting = waiting.partition(b"\n")
        frame = _frame_of(line)
        if isinstance(frame, Frame):
            yield frame
            continue
        left = frame
        while left:
            data = waiting[:left] or stream.read(left)
            if not data:
                return
            waiting = waiting[left:]
            left -= len(data)
            yield Log(data)


def _frame_of(line: bytes) -> Frame | int:
    """Return the frame that a line is, or how many bytes of the log follow it."""
    try:
        match json.loads(line):
            case {"log": int(size), **rest} if 0 < size <= MAX_CHUNK and size is not True and not rest:
                return size
            case {"notice": {"action": str(action), "time": str(time)}, **rest} if action in _ACTIONS and not rest:
                return Notice(action, time)
            case {"ended": dict(outcome), **rest} if not rest:
                return Ended(outcome)
            case {"beat": True, **rest} if not rest:
                return Beat()
            case {"gone": True, **rest} if not rest:
                return Gone()
    except (ValueError, RecursionError):
        pass
    raise _refusal(line)


def _refusal(said: bytes) -> TransportError:
    msg = "the machine says something else than how the training goes; look at the image's login files (.bashrc)"
    return TransportError(msg, detail=f"it begins with {said[:200]!r}", reason="failed")
