"""SSH connections against real servers, asyncssh's and OpenSSH's, over good networks and bad ones."""

import io
import os
import random
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from runner.archive import ArchiveUnsafe, Entry, pack
from runner.errors import ConfigError, TransportError, WrongHostKey
from runner.processes import kill_all, started_at
from runner.transport.base import Reason
from runner.transport.ssh import (
    SshTransport,
    check_key_file,
    connect,
    new_host_key,
    public_key_of,
    wait_for_ssh,
)
from tests.ssh_server import (
    SSHD,
    Proxy,
    SshServer,
    asyncssh_server,
    free_port,
    openssh,
    silent_port,
    speaking_port,
    write_private,
)

SOON = 10.0  # seconds that nothing here should need; only a failing test waits for it
BRIEF = 0.2  # seconds of a time limit that is meant to pass


@pytest.fixture(scope="module")
def our_server() -> Iterator[SshServer]:
    """Return the asyncssh server."""
    with asyncssh_server() as server:
        yield server


@pytest.fixture(scope="module", params=["asyncssh", "openssh"])
def any_server(request: pytest.FixtureRequest) -> Iterator[SshServer]:
    """Return one server of each kind."""
    if request.param == "openssh" and not SSHD:
        pytest.skip("no sshd on this machine")
    with asyncssh_server() if request.param == "asyncssh" else openssh() as server:
        yield server


@pytest.fixture
def server(any_server: SshServer) -> SshServer:
    """Return a server of each kind with an empty home folder."""
    for path in any_server.home.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return any_server


@pytest.fixture
def transport(server: SshServer) -> Iterator[SshTransport]:
    """Return a connection to each kind of server."""
    transport = server.connect()
    yield transport
    transport.close()


def reason_of(error: pytest.ExceptionInfo[TransportError]) -> Reason:
    assert {"host", "port"} <= error.value.fields.keys()
    return Reason(str(error.value.fields["reason"]))


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return what a folder holds: the bytes of files, None for folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def wait_until(happened: Callable[[], object]) -> None:
    give_up = time.monotonic() + SOON
    while not happened():
        assert time.monotonic() < give_up
        time.sleep(0.01)


# -- commands --------------------------------------------------------------------------------------------------------


def test_output_errors_and_code_of_a_command(transport: SshTransport) -> None:
    finished = transport.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (finished.code, finished.out, finished.err) == (3, b"out\n", b"err\n")


def test_arguments_arrive_as_they_are(transport: SshTransport) -> None:
    words = ["", " ", "a  b", "'", '"', "$HOME", "`id`", "a\nb", "*", "é", "~", "-n", "\\", ";ls", "!!", "#", "\t"]
    assert transport.run(["printf", "%s|", *words]).out.decode().split("|") == [*words, ""]


def test_a_command_starts_in_the_home_folder(server: SshServer, transport: SshTransport) -> None:
    assert transport.run(["pwd"]).out.decode().strip() == str(server.home)


def test_a_command_reads_what_it_is_given(transport: SshTransport) -> None:
    given = random.Random(1).randbytes(900_000)
    assert transport.run(["cat"], given=given).out == given
    assert transport.run(["cat"]).out == b"", "its input ends"


def test_too_much_given_is_refused(transport: SshTransport) -> None:
    with pytest.raises(ValueError, match="1,000,000 bytes at most"):
        transport.run(["cat"], given=bytes(1_000_001))


def test_a_command_that_ends_without_reading(transport: SshTransport) -> None:
    assert transport.run(["sh", "-c", "exit 5"], given=bytes(1_000_000)).code == 5


def test_a_command_killed_by_a_signal(transport: SshTransport) -> None:
    assert transport.run(["sh", "-c", "echo x; kill -9 $$"]).code == -1
    assert transport.is_open


def test_a_command_that_is_not_there(transport: SshTransport) -> None:
    finished = transport.run(["no-such-program"])
    assert finished.code == 127
    assert b"no-such-program" in finished.err


