"""Supervisor and watcher as on a machine image: one file each, run by whatever Python is there, told of by a stream."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from runner import supervise, watch
from runner.watch import SpotNotices
from runner.watch_frames import Ended, Frame, Gone, Log, Notice, read_frames

NOTICE = {"action": "terminate", "time": "2026-01-02T03:04:05Z"}
RUN = "0123456789abcdef0123456789abcdef"
SOON = 20.0  # seconds that nothing here should need; only a failing test waits for it


def pythons() -> dict[str, str]:
    """Return the interpreters of this machine that an image could have, by version."""
    found = {f"{sys.version_info.major}.{sys.version_info.minor}": sys.executable}
    versions = Path(os.environ.get("PYENV_ROOT", "~/.pyenv"), "versions").expanduser()
    for minor in range(9, 20):
        name = f"python3.{minor}"
        path = next(map(str, sorted(versions.glob(f"3.{minor}.*/bin/{name}"))), shutil.which(name))
        if path and subprocess.run([path, "-c", ""], check=False, capture_output=True).returncode == 0:
            found.setdefault(f"3.{minor}", path)
    return found


PYTHONS = pythons()


class Image:
    """A home folder as on an instance, with a run in it."""

    def __init__(self, home: Path, python: str = sys.executable) -> None:
        self.home = home
        self.python = python
        self.folder = home / ".ramp-cloud" / "runs" / RUN
        self.folder.mkdir(parents=True)
        bin_ = home / ".ramp-cloud" / "bin"
        bin_.mkdir()
        for module in (supervise, watch):  # nothing else of ours is there
            shutil.copy(str(module.__file__), bin_)
        self.environment = {"HOME": str(home), "PATH": os.environ["PATH"], "GREETING": "hello"}

    def order(self, script: str, **changes: Any) -> None:
        """Write what the supervisor is to do: run a script for sh."""
        spec = {
            "command": ["sh", "-c", script, "~/zero", "--first=~/one", "--second=a~/b"],
            "cwd": "~/",
            "log": "log",
            "output": ".",
            "env_extra": {"ADDED": "too"},
            "timeout": 60,
            "max_output": 10**8,
            "max_log": 10**6,
            "nice": 0,
            "oom_score": 500,
        }
        (self.folder / "spec.json").write_text(json.dumps(spec | changes))

    def start(self, script: str, *arguments: str) -> "subprocess.Popen[bytes]":
        """Start supervise.py or watch.py from the home folder, with relative paths."""
        return subprocess.Popen(
            # A warning of a newer Python is an error; that the end of a process closes its files is meant.
            [
                self.python,
                "-I",
                "-Werror",
                "-Wignore::ResourceWarning",
                f".ramp-cloud/bin/{script}",
                f".ramp-cloud/runs/{RUN}",
                *arguments,
            ],
            cwd=self.home,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,  # reading returns what is there
        )

    def outcome(self) -> dict[str, Any]:
        """Run the supervisor to its end and return what it wrote."""
        with self.start("supervise.py") as process:
            said = process.communicate(timeout=SOON)
        assert said == (b"", b"")
        return dict(json.loads((self.folder / "outcome.json").read_text()))

    def log(self) -> str:
        """Return the log."""
        return (self.folder / "log").read_text()


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """Return an image with the Python that runs the tests."""
    return Image(tmp_path)


@pytest.fixture(params=PYTHONS)
def any_image(request: pytest.FixtureRequest, tmp_path: Path) -> Image:
    """Return an image with each Python that is here."""
    return Image(tmp_path, PYTHONS[request.param])


def text_of(frames: list[Frame]) -> str:
    return b"".join(frame.data for frame in frames if isinstance(frame, Log)).decode()


# -- both ------------------------------------------------------------------------------------------------------------


def test_a_training_from_beginning_to_end(any_image: Image) -> None:
    before = psutil.Process().children()  # servers that tests of this process share
    any_image.order('echo "$GREETING $ADDED"; pwd; echo "$0 $1 $2"; (exec sleep 600 &) ; exit 3')
    with any_image.start("watch.py", "0") as watching:
        outcome = any_image.outcome()
        assert watching.stdout is not None
        said = list(read_frames(watching.stdout))
        assert watching.wait(SOON) == 0
        assert watching.stderr is not None
        assert watching.stderr.read() == b""
    home = any_image.home
    assert text_of(said) == f"hello too\n{home}\n{home}/zero --first={home}/one --second=a~/b\n"
    assert said[-1] == Ended(outcome)
    assert (outcome["returncode"], outcome["ending"]) == (3, "")
    assert outcome["peak_memory_bytes"] > 0
    assert [child for child in psutil.Process().children() if child not in before] == []


def test_the_time_limit_holds_for_all_that_was_started(any_image: Image) -> None:
    any_image.order("setsid sleep 600 & echo $!; sleep 600", timeout=0.5)
    outcome = any_image.outcome()
    assert (outcome["returncode"], outcome["ending"]) == (-9, "timeout")
    assert not psutil.pid_exists(int(any_image.log().split()[0]))
    assert "killed at the time limit of 0.5 s" in any_image.log()


def test_a_watch_from_the_middle_of_the_log(image: Image) -> None:
    image.order("echo 0123456789")
    image.outcome()
    with image.start("watch.py", "7") as watching:
        assert watching.stdout is not None
        assert text_of(list(read_frames(watching.stdout))) == "789\n"


def test_a_supervisor_that_was_killed(image: Image) -> None:
    image.order("echo started; exec sleep 600")
    with image.start("supervise.py") as supervising, image.start("watch.py", "0") as watching:
        assert watching.stdout is not None
        frames = read_frames(watching.stdout)
        assert next(frames) == Log(b"started\n")
        [training] = psutil.Process(supervising.pid).children()
        supervising.kill()
        supervising.wait()
        assert list(frames) == [Gone()]
        training.kill()


def test_a_watch_that_nobody_hears_ends(image: Image) -> None:
    image.order("echo started; exec sleep 600")
    with image.start("supervise.py") as supervising, image.start("watch.py", "0") as watching:
        assert watching.stdout is not None
        assert next(read_frames(watching.stdout)) == Log(b"started\n")
        watching.stdout.close()
        assert watching.wait(5) == 0, "though there is nothing to say before a quarter of a minute has passed"
        assert watching.stderr is not None
        assert watching.stderr.read() == b""
        supervising.terminate()


# -- the supervisor --------------------------------------------------------------------------------------------------


def test_a_whole_environment(image: Image) -> None:
    image.order("env", env={"ONLY": "this", "PATH": os.environ["PATH"]})
    image.outcome()
    names = {line.split("=")[0] for line in image.log().splitlines()}
    assert {"ONLY", "ADDED", "PATH"} <= names
    assert "GREETING" not in names


def test_memory_is_taken_from_the_training_first(image: Image) -> None:
    if not Path("/proc/self/oom_score_adj").exists():
        pytest.skip("only Linux has it")
    image.order("cat /proc/self/oom_score_adj")
    image.outcome()
    assert image.log() == "500\n"
    assert Path("/proc/self/oom_score_adj").read_text() != "500\n"


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("{", "JSONDecodeError"),
        ('{"log": "log"}', "KeyError: 'output'"),
        ('{"log": "no/such/folder/log", "output": ".", "max_log": 1}', "No such file or directory"),
    ],
)
def test_orders_that_cannot_be_followed_are_told(image: Image, spec: str, why: str) -> None:
    (image.folder / "spec.json").write_text(spec)
    assert why in image.outcome()["not_started"]


def test_a_command_that_is_not_there(image: Image) -> None:
    image.order("", command=["~/no-such-program"])
    assert f"{image.home}/no-such-program" in image.outcome()["not_started"]


@pytest.mark.parametrize("first", ["training", "supervisor"])
@pytest.mark.parametrize("script", ["exec sleep 600", "sleep 600 & trap 'exit 143' TERM; wait"])
def test_a_machine_that_shuts_down_is_not_the_trainings_fault(image: Image, first: str, script: str) -> None:
    image.order(f"echo started; {script}")
    with image.start("supervise.py") as supervising, image.start("watch.py", "0") as watching:
        assert watching.stdout is not None
        frames = read_frames(watching.stdout)
        assert next(frames) == Log(b"started\n")
        children = psutil.Process(supervising.pid).children()
        if first == "supervisor":
            supervising.terminate()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):  # the supervisor may have been quicker
                child.terminate()
        psutil.wait_procs(children)
        if first == "training":
            time.sleep(0.1)  # systemd takes a moment from one process to the next
            supervising.terminate()
        *_, end = frames
    assert isinstance(end, Ended)
    assert end.outcome["ending"] == "stopped"


def test_a_training_that_ends_itself_by_a_signal(image: Image) -> None:
    image.order("kill -TERM $$")
    outcome = image.outcome()
    assert (outcome["returncode"], outcome["ending"]) == (-15, "")


# -- notices ---------------------------------------------------------------------------------------------------------


class Metadata(HTTPServer):
    """A metadata service as EC2 has it: nothing without a token, 404 without a notice."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.tokens = ["token-1"]
        self.body = b""
        self.asked: list[str] = []
        self.broken = False

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_port}/"


