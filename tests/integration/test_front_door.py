"""`./inv` as a user meets it: a small project of its own, real processes, and a real uv or a stand-in for one.

Nothing here sleeps: a stand-in tells through a pipe that it was reached, and waits at another one until it may go on.
"""

import ast
import contextlib
import importlib.metadata
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
PATIENCE = 120  # seconds; only a defect makes a test wait this long
# What the small project consists of: the tool that runs tasks, and the one that installs a project.
RUN_SET = ("invoke", "hatchling")
DEV_SET = (*RUN_SET, "iniconfig")

PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "front-door-trial"
version = "1"
[tool.hatch.build]
dev-mode-dirs = ["."]
[tool.hatch.build.targets.wheel]
packages = ["trial"]
"""

TASKS = """\
import json, os, subprocess, sys
from pathlib import Path
from invoke import task
import trial

ROOT = Path(__file__).parent

@task
def show(c, text="", code=0):
    seen = {"text": text, "cwd": os.getcwd(), "prefix": sys.prefix, "trial": trial.__file__, "path": os.environ["PATH"]}
    print(json.dumps(seen))
    sys.exit(code)

@task
def hold(c):
    Path(os.environ["REACHED"]).write_text("holding\\n")
    Path(os.environ["GO_ON"]).open().readline()

@task
def need(c):
    sys.exit(subprocess.run([sys.executable, str(ROOT / "inv"), "--bring", "dev"]).returncode)

@task
def children(c):
    print(subprocess.run(["ls", "-l", "/dev/fd/"], capture_output=True, text=True).stdout)
"""

COUNTED = 'echo "$1" >> "$CALLS"'
REFUSING = f'#!/bin/sh\n[ "$1" = --version ] && exit 0\n{COUNTED}\necho "the index is closed today" >&2\nexit 9\n'
WAITING = f"""#!/bin/sh
[ "$1" = --version ] && exit 0
{COUNTED}
if [ "$1" = pip ]; then
    [ -z "$HALF_MADE" ] || mkdir "$HALF_MADE"
    echo installing > "$REACHED"
    read -r go < "$GO_ON"
fi
exec "$REAL_UV" "$@"
"""


class Pipe:
    """A named pipe, open at both ends here: so neither side has to wait for the other to open it."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._fd = os.open(path, os.O_RDWR)

    def wait(self) -> str:
        """The next line that somebody wrote into it."""
        ready, _, _ = select.select([self._fd], [], [], PATIENCE)
        assert ready, f"nobody wrote to {self.path.name}"
        return os.read(self._fd, 1000).decode().strip()

    def write(self) -> None:
        os.write(self._fd, b"go\n")

    def close(self) -> None:
        os.close(self._fd)