@pytest.mark.parametrize("where", ["", " >&2"])
def test_a_command_that_prints_too_much(transport: SshTransport, where: str) -> None:
    with pytest.raises(TransportError, match="printed too much; ") as error:
        transport.run(["sh", "-c", f"yes {where}"], limit=100_000)
    assert reason_of(error) is Reason.FAILED
    assert transport.run(["echo", "on"]).out == b"on\n", "the connection is good"


@pytest.mark.parametrize("command", ["sleep 600", "exec sleep 600 >&- 2>&-", "while :; do echo x; sleep 0.01; done"])
def test_a_command_that_takes_too_long(transport: SshTransport, command: str) -> None:
    with pytest.raises(TransportError, match="took too long; try again") as error:
        transport.run(["sh", "-c", command], timeout=BRIEF)
    assert reason_of(error) is Reason.SILENT
    assert transport.run(["echo", "on"]).out == b"on\n", "the connection is good"


def test_many_commands_at_once(transport: SshTransport) -> None:
    def double(number: int) -> int:
        return int(transport.run(["sh", "-c", f"echo $((2 * {number}))"]).out)

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(double, range(24))) == [2 * number for number in range(24)]


# -- streams ---------------------------------------------------------------------------------------------------------


def test_output_is_read_as_it_comes(server: SshServer, transport: SshTransport) -> None:
    stream = transport.open(["sh", "-c", "echo first; while ! test -e go; do sleep 0.01; done; echo second; exit 4"])
    assert stream.read(1000) == b"first\n"
    (server.home / "go").touch()
    assert stream.read(3) == b"sec"
    assert stream.read(1000) == b"ond\n"
    assert stream.read(1000) == b""
    assert stream.wait(SOON) == 4


def test_the_input_of_a_stream_is_empty(transport: SshTransport) -> None:
    stream = transport.open(["cat"])
    assert stream.read(10) == b""
    assert stream.wait(SOON) == 0


def test_errors_of_a_stream_are_not_in_its_output(transport: SshTransport) -> None:
    stream = transport.open(["sh", "-c", "echo err >&2; echo out"])
    assert (stream.read(100), stream.read(100)) == (b"out\n", b"")


def test_waiting_too_long_for_a_stream(transport: SshTransport) -> None:
    stream = transport.open(["sleep", "600"])
    with pytest.raises(TransportError, match="did not end") as error:
        stream.wait(BRIEF)
    assert reason_of(error) is Reason.SILENT
    stream.close()


@pytest.mark.parametrize("who", ["stream", "transport"])
def test_closing_wakes_whoever_reads(server: SshServer, who: str) -> None:
    transport = server.connect()
    stream = transport.open(["sh", "-c", "echo $$; exec sleep 600"])
    pid = int(stream.read(100))
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(stream.read, 100)
        (stream if who == "stream" else transport).close()
        assert reading.result(SOON) == b""
    assert stream.read(100) == b""
    with pytest.raises(TransportError, match=r"given up|was closed here"):
        stream.wait(SOON)
    if who == "stream":
        assert transport.run(["echo", "on"]).out == b"on\n"
        kill_all([psutil.Process(pid)] if started_at(pid) else [])  # it prints nothing, so it cannot notice
    transport.close()


def test_a_closed_stream_ends_what_prints(server: SshServer, transport: SshTransport) -> None:
    stream = transport.open(["sh", "-c", "echo $$; while :; do echo x; sleep 0.01; done"])
    pid = int(stream.read(100).split()[0])
    stream.close()
    stream.close()
    wait_until(lambda: started_at(pid) is None)


def test_closing_stops_a_command_in_another_thread(server: SshServer) -> None:
    transport = server.connect()
    stream = transport.open(["sh", "-c", "while ! test -e started; do sleep 0.01; done; echo x"])
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(transport.run, ["sh", "-c", "touch started; sleep 600"])
        assert stream.read(10) == b"x\n"
        transport.close()
        with pytest.raises(TransportError, match="was closed here") as error:
            running.result(SOON)
    assert reason_of(error) is Reason.BROKEN
    assert not transport.is_open
    transport.close()
    with pytest.raises(TransportError, match="make a new one"):
        transport.run(["true"])


