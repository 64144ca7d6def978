"""Fences the calling process in, on Linux, without an exec: what it has imported stays. Needs no rights of root.

``enter`` is called in a process that was just forked and has one thread. It makes new user, mount, pid, network, IPC
and UTS namespaces, a file system of what may be read or written, and takes away every right to change that. Calls of
the system that Python has no names for are made by ctypes; their numbers and structures are those of Linux's headers.

It runs on machine images, too, as this one file: the standard library of Python 3.9 must do.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import resource
import signal
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any

OPEN = "not fenced in (fence: false): it can use the network, and read and write whatever its user can"
_NEW = 0x00020000 | 0x10000000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000  # mount user pid net ipc uts
_NAMESPACES = _NEW | 0x02000000 | 0x00000080  # and cgroup, time: what a fenced process may not make
_BIND, _REC, _PRIVATE, _NOSUID, _NODEV, _NOEXEC = 4096, 16384, 1 << 18, 2, 4, 8
_DETACH = 2
_READ_ONLY, _RECURSIVE = 1, 0x8000  # of mount_setattr
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 1, 22, 24, 38, 47
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_MOUNT_SETATTR, _CLONE3 = 442, 435
_SCRATCH = 1 << 30  # bytes of a private /tmp, where nothing else is said
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/sys/devices/system", "/sys/fs/cgroup")
_OWN = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - each process has others
# Of /etc only what programs look up; nothing that is a secret on some machine.
_ETC = (
    "passwd", "group", "nsswitch.conf", "hosts", "host.conf", "localtime", "timezone", "ld.so.cache", "ld.so.conf",
    "ld.so.conf.d", "ssl/certs", "ssl/openssl.cnf", "pki/tls/certs", "ca-certificates", "alternatives", "fonts",
    "mime.types", "os-release", "locale.alias", "locale.conf", "protocols", "services", "OpenCL",
)  # fmt: skip
_DEVICES = ("null", "zero", "full", "random", "urandom")
_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}

# Calls that a training has no use for, by machine: name -> number on x86_64 and on aarch64.
_CALLS = {
    "clone": (56, 220), "ioctl": (16, 29), "socket": (41, 198),
}  # fmt: skip
_DENIED = {
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "bpf": (321, 280),
    "perf_event_open": (298, 241), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264), "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142),
    "sethostname": (170, 161), "setdomainname": (171, 162), "acct": (163, 89), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "clock_adjtime": (305, 266), "syslog": (103, 116), "quotactl": (179, 60),
    "mount_setattr": (442, 442), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "pidfd_getfd": (438, 438),
}  # fmt: skip
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16
_TYPES_INTO_TERMINAL = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX


class FenceError(OSError):
    """The fence cannot be had here; the text says what is missing, and what to do."""


_libc = ctypes.PyDLL(None, use_errno=True) if sys.platform == "linux" else None


def _call(number: int, *arguments: Any) -> int:
    assert _libc is not None  # noqa: S101 - asked before
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _libc_call(name: str, *arguments: Any) -> None:
    if getattr(_libc, name)(*arguments):
        code = ctypes.get_errno()
        said = arguments[1] if name == "mount" else arguments[0]
        raise OSError(code, f"{name}: {os.strerror(code)}", said)


# -- going in ----------------------------------------------------------------------------------------------------------


def enter(wanted: Mapping[str, Any]) -> None:
    """Return inside the fence: as another process, whose end the calling one waits for and then ends likewise.

    Keys of ``wanted``; paths are absolute, what is not there is passed over:
    writable    folders that stay writable
    readable    files and folders that can be read, beside those of the system
    hidden      files and folders that look empty where they lie in something readable
    processes   how many processes and threads there may be at a time
    scratch     bytes that a private /tmp takes
    memory      bytes that one process may use, or nothing
    strict      whether the fence must be whole; otherwise what could not be closed is printed, a line each

    Raises:
        FenceError: it must be whole and cannot be; nothing has changed.
    """
    try:
        _enter(_Plan(wanted))
    except FenceError as error:
        if wanted.get("strict"):
            raise
        told = f"[ramp-cloud: not fenced in: files that its user can read or write, and other processes ({error})]\n"
        if not _close_calls(with_network=False):
            told += "[ramp-cloud: not fenced in: the network]\n"
        os.write(1, told.encode())
    _limit(wanted)


def missing(wanted: Mapping[str, Any]) -> str:
    """Return why the fence cannot be whole on this machine, nothing where it can; tries it, in another process."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            enter({**wanted, "strict": True})
        except BaseException as error:  # noqa: BLE001 - told to the other process
            os.write(write, str(error).encode()[:4096])
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        said = file.read().decode("utf-8", "replace")
    os.waitpid(pid, 0)
    return said


