"""Imports what a kit needs once and forks a process per submission from there, so that a training does not import.

    python preload.py SOCKET RAMP_TEST KIT_DIR SKIP PADDING

Run by the kit's own Python, which needs what the kit needs and nothing else. It imports what the program RAMP_TEST, the
kit's problem.py and its starting kit import; never problem.py itself, and nothing that a participant wrote. Then it
prints one line of JSON and listens at SOCKET, a Unix socket whose folder it removes at its end. For each connection it
forks a process that tells its pid, reads the name of a run folder, and supervises that run as supervise.py does, with a
training that is forked once more; it outlives everything else. The preloader ends when its standard input does.

SKIP names packages, separated by commas, that are left to the submissions, because they start threads or open a GPU as
they are imported: no fork survives that. PADDING is room for the command line of what it becomes.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import gc
import importlib
import importlib.util
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

RUN_VARIABLE = "RAMP_CLOUD_RUN"
_GPU = ("/dev/nvidia", "/dev/kfd", "/dev/dri")
_LAST_BREATH = 0.2  # seconds that a thread which has ended may be seen
_GROWN = 1 << 28  # bytes that this process may grow by before it makes room for a new one
# Positions in /proc/self/stat behind the name, see proc(5).
_ARGUMENTS, _ENVIRONMENT = 45, 47


class Unfit(Exception):
    """Submissions of this kit cannot be forked from here; each gets a process of its own."""


# -- what is imported --------------------------------------------------------------------------------------------------


def imports_of(source: str) -> list[str]:
    """Return the modules that a Python file imports when it is imported itself, in order; dotted names too."""
    found: list[str] = []
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop(0)
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            pending += ast.iter_child_nodes(node)
    return found


def _wanted(program: Path, kit: Path) -> list[str]:
    files = [program, kit / "problem.py", *sorted((kit / "submissions" / "starting_kit").glob("*.py"))]
    names: list[str] = []
    for file in files:
        # What cannot be read is for ramp-test to tell, with the participant's file and line.
        with contextlib.suppress(OSError, SyntaxError, ValueError):
            names += imports_of(file.read_text(encoding="utf-8"))
    return list(dict.fromkeys(names))


def _import(name: str) -> None:
    root = name.partition(".")[0]
    with contextlib.suppress(Exception, SystemExit):
        if importlib.util.find_spec(root) is None:
            return  # the kit's own, which is found only from its folder
        importlib.import_module(name)  # a name that is no module fails, and costs nothing


def preload(program: Path, kit: Path, skipped: set[str]) -> str | None:
    """Import everything; return the package after which this process cannot be forked, if there is one."""
    needed = {name.partition(".")[0] for name in imports_of(program.read_text(encoding="utf-8"))}
    for name in _wanted(program, kit):
        root = name.partition(".")[0]
        if root in skipped:
            continue
        if root in needed:
            importlib.import_module(root)  # without ramp-workflow there is nothing to do: let it be told
        _import(name)
        if (_threads() > 1 and not _end_with_a_fork()) or _has_gpu():
            if root in needed:
                msg = f"{root} starts threads or opens a GPU when it is imported"
                raise Unfit(msg)
            return root
    return None


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _has_gpu() -> bool:
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{number}").startswith(_GPU):
                return True
    return False


def _end_with_a_fork() -> bool:
    """Whether all threads but this one do: pools that know of forks, as OpenBLAS's, start anew when they are needed."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    give_up = time.monotonic() + _LAST_BREATH
    while _threads() > 1 and time.monotonic() < give_up:  # a thread is seen for a moment after it was joined
        time.sleep(0.001)
    return _threads() == 1


# -- what a fork becomes -----------------------------------------------------------------------------------------------


class Memory:
    """Where the system shows this process's command line and environment; a fork has to say there what it is."""

    def __init__(self) -> None:
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        self._arguments = int(fields[_ARGUMENTS]), int(fields[_ARGUMENTS + 1])
        self._environment = int(fields[_ENVIRONMENT]), int(fields[_ENVIRONMENT + 1])

    def show_command(self, words: list[str]) -> None:
        """Have ``ps`` show a command line."""
        _overwrite(self._arguments, b"".join(os.fsencode(word) + b"\0" for word in words))

    def show_environment(self, env: dict[str, str]) -> None:
        """Have the system show an environment, the run's mark first, once nothing points at the old one any more."""
        names = sorted(env, key=lambda name: name != RUN_VARIABLE)
        _overwrite(self._environment, b"".join(os.fsencode(f"{name}={env[name]}") + b"\0" for name in names))


def _overwrite(area: tuple[int, int], text: bytes) -> None:
    """Put as much of a text as there is room for in the place of what is there."""
    start, end = area
    if start > 0:
        room = end - start
        ctypes.memmove(start, text[: room - 1].ljust(room, b"\0"), room)