# -- files -----------------------------------------------------------------------------------------------------------


def test_files_go_there_and_come_back(transport: SshTransport, tmp_path: Path) -> None:
    content = random.Random(2).randbytes(5_000_000)
    names = {"a b/c": content, "ünï/'quoted' $x": b"1", "deep/" * 20 + "end": b"2", "x" * 255: b"", "-n": b"3"}
    for _ in range(2):  # it can be repeated
        with pack([*(Entry(name=name, content=data) for name, data in names.items()), Entry(name="empty")]) as archive:
            transport.put(archive, "runs/a run", timeout=SOON)
    transport.get("runs/a run", tmp_path / "back", timeout=SOON, max_bytes=10**7, max_files=100)
    back = tree(tmp_path / "back")
    assert {name: data for name, data in back.items() if data is not None} == names
    assert back["empty"] is None


def test_a_folder_with_its_whole_path(server: SshServer, transport: SshTransport, tmp_path: Path) -> None:
    with pack([Entry(name="x", content=b"1")]) as archive:
        transport.put(archive, str(server.home / "there"), timeout=SOON)
    transport.get(str(server.home / "there"), tmp_path / "back", timeout=SOON, max_bytes=10, max_files=10)
    assert tree(tmp_path / "back") == {"x": b"1"}


@pytest.mark.parametrize("what", ["missing", "file", "link"])
def test_a_folder_that_is_none_comes_back_empty(
    server: SshServer, transport: SshTransport, tmp_path: Path, what: str
) -> None:
    (server.home / "file").touch()
    (server.home / "link").symlink_to("/etc")
    transport.get(what, tmp_path / "back", timeout=SOON, max_bytes=10, max_files=10)
    assert tree(tmp_path / "back") == {}


def test_only_regular_files_come_back(server: SshServer, transport: SshTransport, tmp_path: Path) -> None:
    folder = server.home / "training_output"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "fold_0" / "scores.csv").write_text("1")
    (folder / "fold_0" / "again.csv").hardlink_to(folder / "fold_0" / "scores.csv")
    (folder / "passwd").symlink_to("/etc/passwd")
    (folder / "etc").symlink_to("/etc")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    transport.get("training_output", tmp_path / "back", timeout=SOON, max_bytes=100, max_files=100)
    assert tree(tmp_path / "back") == {"fold_0": None, "fold_0/again.csv": b"1", "fold_0/scores.csv": b"1"}


@pytest.mark.parametrize(("limit", "said"), [("max_bytes", "more than 1 MB"), ("max_files", "more than 3 files")])
def test_more_than_may_come_back(
    server: SshServer, transport: SshTransport, tmp_path: Path, limit: str, said: str
) -> None:
    (server.home / "output").mkdir()
    with (server.home / "output" / "hole").open("wb") as file:
        file.truncate(10**12)  # takes no room on the disk
    for number in range(10):
        (server.home / "output" / str(number)).touch()
    if limit == "max_files":
        (server.home / "output" / "hole").unlink()
    limits = {"max_bytes": 1_000_000, "max_files": 1_000, limit: {"max_bytes": 1_000_000, "max_files": 3}[limit]}
    with pytest.raises(ArchiveUnsafe, match=said):
        transport.get("output", tmp_path / "back", timeout=SOON, **limits)
    assert transport.run(["echo", "on"]).out == b"on\n", "the connection is good"


def test_a_folder_that_cannot_be_written(server: SshServer, transport: SshTransport) -> None:
    (server.home / "file").touch()
    with pack([Entry(name="x", content=bytes(5_000_000))]) as archive, pytest.raises(TransportError) as error:
        transport.put(archive, "file", timeout=SOON)
    assert reason_of(error) is Reason.FAILED
    assert error.value.message == "files could not be written on the machine; look at its disk, then try again"
    assert "file" in error.value.detail
    assert transport.run(["echo", "on"]).out == b"on\n", "the connection is good"