def _enter(plan: _Plan) -> None:
    """Make the fence in a new process, the first of its pid namespace, and return in the only child of that."""
    if _libc is None or platform.machine() not in _MACHINES:
        msg = f"{sys.platform} on {platform.machine()} has no such fence; set fence: false, or use Linux"
        raise FenceError(msg)
    uid, gid = os.geteuid(), os.getegid()
    read, write = os.pipe()
    sys.stdout.flush()
    which = _MACHINES[platform.machine()][0]
    try:
        # Not os.fork: it must be the first process of the namespaces. It only builds, forks and waits.
        pid = _call(_CALLS["clone"][which], ctypes.c_ulong(_NEW | signal.SIGCHLD), 0, 0, 0, 0)
    except OSError as error:
        os.close(read)
        os.close(write)
        raise FenceError(_why(error, "new namespaces")) from error
    if pid:
        os.close(write)
        _stand_in(pid, read)
        return
    try:
        os.close(read)
        plan.build(uid, gid)
        child = os.fork()
    except BaseException as error:  # noqa: BLE001 - this process must not go on as the training
        os.write(write, b"!" + _why(error, "a file system of its own").encode()[:4000])
        os._exit(1)
    if child:
        _be_first(child, write)
    _drop_rights()
    _close_calls(with_network=True)
    os.write(write, b"+")
    os.close(write)


def _why(error: BaseException, what: str) -> str:
    advice = "set fence: false to go without"
    if isinstance(error, OSError) and error.errno in (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EUSERS):
        advice = (
            "the system forbids it; on Ubuntu allow it by `sysctl kernel.apparmor_restrict_unprivileged_userns=0`, in "
            "a container by its security options, or set fence: false"
        )
    elif isinstance(error, OSError) and error.errno in (errno.EINVAL, errno.ENOSYS):
        advice = "the kernel is too old, 5.12 is needed; or set fence: false"
    return f"no {what}: {error}; {advice}"


def _stand_in(pid: int, told: int) -> None:
    """Wait for the training in the place of the process that it came from, and end as it ended.

    Returns never, but raises FenceError when the fence could not be built.
    """
    said = os.read(told, 1)
    if said != b"+":
        why = os.read(told, 4096) if said else b"the process that builds it was killed"
        os.close(told)
        os.waitpid(pid, 0)
        raise FenceError(why.decode("utf-8", "replace"))
    try:
        signal.set_wakeup_fd(-1)
        _close_all_but(told)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        _, status = os.waitpid(pid, 0)
        # What is first in a pid namespace cannot die by a signal of its own; so the true status comes by the pipe.
        written = os.read(told, 4)
        if len(written) == 4:  # noqa: PLR2004, RUF100 - the size of what _be_first packs
            (status,) = struct.unpack("i", written)
        if os.WIFSIGNALED(status):
            deadly = os.WTERMSIG(status)
            if deadly != signal.SIGKILL:
                signal.signal(deadly, signal.SIG_DFL)
            os.kill(os.getpid(), deadly)
            signal.pause()
        os._exit(os.WEXITSTATUS(status))
    finally:
        os._exit(1)


def _be_first(child: int, told: int) -> None:
    """Be the first process of the namespace: collect whoever ends; end, with all that is left, when the child does."""
    try:
        signal.set_wakeup_fd(-1)
        _close_all_but(told)
        for number in range(1, signal.NSIG):
            if number not in (signal.SIGKILL, signal.SIGSTOP):
                with contextlib.suppress(OSError, ValueError):
                    signal.signal(number, signal.SIG_DFL)  # from within the namespace these then have no effect
        while True:
            pid, status = os.wait()
            if pid == child:
                os.write(told, struct.pack("i", status))
                break
    finally:
        os._exit(0)


def _close_all_but(kept: int) -> None:
    os.closerange(3, kept)
    os.closerange(kept + 1, max(int(name) for name in os.listdir("/proc/self/fd")) + 1)


# -- what can be seen --------------------------------------------------------------------------------------------------