class _Answer(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        self.server.asked.append("token")
        is_right = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"] == "21600"
        self._answer(200 if is_right else 400, self.server.tokens[-1].encode())

    def do_GET(self) -> None:
        self.server.asked.append("notice")
        if self.headers["X-aws-ec2-metadata-token"] != self.server.tokens[-1]:
            self._answer(401, b"")
        elif self.path != "/latest/meta-data/spot/instance-action" or not self.server.body:
            self._answer(404, b"<html>Not Found</html>")
        else:
            self._answer(200, self.server.body)

    def _answer(self, code: int, body: bytes) -> None:
        if self.server.broken:
            self.wfile.write(b"garbage\r\n\r\n")
            return
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    """Return a metadata service."""
    with Metadata() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_notice_is_found(metadata: Metadata) -> None:
    notices = SpotNotices(metadata.url)
    assert notices.look() is None
    metadata.body = json.dumps(NOTICE | {"more": 1}).encode()
    assert notices.look() == NOTICE
    assert metadata.asked == ["token", "notice", "notice"], "one token serves for all"


def test_a_token_that_has_expired_is_renewed(metadata: Metadata) -> None:
    notices = SpotNotices(metadata.url)
    metadata.body = json.dumps(NOTICE).encode()
    assert notices.look() == NOTICE
    metadata.tokens.append("token-2")
    assert notices.look() is None
    assert notices.look() == NOTICE


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"{}", b'{"action": "dance", "time": ""}', b'{"action": "stop"}', b"\xff"]
)
def test_what_is_no_notice(metadata: Metadata, body: bytes) -> None:
    metadata.body = body
    assert SpotNotices(metadata.url).look() is None