def test_a_machine_without_tar_says_so(server: SshServer, transport: SshTransport, tmp_path: Path) -> None:
    tar = server.home / "tar"
    tar.write_text("#!/bin/sh\necho the tar of this machine is broken >&2\nexit 9\n")
    tar.chmod(0o755)
    (server.home / ".bashrc").write_text("")
    with pytest.raises(TransportError) as error:
        Renamed(transport, server.home).get("x", tmp_path / "back", timeout=SOON, max_bytes=10, max_files=10)
    assert "the tar of this machine is broken" in error.value.detail


class Renamed:
    """A transport whose machine finds its programs in another folder first."""

    def __init__(self, transport: SshTransport, folder: Path) -> None:
        self._transport, self._folder = transport, folder

    def get(self, *args: object, **limits: object) -> None:
        """Fetch, with the other folder in front."""
        start = self._transport._wire.start  # noqa: SLF001 - the one place where a command becomes text

        def changed(command: list[str], timeout: float) -> object:
            return start(["env", f"PATH={self._folder}:{os.environ['PATH']}", *command], timeout)

        self._transport._wire.start = changed  # type: ignore[method-assign,assignment]  # noqa: SLF001 - as above
        self._transport.get(*args, **limits)  # type: ignore[arg-type]


def test_a_target_that_cannot_be_written_is_our_failure(
    server: SshServer, transport: SshTransport, tmp_path: Path
) -> None:
    (server.home / "output").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        transport.get("output", tmp_path / "file", timeout=SOON, max_bytes=10, max_files=10)
    assert transport.is_open


# -- connecting ------------------------------------------------------------------------------------------------------


def test_modern_cheap_ciphers_are_chosen(transport: SshTransport) -> None:
    protocol = transport._wire.protocol  # noqa: SLF001 - nothing else knows it
    assert protocol.local_cipher == protocol.remote_cipher == "aes128-gcm@openssh.com"


def test_another_host_key(server: SshServer) -> None:
    before = len(server.auth_attempts)
    with pytest.raises(WrongHostKey, match="another machine answers") as error:
        server.connect(host_key=new_host_key().public)
    assert reason_of(error) is Reason.HOST_KEY
    assert server.host_key in error.value.detail
    assert len(server.auth_attempts) == before, "no login was tried"


def test_a_host_key_of_another_type(server: SshServer) -> None:
    with pytest.raises(WrongHostKey, match="another machine answers"):
        server.connect(host_key="ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTY=")


def test_a_comment_behind_the_host_key(server: SshServer) -> None:
    server.connect(host_key=f"{server.host_key} root@image").close()


@pytest.mark.parametrize("what", ["key", "user"])
def test_a_login_that_is_refused(server: SshServer, tmp_path: Path, what: str) -> None:
    other = write_private(tmp_path / "key", new_host_key().private)
    with pytest.raises(TransportError, match="does not let us in; check ami_user_name") as error:
        server.connect(**{"key": {"key_path": other}, "user": {"user": "nobody-of-that-name"}}[what])
    assert reason_of(error) is Reason.AUTH


def test_nobody_listens(our_server: SshServer) -> None:
    with pytest.raises(TransportError, match="does not take SSH connections yet; try again") as error:
        our_server.connect(port=free_port())
    assert reason_of(error) is Reason.REFUSED


def test_no_such_name(our_server: SshServer) -> None:
    with pytest.raises(TransportError, match="cannot be reached; check address") as error:
        connect(
            "no-such-name.invalid",
            user="x",
            key_path=our_server.key_path,
            host_key=our_server.host_key,
            gate=threading.Semaphore(),
        )
    assert reason_of(error) is Reason.UNREACHABLE