@dataclass
class Project:
    """A checkout with ./inv in it, and the environment that ./inv is called with."""

    root: Path
    tools: Path
    uv: Path
    environment: dict[str, str]
    reached: Pipe
    go_on: Pipe
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    def use_uv(self, script: str | None) -> None:
        """Put a stand-in on the PATH in place of uv; None: the real one."""
        place = self.tools / "uv"
        place.unlink(missing_ok=True)
        if script is None:
            place.symlink_to(self.uv)
        else:
            place.write_text(script)
            place.chmod(0o755)

    def calls(self) -> list[str]:
        """The first words of the calls that stand-ins got."""
        log = Path(self.environment["CALLS"])
        return log.read_text().split() if log.exists() else []

    def command(self, *arguments: str) -> list[str]:
        return [str(PYTHON), str(self.root / "inv"), *arguments]

    def run(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=cwd or self.root,
            env=self.environment | self.extra,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    @contextmanager
    def start(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(
            self.command(*arguments),
            cwd=self.root,
            env=self.environment | self.extra,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def change_lock(self, name: str = "run") -> None:
        with (self.root / "requirements" / f"{name}.txt").open("a") as file:
            file.write("# another version of this file\n")

    def close(self) -> None:
        self.reached.close()
        self.go_on.close()

    def leftovers(self) -> list[str]:
        return [
            path.name
            for path in (self.root / ".inv").iterdir()
            if not path.name.startswith(("uv-", "cache")) and path.suffix != ".lock"
        ]


def locked(names: tuple[str, ...]) -> str:
    """Our own lock files' entries of these packages and of what they need, which the comments there tell."""
    text = (ROOT / "requirements" / "dev.txt").read_text()
    entries = re.findall(r"^(([a-z0-9-]+)==.*\n(?: +--hash.*\n)+)((?: +#.*\n)*)", text, re.MULTILINE)
    wanted: set[str] = set()
    found = set(names)
    while found != wanted:
        wanted = found
        found = wanted | {name for _, name, needed_by in entries if wanted.intersection(needed_by.split())}
    return "".join(entry for entry, name, _ in entries if name in wanted)


def starts(program: str) -> bool:
    """Whether it is one that runs: version managers put names on the PATH with nothing behind them."""
    found = shutil.which(program)
    return found is not None and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0


def make_project(folder: Path, uv: Path) -> Project:
    root, tools = folder / "my project", folder / "tools"
    (root / "requirements").mkdir(parents=True)
    (root / "trial").mkdir()
    (root / "trial" / "__init__.py").touch()
    tools.mkdir()
    (tools / "python3").symlink_to(PYTHON)
    shutil.copy2(ROOT / "inv", root)
    shutil.copy2(ROOT / "requirements" / "uv.txt", root / "requirements")
    (root / "requirements" / "run.txt").write_text(locked(RUN_SET))
    (root / "requirements" / "dev.txt").write_text(locked(DEV_SET))
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "tasks.py").write_text(TASKS)
    reached, go_on = Pipe(folder / "reached"), Pipe(folder / "go-on")
    environment = {name: value for name, value in os.environ.items() if name not in {"VIRTUAL_ENV", "PYTHONPATH"}} | {
        "PATH": f"{tools}:/usr/bin:/bin",
        "CALLS": str(folder / "calls"),
        "REAL_UV": str(uv),
        "REACHED": str(reached.path),
        "GO_ON": str(go_on.path),
        "HALF_MADE": "",
    }
    project = Project(root, tools, uv, environment, reached, go_on)
    project.use_uv(None)
    return project


@dataclass(frozen=True)
class Fetched:
    """A project without a uv that starts, after its first use."""

    project: Project
    done: subprocess.CompletedProcess[str]

    @property
    def uv(self) -> Path:
        (fetched,) = (self.project.root / ".inv").glob("uv-*")
        return fetched


@pytest.fixture(scope="session")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fetched]:
    project = make_project(tmp_path_factory.mktemp("fetched"), Path("no-uv"))
    project.use_uv("#!/bin/sh\nexit 127\n")
    yield Fetched(project, project.run("show"))
    project.close()


@pytest.fixture(scope="session")
def uv(request: pytest.FixtureRequest) -> Path:
    """A real uv: the one on the PATH, the one that ./inv fetched for this checkout, or one that it fetches now."""
    if starts("uv"):
        return Path(str(shutil.which("uv"))).resolve()
    for ours in (ROOT / ".inv").glob("uv-*"):
        return ours
    made: Fetched = request.getfixturevalue("fetched")
    assert made.done.returncode == 0, made.done.stderr
    return made.uv


@pytest.fixture
def project(tmp_path: Path, uv: Path) -> Iterator[Project]:
    made = make_project(tmp_path, uv)
    yield made
    made.close()


@pytest.fixture
def ready(project: Project) -> Project:
    """A project whose first use is over, with a uv on the PATH that refuses everything."""
    assert project.run("show").returncode == 0
    project.use_uv(REFUSING)
    return project


def test_first_use_makes_the_environment_and_runs_the_task(project: Project, tmp_path: Path) -> None:
    done = project.run("show", "--text", "two words", "--code", "3", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    seen = json.loads(done.stdout)
    assert seen["text"] == "two words"
    assert seen["cwd"] == str(tmp_path)
    assert seen["prefix"] == str(project.venv)
    assert seen["trial"] == str(project.root / "trial" / "__init__.py")
    assert seen["path"].startswith(f"{project.venv}/bin:")
    assert done.stderr == "inv: first use: making .venv with the packages of requirements/run.txt\n"
    assert project.leftovers() == []
    # The scripts were installed under another name of the folder.
    script = subprocess.run([project.venv / "bin" / "invoke", "--version"], capture_output=True, text=True, check=True)
    assert importlib.metadata.version("invoke") in script.stdout


def test_second_use_installs_nothing_and_says_nothing(ready: Project) -> None:
    done = ready.run("show")
    assert (done.returncode, done.stderr, ready.calls()) == (0, "", [])


def test_changed_lock_file_is_installed(ready: Project) -> None:
    ready.use_uv(None)
    ready.change_lock()
    done = ready.run("show")
    assert (done.returncode, done.stderr) == (0, "inv: renewing .venv with the packages of requirements/run.txt\n")
    ready.use_uv(REFUSING)
    assert ready.run("show").stderr == ""


def test_called_through_a_link_from_elsewhere_with_no_place_for_a_cache(project: Project, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(project.root / "inv")
    foreign = {
        "VIRTUAL_ENV": str(tmp_path),
        "CONDA_PREFIX": str(tmp_path),
        "UV_SYSTEM_PYTHON": "1",
        "UV_PYTHON": "none-such",
        "PIP_REQUIRE_VIRTUALENV": "1",
        "XDG_CACHE_HOME": "/dev/null/not-a-folder",
    }
    environment = {name: value for name, value in project.environment.items() if name != "HOME"} | foreign
    done = subprocess.run(
        [link, "show"],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["prefix"] == str(project.venv)


def test_copied_checkout_does_not_run_the_code_of_the_first(ready: Project, tmp_path: Path) -> None:
    ready.use_uv(None)
    copy = tmp_path / "copy"
    shutil.copytree(ready.root, copy, symlinks=True)
    ready.root = copy
    done = ready.run("show")
    assert done.stderr.startswith("inv: renewing .venv")
    in_venv = subprocess.run(
        [copy / ".venv/bin/python", "-c", "import trial; print(trial.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert in_venv.stdout.strip() == str(copy / "trial" / "__init__.py")


def test_failed_first_install_says_why_and_leaves_nothing(project: Project) -> None:
    project.use_uv(REFUSING)
    done = project.run("show")
    assert (done.returncode, done.stdout) == (1, "")
    assert "making an environment failed (exit code 9)" in done.stderr
    assert "uv venv" in done.stderr
    assert "the index is closed today" in done.stderr
    assert "There is none yet. Next: check the network" in done.stderr
    assert not project.venv.exists()
    assert project.leftovers() == []


def test_failed_update_keeps_the_environment_of_before(ready: Project) -> None:
    lock = ready.root / "requirements" / "run.txt"
    before = lock.read_text()
    ready.change_lock()
    done = ready.run("show")
    assert done.returncode == 1
    assert "the index is closed today" in done.stderr
    assert "It is as it was before. Next:" in done.stderr
    lock.write_text(before)
    assert ready.run("show").returncode == 0
    assert ready.leftovers() == []


def test_package_that_is_not_the_locked_one_is_refused(project: Project) -> None:
    lock = project.root / "requirements" / "run.txt"
    lock.write_text(re.sub(r"sha256:[0-9a-f]{8}", "sha256:00000000", lock.read_text()))
    done = project.run("show")
    assert done.returncode == 1
    assert "installing requirements/run.txt failed" in done.stderr
    assert "hash" in done.stderr.lower()
    assert not project.venv.exists()


def test_environment_that_somebody_else_made_is_left_alone(project: Project) -> None:
    project.venv.mkdir()
    (project.venv / "mine").touch()
    done = project.run("show")
    assert done.returncode == 1
    assert "was not made by ./inv. Next: move it away" in done.stderr
    assert (project.venv / "mine").exists()


def test_killed_while_installing_then_run_again(project: Project) -> None:
    project.use_uv(WAITING)
    with project.start("show") as killed:
        assert project.reached.wait() == "installing"
        killed.kill()
        killed.wait()
    assert not project.venv.exists()
    assert project.leftovers() != []
    # Its uv lives on, and may be writing: the next one waits for that, too.
    with project.start("show") as second:
        assert second.stderr is not None
        assert "waiting for another ./inv" in second.stderr.readline()
        project.use_uv(None)
        project.go_on.write()
        out, err = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0, err
    assert json.loads(out)["prefix"] == str(project.venv)
    assert project.leftovers() == []


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """A shell ignores SIGINT in what it starts in the background, and so would everything that is started from here."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt(process: "subprocess.Popen[str]") -> str:
    """Press Ctrl-C until it is heard, and return what was printed on standard error.

    A signal that comes just before a blocking read is seen by Python only when the read returns. On a terminal uv gets
    the signal too, ends, and so ends the read; here it is sent to one process.
    """
    for _ in range(60):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=PATIENCE / 60)[1]
    pytest.fail("Ctrl-C was not heard")


@pytest.mark.usefixtures("_interruptible")
def test_interrupted_while_installing_leaves_nothing(project: Project) -> None:
    project.use_uv(WAITING)
    with project.start("show") as interrupted:
        assert project.reached.wait() == "installing"
        err = interrupt(interrupted)
    assert interrupted.returncode == 130
    assert err.endswith("inv: interrupted while installing. Next: run it again, it starts clean\n")
    assert not project.venv.exists()
    assert project.leftovers() == []


def test_two_at_once_install_once(project: Project) -> None:
    project.use_uv(WAITING)
    with project.start("show") as first:
        assert project.reached.wait() == "installing"
        with project.start("show") as second:
            assert second.stderr is not None
            assert second.stderr.readline() == "inv: waiting for another ./inv, which is installing packages\n"
            project.go_on.write()  # one for the packages, one for the project
            project.go_on.write()
            out, err = second.communicate(timeout=PATIENCE)
        assert first.wait(timeout=PATIENCE) == 0
    assert (second.returncode, err) == (0, "")
    assert json.loads(out)["prefix"] == str(project.venv)
    assert project.calls() == ["venv", "pip", "pip"]


def test_task_brings_a_set_once(ready: Project) -> None:
    ready.use_uv(None)
    first = ready.run("need")
    assert (first.returncode, first.stdout) == (0, "")
    assert first.stderr == "inv: adding the packages of requirements/dev.txt to .venv\n"
    subprocess.run([ready.venv / "bin" / "python", "-c", "import iniconfig, invoke"], check=True)
    ready.use_uv(REFUSING)
    again = ready.run("need")
    assert (again.returncode, again.stderr, ready.calls()) == (0, "", [])
    # A renewal keeps what was brought.
    ready.use_uv(None)
    ready.change_lock("dev")
    assert "requirements/dev.txt, requirements/run.txt" in ready.run("show").stderr
    subprocess.run([ready.venv / "bin" / "python", "-c", "import iniconfig"], check=True)


def test_set_that_does_not_exist_is_wrong_use(project: Project) -> None:
    done = project.run("--bring", "devel")
    assert (done.returncode, done.stdout) == (2, "")
    assert "SET one of: dev, run" in done.stderr


def test_failed_bringing_leaves_the_environment_as_it_was(ready: Project) -> None:
    done = ready.run("need")
    assert done.returncode == 1
    assert "installing requirements/dev.txt failed" in done.stderr
    assert "It is as it was before. Next:" in done.stderr
    assert (ready.run("show").returncode, ready.leftovers()) == (0, [])


def test_killed_while_bringing_is_undone(ready: Project) -> None:
    (packages,) = ready.venv.glob("lib/python*/site-packages")
    before = {path.name for path in packages.iterdir()}
    ready.use_uv(WAITING)
    ready.extra = {"HALF_MADE": str(packages / "half_made")}
    with ready.start("--bring", "dev") as killed:
        assert ready.reached.wait() == "installing"
        killed.kill()
        killed.wait()
    assert (packages / "half_made").exists()
    with ready.start("show") as following:
        assert following.stderr is not None
        assert "waiting for another ./inv" in following.stderr.readline()
        ready.go_on.write()
        _, err = following.communicate(timeout=PATIENCE)
    assert following.returncode == 0, err
    assert {path.name for path in packages.iterdir()} == before
    assert ready.leftovers() == []


def test_environment_in_use_is_not_replaced(ready: Project) -> None:
    with ready.start("hold") as holding:
        assert ready.reached.wait() == "holding"
        ready.change_lock()
        done = ready.run("show")
        assert done.returncode == 0, done.stderr
        assert "out of date" in done.stderr
        assert "in use: going on with the packages it has" in done.stderr
        assert ready.calls() == []
        brought = ready.run("need")
        assert brought.returncode == 1
        assert "cannot add requirements/dev.txt" in brought.stderr
        assert "Next: let every other ./inv end" in brought.stderr
        ready.go_on.write()
        assert holding.wait(timeout=PATIENCE) == 0
    ready.use_uv(None)
    assert ready.run("show").stderr.startswith("inv: renewing .venv")


def test_children_of_a_task_do_not_keep_the_environment_in_use(ready: Project) -> None:
    assert "use.lock" not in ready.run("children").stdout


def test_without_a_uv_that_starts_the_pinned_one_is_fetched(fetched: Fetched) -> None:
    assert fetched.done.returncode == 0, fetched.done.stderr
    assert "no uv on the PATH: fetching it for this checkout" in fetched.done.stderr
    pinned = (fetched.project.root / "requirements" / "uv.txt").read_text().split()[0]
    assert fetched.uv.name == pinned.replace("==", "-")
    assert fetched.project.leftovers() == []
    # It is kept for what a task brings later.
    assert fetched.project.run("need").stderr == "inv: adding the packages of requirements/dev.txt to .venv\n"


def test_index_settings_of_pip_reach_uv(project: Project, tmp_path: Path) -> None:
    settings = tmp_path / "pip.conf"
    settings.write_text(
        "[global]\nindex-url = https://mirror.example/simple\nextra-index-url = https://a.example https://b.example\n"
    )
    project.extra = {"PIP_CONFIG_FILE": str(settings), "PIP_FIND_LINKS": f"{tmp_path} {tmp_path}/not-there"}
    project.use_uv(
        '#!/bin/sh\n[ "$1" = --version ] && exit 0\n'
        'echo "<$UV_DEFAULT_INDEX> <$UV_EXTRA_INDEX_URL> <$UV_FIND_LINKS>"\nexit 9\n'
    )
    done = project.run("show")
    assert f"<https://mirror.example/simple> <https://a.example https://b.example> <{tmp_path}>" in done.stderr
    project.extra["UV_DEFAULT_INDEX"] = "https://own.example/simple"
    assert "<https://own.example/simple>" in project.run("show").stderr


def test_python_without_venv_names_what_to_install(project: Project, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "ensurepip.py").write_text("raise ImportError('no ensurepip here')\n")
    project.extra = {"PYTHONPATH": str(broken)}
    project.use_uv("#!/bin/sh\nexit 127\n")
    done = project.run("show")
    assert done.returncode == 1
    assert "no ensurepip here" in done.stderr
    release = Path("/etc/os-release")
    on_debian = release.exists() and "debian" in release.read_text()
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    assert (f"Next: apt-get install {package}" if on_debian else "Next: install the parts of Python") in done.stderr
    assert not project.venv.exists()


def test_older_python_reads_the_script_and_is_told_which_one_is_needed(project: Project) -> None:
    ast.parse((ROOT / "inv").read_text(), feature_version=(3, 6))
    for name, code in (("python3.14", 127), ("python3.13", 0), ("python3.12", 0)):
        (project.tools / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (project.tools / name).chmod(0o755)
    arguments = ["./inv", "show", "--text", "a b"]
    as_older = (
        f"import runpy, sys; sys.version_info = (3, 8, 18, 'final', 0); sys.argv[:] = {arguments}; "
        "runpy.run_path('./inv', run_name='__main__')"
    )
    older = [f"python3.{minor}" for minor in range(6, 11) if starts(f"python3.{minor}")]
    olders = [[str(PYTHON), "-c", as_older], *([python, *arguments] for python in older)]
    for command in olders:
        done = subprocess.run(
            [shutil.which(command[0]) or command[0], *command[1:]],
            cwd=project.root,
            env=project.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(
            r"inv: needs Python 3\.11 or newer, and this is 3\.\d+\.\d+\. "
            r"Next: python3\.13 \./inv show --text 'a b'\n",
            done.stderr,
        ), done.stderr
    assert not project.venv.exists()
