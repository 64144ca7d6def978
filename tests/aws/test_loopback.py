"""The guard that keeps tests on this machine."""

import contextlib
import socket
import threading

import pytest

from tests.aws.loopback import WentOut, loopback_only

ELSEWHERE = "192.0.2.1"  # an address that is kept for documents


def connect() -> None:
    """Try to connect to another machine."""
    with socket.socket() as ours:
        ours.settimeout(1)
        ours.connect((ELSEWHERE, 80))


def send_quietly() -> None:
    """Try to send to another machine in a thread, and say nothing when it fails."""

    def try_it() -> None:
        with contextlib.suppress(Exception), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
            ours.sendto(b"hello", (ELSEWHERE, 53))

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()


def test_another_machine_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(WentOut, match=ELSEWHERE), loopback_only():
        connect()


def test_a_name_is_not_even_looked_up() -> None:
    with pytest.raises(WentOut, match=r"ec2\.eu-west-1\.amazonaws\.com"), loopback_only():
        socket.getaddrinfo("ec2.eu-west-1.amazonaws.com", 443)


def test_it_is_told_even_if_the_refusal_was_caught_in_another_thread() -> None:
    with pytest.raises(WentOut, match=r"sendto 192\.0\.2\.1"), loopback_only():
        send_quietly()


def test_this_machine_can_be_reached() -> None:
    with loopback_only(), socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(("localhost", server.getsockname()[1]), timeout=5):
            pass
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
            ours.sendto(b"hello", ("127.16.0.4", 9))


def test_a_guard_inside_another_tells_what_is_its_own() -> None:
    with loopback_only():
        with pytest.raises(WentOut), loopback_only():
            connect()
        with pytest.raises(WentOut), loopback_only():
            send_quietly()
