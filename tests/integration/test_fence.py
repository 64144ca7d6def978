"""What a fenced submission tries and does not get, and what works in spite of the fence."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from runner import fence
from runner.records import Outcome
from runner.states import Cause, State
from tests.event_folder import STAND_INS, EventFolder, make_preloadable

pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason="the fence is for Linux")]

READABLE = [str(STAND_INS), sys.prefix, sys.base_prefix]
# What every attempt has at hand; ``call`` is a call of the system by its number on x86_64 or aarch64.
HEAD = """
import ctypes, fcntl, os, platform, socket, stat, struct, subprocess, sys, time
PLACE, KIT, DATA, PORT, PID, SHM, SUBMISSIONS = {known!r}
libc = ctypes.CDLL(None, use_errno=True)

def call(x86_64, aarch64, *arguments):
    number = x86_64 if platform.machine() == "x86_64" else aarch64
    if libc.syscall(ctypes.c_long(number), *arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

OFTEN = range(400)

def check(result):
    if result not in (0, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def attempt():
    {code}

try:
    attempt()
except BaseException as error:
    print("HELD", type(error).__name__, error)
else:
    print("ESCAPED")
"""
ESCAPES = {
    "writes into the kit": "open(KIT + '/problem.py', 'a')",
    "writes into the data": "open(DATA + '/data/more', 'w')",
    "writes beside its output": "open(os.path.dirname(SUBMISSIONS) + '/mark', 'w'); raise OSError('seen from outside')",
    "writes into the system": "open('/usr/mark', 'w')",
    "writes into its packages": "open(os.path.dirname(os.__file__) + '/os.py', 'a')",
    "reads a key": "open(PLACE + '/id_ed25519').read()",
    "reads a key by a link": "os.symlink(PLACE + '/id_ed25519', OUTPUT + '/key'); open(OUTPUT + '/key').read()",
    "links a key into its output": "os.link(PLACE + '/id_ed25519', OUTPUT + '/key')",
    "reads passwords of the system": "open('/etc/shadow').read()",
    "reads keys of the system": "os.listdir('/etc/ssh')",
    "reads the store": "open(PLACE + '/ramp-cloud.db', 'rb').read()",
    "reads the config": "open(PLACE + '/config.yml').read()",
    "lists submissions": "os.listdir(SUBMISSIONS)",
    "lists runs of others": "assert len(os.listdir(os.path.dirname(os.path.dirname(os.path.dirname(FOLDER))))) > 1",
    "connects by TCP": "socket.create_connection(('127.0.0.1', PORT), 2)",
    "connects to the internet": "socket.create_connection(('192.0.2.1', 80), 2)",
    "asks a metadata service": "socket.create_connection(('169.254.169.254', 80), 2)",
    "connects to a Unix socket": "s = socket.socket(socket.AF_UNIX); s.connect(PLACE + '/socket')",
    "connects to an abstract socket": "s = socket.socket(socket.AF_UNIX); s.connect(chr(0) + PLACE)",
    "opens a raw socket": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    "talks to the hypervisor": "socket.socket(40, socket.SOCK_STREAM)",
    "kills a process of the host": "os.kill(PID, 9)",
    "kills everything": "os.kill(-1, 0)",
    "sees processes of the host": "assert len([n for n in os.listdir('/proc') if n.isdigit()]) > 5",
    "reads the environment of another": "open(f'/proc/{PID}/environ').read()",
    "goes through the root of another": "os.listdir('/proc/1/root/')",
    "reads the memory of its parent": "open('/proc/1/mem', 'rb').read(1)",
    "traces its parent": "call(101, 117, 16, 1, 0, 0)",
    "forks without end": "[os.fork() or time.sleep(60) or os._exit(0) for _ in OFTEN]",
    "starts threads without end": "import _thread as t; [t.start_new_thread(time.sleep, (2,)) for _ in OFTEN]",
    "takes all memory": "bytearray(3_000_000_000)",
    "writes a large file": "f = open(OUTPUT + '/large', 'wb'); [f.write(bytes(1 << 20)) for _ in range(80)]; f.flush()",
    "fills its private folder": "[open(f'/tmp/{n}', 'wb', 0).write(bytes(1 << 24)) or 1 / 0 for n in range(9)]; fail()",
    "mounts the root writable": "check(libc.mount(None, b'/', None, 4096 | 32, None))",
    "mounts anew": "call(430, 430, b'tmpfs', 0)",
    "unmounts": "check(libc.umount2(KIT.encode(), 2))",
    "makes namespaces": "check(libc.unshare(0x10000000))",
    "makes namespaces by a program": "subprocess.run(['unshare', '-Ur', 'true'], check=True)",
    "clones into namespaces": "call(56, 220, 0x10000000 | 17, 0, 0, 0, 0)",
    "goes into namespaces": "check(libc.setns(os.open('/proc/1/ns/mnt', os.O_RDONLY), 0))",
    "makes a device": "os.mknod('/tmp/disk', stat.S_IFBLK | 0o600, os.makedev(254, 0))",
    "changes the root": "os.chroot('/tmp')",
    "becomes another user": "os.setgroups([0]); os.setuid(12345)",
    "has rights": "assert not open('/proc/self/status').read().split('CapEff:')[1].split()[0].strip('0') == ''",
    "keeps keys in the kernel": "call(248, 217, b'user', b'a', b'b', 1, -3)",
    "loads into the kernel": "call(321, 280, 0, 0, 0)",
    "watches the machine": "call(298, 241, bytes(128), 0, -1, -1, 0)",
    "opens by handle": "call(304, 265, -100, bytes(16), 0)",
    "uses io_uring": "call(425, 425, 8, bytes(120))",
    "changes settings": "open('/proc/sys/kernel/hostname', 'w').write('mine')",
    "asks for a crash": "open('/proc/sysrq-trigger', 'w').write('h')",
    "names the host": "socket.sethostname('mine')",
    "types into a terminal": "fcntl.ioctl(os.open('/dev/null', os.O_RDWR), 0x5412, b'x')",
    "shares memory with the host": "call(30, 196, SHM, 0, 0)",
    "reads a disk": "open('/dev/vda', 'rb')",
    "raises its limits": "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**12, 10**12))",
    "turns its priority up": "os.nice(-10); assert os.nice(0) < 5",
}
WORKS = {
    "writes its output": "open(OUTPUT + '/fold_0/more', 'w').write('x')",
    "has a folder for a while": "import tempfile; tempfile.mkdtemp(); open(os.path.expanduser('~/x'), 'w')",
    "reads kit and data": "open(KIT + '/problem.py').read(); os.listdir(DATA + '/data')",
    "starts a program": "assert subprocess.run(['sh', '-c', 'echo hello'], capture_output=True).stdout == b'hello\\n'",
    "uses processes": "import multiprocessing as m; assert m.get_context('fork').Pool(2).map(abs, [-1, 2]) == [1, 2]",
    "uses threads": "import threading; t = threading.Thread(target=print); t.start(); t.join()",
    "talks to itself": "s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())",
    "has chance": "os.urandom(8); open('/dev/urandom', 'rb').read(8)",
    "sees itself": "assert os.getpid() == int(os.readlink('/proc/self')); os.sched_getaffinity(0)",
    "looks up users": "import pwd; pwd.getpwuid(0)",
}
ENDS = {
    "exits": "import os; os._exit(7)",
    "crashes": "import os; os.kill(os.getpid(), 11)",
    "killed": "import os; os.kill(os.getpid(), 9)",
}
STAYS = """
import os, subprocess, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(600)", {mark!r}])
    os._exit(0)
time.sleep(0.2)
"""


class Neighbourhood:
    """What is on the host for a submission to reach: a server, sockets, a process, shared memory, a key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        key = folder / "id_ed25519"
        key.write_text("a key")
        key.chmod(0o600)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.unix, self.abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        self.unix.bind(str(folder / "socket"))
        self.abstract.bind("\0" + str(folder))
        for each in (self.unix, self.abstract):
            each.listen()
        self.process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
        import ctypes

        self._libc = ctypes.CDLL(None, use_errno=True)
        self.memory = self._libc.shmget(0, 4096, 0o1600)

    def close(self) -> None:
        """Take all of it away again."""
        for each in (self.server, self.unix, self.abstract):
            each.close()
        self.process.kill()
        self.process.wait()
        self._libc.shmctl(self.memory, 0, None)


class Fenced:
    """An event that has run, in which each submission tries one thing."""

    def __init__(self, folder: Path, *, is_preloaded: bool) -> None:
        event = self.event = EventFolder(
            folder,
            fence=True,
            fence_readable=[*READABLE, str(folder / "environment")],
            preload=is_preloaded,
            max_output_mb=50,
            max_memory_mb=1500,
            max_processes=120,
            timeout=50,
        )
        make_preloadable(folder / "environment")
        self.around = Neighbourhood(folder)
        known = (
            str(folder),
            str(event.kit),
            str(event.kit),
            self.around.server.getsockname()[1],
            self.around.process.pid,
            self.around.memory,
            str(event.submissions),
        )
        self.mark = f"stays {folder}"
        self.names: dict[str, str] = {}
        for number, (title, code) in enumerate([*ESCAPES.items(), *WORKS.items()]):
            self.names[title] = f"s{number:03}"
            event.add(self.names[title], HEAD.format(known=known, code=code.replace("\n", "\n    ")))
        for title, code in {**ENDS, "stays": STAYS.format(mark=self.mark)}.items():
            self.names[title] = title
            event.add(title, code)
        heard = event.run()
        self.outcomes: dict[str, Outcome] = {name: outcome for name, _, outcome in heard.moves if outcome is not None}

    def said(self, title: str) -> str:
        """Return the log of what a submission tried."""
        return (self.event.folder / "events/toy_event/logs" / self.names[title] / "log").read_text()


@pytest.fixture(scope="module", params=[True, False], ids=["forked", "fresh"])
def fenced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fenced]:
    """Return an event that has run in the fence, with submissions that were forked or that started by themselves."""
    if why := fence.missing({"writable": [], "readable": READABLE}):
        pytest.skip(f"no fence on this machine: {why}")
    made = Fenced(tmp_path_factory.mktemp("fenced"), is_preloaded=request.param)
    yield made
    made.around.close()


@pytest.mark.xdist_group("fence")
def test_nothing_that_a_submission_tries_gets_it_outside(fenced: Fenced) -> None:
    got_out = {title: fenced.said(title) for title in ESCAPES if "HELD" not in fenced.said(title)}

    assert {title: said for title, said in got_out.items() if not was_ended(fenced, title)} == {}
    assert fenced.around.process.poll() is None
    assert (fenced.event.kit / "problem.py").read_text().count("mark") == 0
    assert not Path("/usr/mark").exists()
    assert not (fenced.event.submissions.parent / "mark").exists()
    assert socket.gethostname() != "mine"


def was_ended(fenced: Fenced, title: str) -> bool:
    """Whether a submission that said nothing was ended for it, as one that forks without end is."""
    outcome = fenced.outcomes[fenced.names[title]]
    return "ESCAPED" not in fenced.said(title) and outcome.cause is not Cause.OK


@pytest.mark.xdist_group("fence")
def test_what_submissions_need_works(fenced: Fenced) -> None:
    assert {title: fenced.said(title) for title in WORKS if "ESCAPED" not in fenced.said(title)} == {}


@pytest.mark.xdist_group("fence")
def test_ends_are_told_as_they_are(fenced: Fenced) -> None:
    assert {title: fenced.outcomes[title].returncode for title in ENDS} == {"exits": 7, "crashes": 139, "killed": 137}
    assert all((outcome.cpu_seconds or 0) > 0 for outcome in fenced.outcomes.values())


@pytest.mark.xdist_group("fence")
def test_what_a_submission_leaves_behind_ends_with_it(fenced: Fenced) -> None:
    assert fenced.event.records()["stays"].state is State.SCORED
    assert not [
        process for process in psutil.process_iter(["cmdline"]) if fenced.mark in (process.info["cmdline"] or [])
    ]


def test_what_is_the_organisers_is_hidden_where_it_lies_in_the_kit(tmp_path: Path) -> None:
    if why := fence.missing({"writable": [], "readable": READABLE}):
        pytest.skip(f"no fence on this machine: {why}")
    event = EventFolder(tmp_path, kit_dir=".", data_dir=".", fence=True, fence_readable=READABLE)
    (tmp_path / "data").mkdir()
    (event.kit / "problem.py").rename(tmp_path / "problem.py")
    files = "{p: len(open(p, 'rb').read()) for p in ('problem.py', 'config.yml', 'ramp-cloud.db')}"
    event.add("a", f"import os; print('SEES', {files}, os.listdir({str(event.submissions)!r}), os.listdir('data'))")

    event.run()

    said = (tmp_path / "events/toy_event/logs/a/log").read_text()
    size = (tmp_path / "problem.py").stat().st_size
    assert f"SEES {{'problem.py': {size}, 'config.yml': 0, 'ramp-cloud.db': 0}} [] []" in said


def test_without_a_fence_the_log_says_what_is_open(tmp_path: Path) -> None:
    event = EventFolder(tmp_path, fence=False)
    event.add("a")

    event.run()

    said = (tmp_path / "events/toy_event/logs/a/log").read_text()
    assert said.splitlines()[0] == f"[ramp-cloud: {fence.OPEN}]"


# -- machines that do not allow it -------------------------------------------------------------------------------------


def in_a_fork(work: Any) -> str:
    """Return what a forked process prints that does some work."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(write, 1)
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - told to the test
            os.write(1, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        said = file.read().decode()
    os.waitpid(pid, 0)
    return said


def without_namespaces(wanted: dict[str, Any], then: Any = lambda: None) -> str:
    """Return what is printed where namespaces are forbidden, as in a container, and then."""

    def work() -> None:
        fence._close_calls(with_network=True)  # noqa: SLF001 - the system's own way to forbid them
        fence.enter(wanted)
        then()

    return in_a_fork(work)


def test_where_namespaces_are_forbidden_it_is_said_and_what_can_be_closed_is(tmp_path: Path) -> None:
    def connect() -> None:
        with socket.create_server(("127.0.0.1", 0)):
            os.write(1, b"CONNECTED")

    said = without_namespaces({"writable": [str(tmp_path)], "readable": READABLE}, connect)

    assert said.startswith("[ramp-cloud: not fenced in: files that its user can read or write, and other processes (no")
    assert "Operation not permitted" in said
    assert "fence: false" in said
    assert said.endswith("PermissionError: [Errno 1] Operation not permitted"), "the network is closed all the same"


def test_a_fence_that_must_be_whole_is_an_error_where_it_cannot_be(tmp_path: Path) -> None:
    said = without_namespaces({"writable": [str(tmp_path)], "readable": READABLE, "strict": True}, lambda: os._exit(0))

    assert said.startswith("FenceError: no new namespaces: ")


def test_a_fence_that_cannot_be_built_leaves_nobody_half_fenced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(fence, "_set_attributes", fail)  # as on a kernel before 5.12
    inside = Path("/proc/self/ns/user").stat().st_ino

    def work() -> None:
        fence.enter({"writable": [str(tmp_path)], "readable": READABLE})
        os.write(1, b"SAME" if Path("/proc/self/ns/user").stat().st_ino == inside else b"OTHER")

    said = in_a_fork(work)

    assert "the kernel is too old, 5.12 is needed" in said
    assert said.endswith("SAME")


def test_an_ordinary_user_has_the_same_fence(tmp_path: Path) -> None:
    if os.getuid():
        pytest.skip("this is an ordinary user already")
    program = tmp_path / "try.py"
    program.write_text(Path(fence.__file__).read_text() + TRIES)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & stat.S_IXOTH:
            break
        folder.chmod(folder.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o777)

    said = subprocess.run(
        ["/usr/bin/python3", str(program), str(tmp_path / "out")],
        user=4242,
        group=4242,
        extra_groups=[],
        env={"HOME": "/nonexistent", "PATH": os.defpath},
        capture_output=True,
        text=True,
        check=False,
    )

    assert said.stdout.splitlines() == ["True", "['out', 'done']", "bounded"], said.stderr


TRIES = """
out = sys.argv[1]
if os.fork() == 0:
    enter({"writable": [out], "readable": ["/usr"], "processes": 320, "strict": True})
    open(out + "/done", "w").close()
    print(os.getuid() == 4242 and not os.path.exists(__file__))
    print(["out", *os.listdir(out)])
    sys.stdout.flush()
    try:
        for _ in range(1000):
            if os.fork() == 0:
                signal.pause()
    except OSError:
        print("bounded")
    sys.stdout.flush()
    os._exit(0)
os.wait()
"""
