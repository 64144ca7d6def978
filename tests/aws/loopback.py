"""Lets a test's process reach nothing but this machine."""

import ipaddress
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# What Python tells before an address is used or looked up, and where the host stands among its arguments.
_EVENTS = {"socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1, "socket.getaddrinfo": 0}
# Where AWS is for code that a test forgot to give an emulation: nobody listens on this port.
NO_AWS = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_EC2_METADATA_DISABLED": "true"}


class WentOut(Exception):
    """A test tried to reach another machine."""


class _Guard:
    """An audit hook; Python has no way to take one away, so it is put in once and told when to heed."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.depth = 0
        self.refused: list[str] = []
        self.is_in = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _EVENTS or not self.depth:
            return
        given = arguments[_EVENTS[event]]
        host = given[0] if isinstance(given, tuple) else given
        if event != "socket.getaddrinfo" and arguments[0].family not in (socket.AF_INET, socket.AF_INET6):
            return
        if not _is_here(host):
            self.refused.append(f"{event} {host}")
            msg = f"a test may reach this machine only, not {host}"
            raise WentOut(msg)


_GUARD = _Guard()


@contextmanager
def loopback_only() -> Iterator[None]:
    """Refuse every connection of this process to another machine, and fail at the end if there was one.

    Raises:
        WentOut: there was one, even if whoever tried it caught the refusal.
    """
    with _GUARD.lock:
        if not _GUARD.is_in:
            sys.addaudithook(_GUARD)
            _GUARD.is_in = True
        _GUARD.depth += 1
        before = len(_GUARD.refused)
    try:
        yield
    finally:
        with _GUARD.lock:
            _GUARD.depth -= 1
            refused = _GUARD.refused[before:]
            del _GUARD.refused[before:]  # so that one guard inside another tells what is its own
    if refused:
        raise WentOut("; ".join(refused))


def _is_here(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host)).is_loopback
    except ValueError:  # a name, which would be asked of a name server
        return host == socket.gethostname()