def test_a_service_that_does_not_answer(metadata: Metadata) -> None:
    metadata.broken = True
    assert SpotNotices(metadata.url).look() is None
    assert SpotNotices("http://127.0.0.1:1").look() is None


def test_no_proxy_is_asked(metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    metadata.body = json.dumps(NOTICE).encode()
    assert SpotNotices(metadata.url).look() == NOTICE


def test_a_notice_comes_between_the_lines_of_the_log(image: Image, metadata: Metadata) -> None:
    metadata.body = json.dumps(NOTICE).encode()
    image.environment["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = metadata.url
    image.order("echo started; while ! test -e go; do sleep 0.01; done; echo going")
    with image.start("supervise.py"), image.start("watch.py", "0", "--spot") as watching:
        assert watching.stdout is not None
        frames = read_frames(watching.stdout)
        assert {next(frames), next(frames)} == {Log(b"started\n"), Notice(**NOTICE)}
        (image.home / "go").touch()
        assert next(frames) == Log(b"going\n")
        assert isinstance(next(frames), Ended)


def test_nobody_is_asked_for_notices_of_a_machine_that_is_no_spot(image: Image, metadata: Metadata) -> None:
    image.environment["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = metadata.url
    image.order("echo done")
    image.outcome()
    with image.start("watch.py", "0") as watching:
        assert watching.stdout is not None
        assert text_of(list(read_frames(watching.stdout))) == "done\n"
    assert metadata.asked == []