class Training:
    """What the supervisor of a run is given to start the training with: a fork of this process in place of a program.

    Args:
        program: ramp-test, as it stands in commands.
        memory: of this process.
        keep: descriptors that imports opened, and so a training has in a process of its own, too.
    """

    def __init__(self, program: Path, memory: Memory, keep: set[int]) -> None:
        self._path = program
        self._code = compile(program.read_bytes(), str(program), "exec")
        self._memory = memory
        self._keep = {0, 1, 2} | keep

    def can_run(self, command: list[str]) -> bool:
        """Whether a command is what was preloaded."""
        return bool(command) and command[0] == str(self._path)

    def start(self, command: list[str], cwd: str, env: dict[str, str], prepare: Callable[[], None]) -> tuple[int, int]:
        """Fork the training; return its pid and the descriptor that it prints to.

        Args:
            command: ramp-test and its arguments.
            cwd: where it runs.
            env: its whole environment.
            prepare: called in the fork before anything else of the training, and may fork again.
        """
        output, written = os.pipe()
        pid = os.fork()
        if pid:
            os.close(written)
            return pid, output
        status = 1
        try:
            status = self._become(command, cwd, env, prepare, written)
        except BaseException:  # noqa: BLE001 - whatever it is, this process must not go on as its parent
            traceback.print_exc()
        finally:
            os._exit(status)

    def _become(
        self, command: list[str], cwd: str, env: dict[str, str], prepare: Callable[[], None], written: int
    ) -> int:
        os.dup2(written, 1)
        os.dup2(written, 2)
        for descriptor in _descriptors() - self._keep:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(env)
        os.chdir(cwd)
        self._memory.show_command([sys.executable, *command])
        self._memory.show_environment(env)
        prepare()
        _seed()
        return run_program(self._code, command)


def run_program(code: types.CodeType, command: list[str]) -> int:
    """Run a program's code as the interpreter would run its file, to the end; return its exit code."""
    sys.argv = list(command)
    sys.path[0] = os.path.dirname(os.path.realpath(command[0]))
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=command[0], __builtins__=__builtins__)
    sys.modules["__main__"] = main
    status = 0
    try:
        exec(code, main.__dict__)  # noqa: S102 - it is the environment's own ramp-test
    except SystemExit as end:
        status = _exit_code(end.code)
    except BaseException as error:  # noqa: BLE001 - the interpreter's own way with what nobody catches
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # without this function's own frame
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    return _finish(status)


def _exit_code(said: Any) -> int:
    if said is None:
        return 0
    if isinstance(said, int):
        return said & 0xFF
    sys.stderr.write(f"{said}\n")  # what Python does with a text
    return 1


def _finish(status: int) -> int:
    """Do what the interpreter does at its end as far as somebody notices: threads, atexit, what is still unwritten."""
    import atexit
    import threading

    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - what Python itself calls at its end
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()  # noqa: SLF001 - as above
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = status or 120  # as Python does
    return status


def _seed() -> None:
    """Give this process its own random numbers; ``random`` sees to itself after a fork."""
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        numpy.seed()


def _descriptors() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one of this very list
            os.fstat(int(name))
            found.add(int(name))
    return found


# -- serving -----------------------------------------------------------------------------------------------------------


def serve(listener: socket.socket, supervise: Any, training: Training, memory: Memory) -> None:
    """Fork a supervisor for every run folder that is asked for, until standard input ends or memory has grown."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    most = _resident() + _GROWN
    gc.collect()
    gc.freeze()  # what is here stays here: the collector need not write to it, and so copy it, in every fork
    while _resident() < most:
        ready, _, _ = select.select([listener.fileno(), 0], [], [])
        if 0 in ready:
            return
        connection, _ = listener.accept()
        with connection:
            if not os.fork():
                listener.close()
                _supervise(connection, supervise, training, memory)


def _supervise(connection: socket.socket, supervise: Any, training: Training, memory: Memory) -> None:
    """Be the supervisor of a run, in a fork; never returns.

    Whoever asks is told the pid first, and can write it down before anything begins.
    """
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setpgid(0, 0)
        with connection, connection.makefile("rb") as asked:
            connection.sendall(b"%d\n" % os.getpid())
            folder = os.fsdecode(asked.readline().rstrip(b"\n"))
        if folder:
            nowhere = os.open(os.devnull, os.O_RDWR)
            for number in range(3):
                os.dup2(nowhere, number)
            os.close(nowhere)
            os.chdir(folder)
            memory.show_command([sys.executable, supervise.__file__, folder])
            supervise.main([folder], training)
    finally:
        os._exit(1)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _sibling(name: str) -> Any:
    """Return a module that lies beside this file, wherever that is."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None  # noqa: PT018, S101 - of a file there is always one
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Preload, and serve."""
    address, program, kit = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    skipped = {name for name in sys.argv[4].split(",") if name}
    answer = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (1, 2):  # packages may print as they are imported
        os.dup2(nowhere, number)

    def tell(**facts: Any) -> None:
        with contextlib.suppress(OSError):
            os.write(answer, json.dumps(facts).encode() + b"\n")

    supervise, _ = _sibling("supervise"), _sibling("fence")
    sys.path[0] = os.path.dirname(os.path.realpath(program))
    before = _descriptors()
    try:
        culprit = preload(program, kit, skipped)
    except Unfit as error:
        tell(unfit=str(error))
        return
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever an import raises; ramp-test tells it in full
        tell(unfit=f"{type(error).__name__}: {error}")
        return
    if culprit is not None:  # what is imported stays, so begin again without it
        os.dup2(answer, 1)
        again = [*sys.argv[:4], ",".join([*sorted(skipped), culprit]), *sys.argv[5:]]
        os.execv(sys.executable, [sys.executable, *again])  # noqa: S606 - a list of words, no shell
    memory = Memory()
    training = Training(program, memory, _descriptors() - before)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(128)
        tell(ready=True, skipped=sorted(skipped))
        try:
            serve(listener, supervise, training, memory)
        finally:
            with contextlib.suppress(OSError):
                address.unlink()
                address.parent.rmdir()
    os._exit(0)  # somebody waits for this end, and what was imported need not be taken apart


if __name__ == "__main__":
    main()