class _Plan:
    """The file system that is to be, made out while everything can still be looked up."""

    def __init__(self, wanted: Mapping[str, Any]) -> None:
        self._scratch = int(wanted.get("scratch") or _SCRATCH)
        self._processes = int(wanted.get("processes") or 0)
        self._cwd = os.getcwd()
        self._home = os.path.realpath(os.environ.get("HOME") or "/")
        etc = [f"/etc/{name}" for name in _ETC]
        binds: dict[str, bool] = {}  # real path -> writable
        self._links: dict[str, str] = {}
        for paths, writable in (
            (_SYSTEM, False),
            (etc, False),
            (wanted["readable"], False),
            (wanted["writable"], True),
        ):
            for path in paths:
                given = os.path.normpath(path)
                real = os.path.realpath(given)
                if os.path.lexists(given) and real != given and os.path.islink(given):
                    self._links[given] = os.readlink(given)
                if os.path.exists(real):
                    binds[real] = writable
        for path in ("/", *_OWN):
            binds.pop(path, None)
        self._binds = _without_inner(binds)
        hidden = {os.path.realpath(path) for path in wanted.get("hidden", ()) if os.path.exists(path)}
        self._hidden = [path for path in hidden if _is_within(path, list(self._binds))]

    def build(self, uid: int, gid: int) -> None:
        """Make it, in new namespaces; and all else that needs rights within them."""
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            _write(f"/proc/self/{name}", text)
        _libc_call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _mount(None, "/", None, _REC | _PRIVATE)
        # The old root goes below a new one, so that what lies in the old /tmp can still be reached.
        _mount("tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV, "mode=755")  # noqa: S108 - any folder that there always is
        os.mkdir("/tmp/old")  # noqa: S108 - as above
        os.mkdir("/tmp/new")  # noqa: S108 - as above
        _call(_DENIED["pivot_root"][_MACHINES[platform.machine()][0]], b"/tmp", b"/tmp/old")
        os.chdir("/")
        _mount("tmpfs", "/new", "tmpfs", _NOSUID | _NODEV, "mode=755")
        self._fill()
        _loopback_up()
        _limit_namespace(self._processes)
        _set_attributes("/new/proc", _READ_ONLY)  # to root of the machine its settings would be writable
        _set_attributes("/new", _READ_ONLY)
        _libc_call("umount2", b"/old", _DETACH)
        os.chdir("/new")
        _call(_DENIED["pivot_root"][_MACHINES[platform.machine()][0]], b".", b".")
        _libc_call("umount2", b".", _DETACH)
        os.chdir("/")
        with contextlib.suppress(OSError):
            os.chdir(self._cwd)

    def _fill(self) -> None:
        places: dict[str, Any] = {path: self._bind for path in self._binds}
        for path in (*_OWN, self._home):
            if not _is_within(path, [place for place in self._binds if place != path]) and path != "/":
                places.setdefault(path, self._private)
        places |= {path: self._hide for path in self._hidden}
        places |= {"/proc": self._proc, "/dev": self._devices}
        for path in sorted(places, key=lambda place: place.count("/")):  # outer ones first
            places[path](path)
        for path, target in self._links.items():
            with contextlib.suppress(FileExistsError, OSError):  # it is there where its folder is
                os.makedirs(os.path.dirname(f"/new{path}"), exist_ok=True)
                os.symlink(target, f"/new{path}")

    def _bind(self, path: str) -> None:
        source, target = f"/old{path}", f"/new{path}"
        _make_place(target, is_folder=os.path.isdir(source))
        _mount(source, target, None, _BIND | _REC)
        _set_attributes(target, _NOSUID | _NODEV | (0 if self._binds[path] else _READ_ONLY), _RECURSIVE)

    def _private(self, path: str) -> None:
        _make_place(f"/new{path}", is_folder=True)
        mode = "1777" if path != self._home else "700"
        _mount("tmpfs", f"/new{path}", "tmpfs", _NOSUID | _NODEV, f"mode={mode},size={self._scratch}")

    def _hide(self, path: str) -> None:
        if os.path.isdir(f"/old{path}"):
            self._private(path)
        else:
            _mount("/old/dev/null", f"/new{path}", None, _BIND)

    def _proc(self, path: str) -> None:
        _make_place(f"/new{path}", is_folder=True)
        _mount("proc", f"/new{path}", "proc", _NOSUID | _NODEV | _NOEXEC)

    def _devices(self, path: str) -> None:
        _make_place(f"/new{path}", is_folder=True)
        for name in _DEVICES:
            target = f"/new/dev/{name}"
            _make_place(target, is_folder=False)
            _mount(f"/old/dev/{name}", target, None, _BIND)
        for name, link in _LINKS.items():
            os.symlink(link, f"/new/dev/{name}")


def _without_inner(binds: dict[str, bool]) -> dict[str, bool]:
    """Leave out what comes along with an outer folder anyway."""
    kept: dict[str, bool] = {}
    for path in sorted(binds, key=lambda each: each.count("/")):
        outer = [place for place in kept if path.startswith(place + "/")]
        if not outer or kept[max(outer, key=len)] != binds[path]:
            kept[path] = binds[path]
    return kept


def _is_within(path: str, places: Sequence[str]) -> bool:
    return any(path.startswith(place + "/") for place in places)


def _make_place(path: str, *, is_folder: bool) -> None:
    if os.path.lexists(path):
        return
    os.makedirs(path if is_folder else os.path.dirname(path), exist_ok=True)
    if not is_folder:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind)]
    _libc_call("mount", *words, ctypes.c_ulong(flags), None if options is None else options.encode())