def test_a_server_that_says_nothing(our_server: SshServer) -> None:
    with silent_port() as port, pytest.raises(TransportError, match="says nothing") as error:
        our_server.connect(port=port, banner_timeout=BRIEF)
    assert reason_of(error) is Reason.SILENT


def test_a_silent_server_does_not_stand_in_the_gate(our_server: SshServer) -> None:
    gate = threading.Semaphore(1)
    with silent_port() as port, ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(our_server.connect, port=port, banner_timeout=0.5, gate=gate)
        our_server.connect(gate=gate).close()
        assert not hanging.done()
        with pytest.raises(TransportError):
            hanging.result(SOON)


@pytest.mark.parametrize("words", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-1.0-old\r\n", b"\xff\xfe\r\n" * 100, b""])
def test_something_else_listens(our_server: SshServer, words: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with speaking_port(words) as port, pytest.raises(TransportError, match="broke; connect again") as error:
        our_server.connect(port=port)
    assert reason_of(error) is Reason.BROKEN
    assert caplog.records == [], "paramiko's own account of it is not shown"


def test_a_hang_in_the_handshake(server: SshServer) -> None:
    gate = threading.Semaphore(1)
    proxy = Proxy(server.port, hold_after=60)
    with pytest.raises(TransportError, match="does not answer") as error:
        server.connect(port=proxy.port, auth_timeout=BRIEF, gate=gate)
    proxy.close()
    assert reason_of(error) is Reason.SILENT
    assert gate.acquire(blocking=False), "the next one is let in"


def test_a_drop_in_the_handshake(server: SshServer) -> None:
    proxy = Proxy(server.port, drop_after=60)
    with pytest.raises(TransportError, match="broke; connect again") as error:
        server.connect(port=proxy.port)
    proxy.close()
    assert reason_of(error) is Reason.BROKEN


def test_no_settings_of_the_user_count(our_server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text("Host *\n  Port 1\n  User nobody\n  ProxyCommand false\n")
    (tmp_path / ".ssh" / "known_hosts").write_text(f"127.0.0.1 {new_host_key().public}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "no agent"))
    our_server.connect().close()


class Counting(threading.Semaphore):
    """A gate that knows how many are in it."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self._count = threading.Lock()
        self.inside = self.most = 0

    def __enter__(self) -> bool:
        super().__enter__()
        with self._count:
            self.inside += 1
            self.most = max(self.most, self.inside)
        return True

    def __exit__(self, *exception: object) -> None:
        with self._count:
            self.inside -= 1
        super().__exit__(None, None, None)


def test_handshakes_at_once_are_limited(our_server: SshServer) -> None:
    gate = Counting(3)
    with ThreadPoolExecutor(20) as pool:
        for transport in list(pool.map(lambda _: our_server.connect(gate=gate), range(20))):
            assert transport.is_open
            transport.close()
    assert 1 <= gate.most <= 3


# -- a bad network ---------------------------------------------------------------------------------------------------


class Endless(io.BytesIO):
    """A tar archive of one file that does not end, not too fast."""

    def __init__(self) -> None:
        super().__init__()
        info = tarfile.TarInfo("endless")
        info.size = 10**10
        self._header = info.tobuf()
        self.given = 0  # times that something was read

    def read(self, size: int | None = -1) -> bytes:
        """Return what comes next."""
        time.sleep(0.001)
        header, self._header = self._header, b""
        self.given += 1
        return header or bytes(size or 0)


OPERATIONS: dict[str, Callable[[SshTransport, Path], object]] = {
    "run": lambda transport, _: transport.run(["sleep", "600"], timeout=BRIEF),
    "given": lambda transport, _: transport.run(["sleep", "600"], given=bytes(1_000_000), timeout=BRIEF),
    "put": lambda transport, _: transport.put(Endless(), "x", timeout=BRIEF),
    "get": lambda transport, folder: transport.get(
        "/usr/bin", folder / "back", timeout=BRIEF, max_bytes=10**10, max_files=10**6
    ),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_drop_in_the_middle(server: SshServer, tmp_path: Path, operation: str) -> None:
    proxy = Proxy(server.port)
    transport = server.connect(port=proxy.port)
    stream = transport.open(["sh", "-c", "echo x; exec sleep 600"])
    assert stream.read(10) == b"x\n"
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(stream.read, 10)
        drop = threading.Timer(BRIEF / 3, proxy.drop)
        drop.start()
        with pytest.raises(TransportError, match="broke; connect again") as error:
            OPERATIONS[operation](transport, tmp_path)
        with pytest.raises(TransportError) as of_reading:
            reading.result(SOON)
    assert reason_of(error) is reason_of(of_reading) is Reason.BROKEN
    assert not transport.is_open
    with pytest.raises(TransportError):
        stream.wait(SOON)
    with pytest.raises(TransportError, match="broke; connect again"):
        transport.open(["true"])
    transport.close()
    proxy.close()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_network_that_swallows_everything(server: SshServer, tmp_path: Path, operation: str) -> None:
    proxy = Proxy(server.port)
    transport = server.connect(port=proxy.port)
    proxy.hold()
    started = time.monotonic()
    with pytest.raises(TransportError, match=r"does not answer|took too long") as error:
        OPERATIONS[operation](transport, tmp_path)
    assert time.monotonic() - started < BRIEF + 3
    assert reason_of(error) is Reason.SILENT
    closing = time.monotonic()
    transport.close()
    assert time.monotonic() - closing < 1
    proxy.close()


def test_a_peer_that_dies_silently_is_noticed(server: SshServer) -> None:
    proxy = Proxy(server.port)
    transport = server.connect(port=proxy.port, keep_alive=0.1)
    stream = transport.open(["sleep", "600"])
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(stream.read, 10)
        proxy.hold()
        with pytest.raises(TransportError, match="does not answer any more") as error:
            reading.result(SOON)
    assert reason_of(error) is Reason.SILENT
    assert "said nothing for" in error.value.detail
    assert not transport.is_open
    transport.close()
    proxy.close()


def fill_the_wire(proxy: Proxy, transport: SshTransport, pool: ThreadPoolExecutor) -> "list[Future[None]]":
    """Let eight uploads begin, so that more is under way than any buffer takes, and then nothing move any more."""
    sources = [Endless() for _ in range(8)]
    uploads = [pool.submit(transport.put, source, f"x{n}", timeout=600) for n, source in enumerate(sources)]  # type: ignore[arg-type]
    wait_until(lambda: all(source.given for source in sources))
    proxy.hold()
    given = -1
    while given != (given := sum(source.given for source in sources)):
        time.sleep(0.1)
    return uploads


def test_a_peer_that_takes_no_more_is_noticed(server: SshServer) -> None:
    """Its kernel still answers, but the send buffer is full and stays so: paramiko itself would try for ever."""
    proxy = Proxy(server.port)
    transport = server.connect(port=proxy.port, keep_alive=0.3)
    with ThreadPoolExecutor(8) as pool:
        for each in fill_the_wire(proxy, transport, pool):
            with pytest.raises(TransportError) as error:
                each.result(SOON)
            assert reason_of(error) in {Reason.SILENT, Reason.BROKEN}
    transport.close()
    proxy.close()


def test_a_quiet_peer_that_lives_is_kept(server: SshServer) -> None:
    proxy = Proxy(server.port)
    transport = server.connect(port=proxy.port, keep_alive=0.02)
    stream = transport.open(["sh", "-c", "while ! test -e go; do sleep 0.01; done; echo still here"])
    before = proxy.passed
    wait_until(lambda: proxy.passed > before + 500)  # answers to some ten questions
    assert transport.is_open
    (server.home / "go").touch()
    assert stream.read(100) == b"still here\n"
    transport.close()
    proxy.close()


def test_closing_a_stream_never_waits_for_the_network(our_server: SshServer) -> None:
    proxy = Proxy(our_server.port)
    transport = our_server.connect(port=proxy.port)
    stream = transport.open(["sleep", "600"])
    with ThreadPoolExecutor(9) as pool:
        stuck = fill_the_wire(proxy, transport, pool)
        reading = pool.submit(stream.read, 10)
        started = time.monotonic()
        stream.close()
        assert reading.result(SOON) == b""
        assert time.monotonic() - started < 0.5
        assert not any(each.done() for each in stuck)
        transport.close()
        for each in stuck:
            with pytest.raises(TransportError, match="was closed here"):
                each.result(SOON)
    proxy.close()


def test_an_idle_connection_costs_nothing(our_server: SshServer) -> None:
    """paramiko's thread wakes ten times a second unless it is told otherwise, which a thousand of them would feel."""
    if not Path("/proc/self/task").exists():
        pytest.skip("only Linux tells how often a thread woke")
    transports = [our_server.connect() for _ in range(5)]
    threads = [transport._wire.protocol.native_id for transport in transports]  # noqa: SLF001 - whose thread it is

    def wakes() -> int:
        words = [Path(f"/proc/self/task/{thread}/status").read_text().split() for thread in threads]
        return sum(int(each[each.index("voluntary_ctxt_switches:") + 1]) for each in words)

    assert transports[0].run(["true"]).code == 0
    before = wakes()
    time.sleep(0.5)  # there is no event to wait for: that nothing happens is what is seen
    assert wakes() - before <= len(transports)
    for transport in transports:
        transport.close()
    assert not set(threads) & {thread.native_id for thread in threading.enumerate()}, "no thread stays"


# -- a machine that boots --------------------------------------------------------------------------------------------


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def clock(self) -> float:
        """Return the time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let it pass."""
        self.slept.append(seconds)
        self.now += seconds


def failing(*reasons: Reason) -> Callable[[], SshTransport]:
    """Return an attempt that fails for one reason after the other, the last one for ever."""
    left = list(reasons)

    def attempt() -> SshTransport:
        reason = left.pop(0) if len(left) > 1 else left[0]
        kind = WrongHostKey if reason is Reason.HOST_KEY else TransportError
        msg = f"it was {reason}"
        raise kind(msg, reason=reason)

    return attempt


def test_a_server_that_lets_in_at_the_third_attempt(our_server: SshServer) -> None:
    our_server.refuse = 2
    time_ = Time()
    transport = wait_for_ssh(
        our_server.connect, deadline=2000, is_gone=lambda: None, sleep=time_.sleep, clock=time_.clock
    )
    assert transport.run(["echo", "in"]).out == b"in\n"
    assert len(time_.slept) == 2
    transport.close()


def test_a_server_that_starts_late(our_server: SshServer) -> None:
    time_ = Time()
    ports = [free_port(), free_port(), our_server.port]
    transport = wait_for_ssh(
        lambda: our_server.connect(port=ports.pop(0)),
        deadline=2000,
        is_gone=lambda: None,
        sleep=time_.sleep,
        clock=time_.clock,
    )
    assert transport.is_open
    transport.close()


@pytest.mark.parametrize("reason", [Reason.REFUSED, Reason.SILENT, Reason.UNREACHABLE, Reason.BROKEN])
def test_a_machine_that_never_answers(reason: Reason) -> None:
    time_ = Time()
    with pytest.raises(TransportError, match=f"it was {reason}"):
        wait_for_ssh(failing(reason), deadline=1300, is_gone=lambda: None, sleep=time_.sleep, clock=time_.clock)
    assert time_.now == 1300
    assert max(time_.slept) <= 2, "it is seen soon when it answers"


@pytest.mark.parametrize("reason", [Reason.AUTH, Reason.HOST_KEY])
def test_a_machine_that_never_lets_us_in(reason: Reason) -> None:
    time_ = Time()
    attempt = failing(Reason.REFUSED, Reason.SILENT, reason)
    with pytest.raises(TransportError, match=f"it was {reason}"):
        wait_for_ssh(attempt, deadline=1300, is_gone=lambda: None, sleep=time_.sleep, clock=time_.clock)
    assert 1060 <= time_.now < 1070, "a minute, not the whole time for booting"


def test_a_machine_that_changes_its_mind_has_the_whole_minute_again() -> None:
    time_ = Time()
    attempt = failing(*[Reason.AUTH] * 40, Reason.REFUSED, Reason.AUTH)
    with pytest.raises(TransportError, match="it was auth"):
        wait_for_ssh(attempt, deadline=1300, is_gone=lambda: None, sleep=time_.sleep, clock=time_.clock)
    assert time_.now > 1090


def test_a_machine_that_is_gone_is_not_waited_for() -> None:
    time_ = Time()
    told = iter([None, None, "terminated: Server.InsufficientInstanceCapacity"])
    with pytest.raises(TransportError, match="gone before it could be used; launch another") as error:
        wait_for_ssh(
            failing(Reason.REFUSED), deadline=1300, is_gone=lambda: next(told), sleep=time_.sleep, clock=time_.clock
        )
    assert error.value.fields["reason"] == "gone"
    assert error.value.detail == "terminated: Server.InsufficientInstanceCapacity"
    assert len(time_.slept) == 2


# -- keys ------------------------------------------------------------------------------------------------------------


def keygen(path: Path, *options: str) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-f", str(path), *options], check=True, capture_output=True)
    return path


def test_a_new_host_key_is_one_that_openssh_reads(tmp_path: Path) -> None:
    key = new_host_key()
    path = write_private(tmp_path / "key", key.private)
    shown = subprocess.run(["ssh-keygen", "-y", "-f", str(path)], check=True, capture_output=True, text=True)
    assert shown.stdout.strip() == key.public
    assert new_host_key() != key


@pytest.mark.parametrize(
    "options",
    [["-t", "ed25519"], ["-t", "rsa", "-b", "2048"], ["-t", "rsa", "-b", "2048", "-m", "PEM"], ["-t", "ecdsa"]],
    ids=" ".join,
)
def test_keys_that_can_be_used(our_server: SshServer, tmp_path: Path, options: list[str]) -> None:
    path = keygen(tmp_path / "a key", "-N", "", *options)
    check_key_file(path)
    assert public_key_of(path).split() == path.with_name("a key.pub").read_text().split()[:2]


@pytest.mark.parametrize("options", [["-t", "ed25519"], ["-t", "rsa", "-b", "2048", "-m", "PEM"]], ids=" ".join)
def test_a_key_with_a_passphrase(tmp_path: Path, options: list[str]) -> None:
    path = keygen(tmp_path / "a key", "-N", "secret", *options)
    with pytest.raises(ConfigError, match=r"has a passphrase; .* ssh-keygen -p -N '' -f '.*/a key'"):
        check_key_file(path)


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o644])
def test_a_key_that_others_can_read(tmp_path: Path, mode: int) -> None:
    path = keygen(tmp_path / "a key", "-N", "", "-t", "ed25519")
    path.chmod(mode)
    with pytest.raises(ConfigError, match=r"can be read by others; run: chmod 600 '.*/a key'"):
        check_key_file(path)
    path.chmod(0o400)
    check_key_file(path)


def test_no_key_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be found; set key_path"):
        check_key_file(tmp_path / "missing")
    with pytest.raises(ConfigError, match="cannot be read"):
        public_key_of(tmp_path / "missing")


@pytest.mark.parametrize(
    "content",
    ["", "junk\n", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n", "PUBLIC"],
)
def test_a_file_that_is_no_key(tmp_path: Path, content: str) -> None:
    path = write_private(tmp_path / "key", new_host_key().public if content == "PUBLIC" else content)
    with pytest.raises(ConfigError, match="is no private key of type ed25519, ECDSA or RSA; set key_path"):
        check_key_file(path)