def _set_attributes(path: str, attributes: int, how: int = 0) -> None:
    asked = struct.pack("QQQQ", attributes, 0, 0, 0)
    try:
        _call(_MOUNT_SETATTR, -100, os.fsencode(path), how, asked, ctypes.c_size_t(len(asked)))
    except OSError as error:
        raise OSError(error.errno, f"mount_setattr: {error.strerror}", path) from error


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


# -- what can be done --------------------------------------------------------------------------------------------------


def _loopback_up() -> None:
    """Let processes of the training talk to each other; nobody else is on this loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        fcntl.ioctl(asked, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def _limit_namespace(processes: int) -> None:
    """Forbid namespaces within this one, and bound its processes. From 6.14 on a pid namespace has its own bound."""
    _write("/new/proc/sys/user/max_user_namespaces", "0")
    if processes and _kernel() >= (6, 14):  # before, it would be the whole machine's
        _write("/new/proc/sys/kernel/pid_max", str(max(301, processes + 2)))


def _kernel() -> tuple[int, int]:
    major, minor = platform.release().split("-")[0].split(".")[:2]
    return int(major), int(minor)


def _limit(wanted: Mapping[str, Any]) -> None:
    if wanted.get("memory"):
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        bound = int(wanted["memory"]) if hard == resource.RLIM_INFINITY else min(int(wanted["memory"]), hard)
        resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
    # From 5.14 on counted in the user namespace; before, all processes of the user would count. Root has no bound.
    if wanted.get("processes") and sys.platform == "linux" and _kernel() >= (5, 14):
        resource.setrlimit(resource.RLIMIT_NPROC, (int(wanted["processes"]),) * 2)


def _drop_rights() -> None:
    for capability in range(64):
        if _libc is None or _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
            break  # there are no more
    _libc_call("prctl", _PR_CAP_AMBIENT, 4, 0, 0, 0)
    header, none = struct.pack("Ii", 0x20080522, 0), bytes(24)
    _libc_call("capset", header, none)


def _close_calls(*, with_network: bool) -> bool:
    """Forbid calls of the system that trainings have no use for; whether that worked. Holds for all that it starts."""
    if _libc is None or platform.machine() not in _MACHINES:
        return False
    which, architecture = _MACHINES[platform.machine()]
    families = (_UNIX, _INET, _INET6, _NETLINK) if with_network else (_UNIX, _NETLINK)
    program = _filter(which, architecture, families)
    lines = b"".join(struct.pack("HBBI", *line) for line in program)
    text = ctypes.create_string_buffer(lines, len(lines))
    described = struct.pack("HxxxxxxP", len(program), ctypes.addressof(text))
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    return not _libc.prctl(_PR_SET_SECCOMP, 2, described, 0, 0)


def _filter(which: int, architecture: int, families: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Return a program of the kernel's packet filter (code, jump if true, jump if false, operand), see seccomp(2)."""
    load, equal, at_least, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, refuse, unknown = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
    number, machine, first, second = 0, 4, 16, 24  # in struct seccomp_data; lower halves of the arguments
    lines = [(load, 0, 0, machine), (equal, 1, 0, architecture), (answer, 0, 0, kill), (load, 0, 0, number)]
    if which == 0:
        lines += [(at_least, 0, 1, 0x40000000), (answer, 0, 0, refuse)]  # the same calls by the numbers of x32
    for numbers in _DENIED.values():
        lines += [(equal, 0, 1, numbers[which]), (answer, 0, 0, refuse)]
    lines += [
        (equal, 0, 1, _CLONE3),
        (answer, 0, 0, unknown),
    ]  # its flags cannot be looked at; libraries then use clone
    lines += [(equal, 0, 4, _CALLS["clone"][which]), (load, 0, 0, first), (any_bit, 0, 1, _NAMESPACES)]
    lines += [(answer, 0, 0, refuse), (answer, 0, 0, allow)]
    lines += [(equal, 0, 2 + 2 * len(_TYPES_INTO_TERMINAL), _CALLS["ioctl"][which]), (load, 0, 0, second)]
    for request in _TYPES_INTO_TERMINAL:
        lines += [(equal, 0, 1, request), (answer, 0, 0, refuse)]
    lines += [(answer, 0, 0, allow)]
    lines += [(equal, 0, 2 + 2 * len(families), _CALLS["socket"][which]), (load, 0, 0, first)]
    for family in families:
        lines += [(equal, 0, 1, family), (answer, 0, 0, allow)]
    return [*lines, (answer, 0, 0, refuse), (answer, 0, 0, allow)]
