"""Pulumi's real engine over the emulated `aws` provider: one stack of one program, its state in a folder of its own."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CODE = Path(__file__).parents[2]
MISSING = "no pulumi on PATH"
_LIMIT = 300.0  # seconds that any command may take, on a machine that is busy with other things
_PLUGIN = "pulumi-resource-aws"
# The language host asks pip which packages have plugins, and a folder made by uv has no pip.
_PYTHON = """\
#!/bin/sh
if [ "$1 $2 $3" = "-m pip list" ]; then exec '{python}' -c '{listing}'; fi
exec '{python}' "$@"
"""
_LISTING = (
    "import importlib.metadata as m, json; "
    'print(json.dumps([{"name": n, "version": m.version(n)} for n in ("pulumi", "pulumi-aws")]))'
)


def pulumi() -> str | None:
    """Return the path of the CLI, None where there is none or where it cannot run Python programs."""
    found = shutil.which("pulumi")
    return found if found and shutil.which("pulumi-language-python") else None


class EngineFailed(Exception):
    """A command of pulumi failed; the message is what it said."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What was done to one resource: op is create, update, delete, replace, same, refresh, ..."""

    op: str
    urn: str
    changed: tuple[str, ...] = ()

    @property
    def type(self) -> str:
        """Its type, such as aws:s3/bucket:Bucket."""
        return self.urn.split("::")[2].rpartition("$")[2]

    @property
    def name(self) -> str:
        """Its logical name."""
        return self.urn.rpartition("::")[2]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command did."""

    steps: tuple[Step, ...]
    said: str

    @property
    def counts(self) -> Counter[str]:
        """How many resources of AWS had each op, those left alone aside."""
        return Counter(step.op for step in self.steps if step.op != "same" and step.type.startswith("aws:"))

    def of(self, kind: str) -> list[Step]:
        """Return the steps of one type of resource; the end of its name will do."""
        return [step for step in self.steps if step.type.endswith(kind)]


class Engine:
    """Runs pulumi for one stack.

    Args:
        folder: an empty one, for state, plugins and scripts.
        environment: AWS_* variables that lead to the emulated AWS.
        program: folder with a Pulumi.yaml.
        stack: its name.
        config: of the stack, such as {"ramp-cloud:event": "..."}.
        variables: further ones for pulumi and the program.
    """

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        program: Path,
        *,
        stack: str = "test",
        config: Mapping[str, str] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self._folder = folder
        self._program = program
        self._stack = stack
        self._config = dict(config or {})
        self._variables = {**environment, **(variables or {})}
        self.log = folder / "events.json"

    @property
    def state(self) -> Path:
        """The folder of the backend."""
        return self._folder / "state"

    def furnish(self) -> None:
        """Make backend and plugin."""
        write_plugin(self._folder / "bin")
        write_python(self._folder / "bin")
        self.state.mkdir(parents=True)
        (self._folder / "home").mkdir()

    @property
    def program(self) -> Path:
        """The folder of Pulumi.yaml."""
        return self._program

    @property
    def state_file(self) -> Path:
        """Where the stack is kept, step by step."""
        return next((self._folder / "state").rglob(f"stacks/*/{self._stack}.json"))

    def prepare(self) -> None:
        """Make backend, plugin and stack."""
        self.furnish()
        self.run("stack", "init", self._stack)
        for name, value in self._config.items():
            self.configure(name, value)

    def configure(self, name: str, value: str, *, secret: bool = False) -> None:
        """Set a value of the stack's config."""
        self.run("config", "set", *(["--secret"] if secret else ["--plaintext"]), name, value)

    def up(self, *options: str) -> Outcome:
        """Bring everything up, preview left out."""
        return self._change("up", "--yes", "--skip-preview", *options)

    def preview(self, *options: str) -> Outcome:
        """Say what `up` would do."""
        return self._change("preview", *options)

    def refresh(self, *options: str) -> Outcome:
        """Look at what there is."""
        return self._change("refresh", "--yes", "--skip-preview", *options)

    def destroy(self, *options: str) -> Outcome:
        """Take everything away."""
        return self._change("destroy", "--yes", "--skip-preview", *options)

    def export(self) -> dict[str, Any]:
        """Return the stack's state as it is kept: secrets encrypted."""
        return dict(json.loads(self.run("stack", "export")))

    def stack_outputs(self) -> dict[str, Any]:
        """Return what the program exports."""
        return dict(json.loads(self.run("stack", "output", "--json", "--show-secrets")))

    def run(self, *arguments: str) -> str:
        """Run `pulumi` with these and return its standard output.

        Raises:
            EngineFailed: it failed; the message is all that it said.
        """
        done = self._pulumi(*arguments)
        if done.returncode:
            raise EngineFailed(done.stdout + done.stderr)
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        """Variables of every command, for those who run pulumi themselves."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "PULUMI_"))}
        folders = [self._folder / "bin", Path(sys.executable).parent]
        return {
            **kept,
            **self._variables,
            "PATH": os.pathsep.join([*map(str, folders), kept.get("PATH", "")]),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(self._program), str(CODE), kept.get("PYTHONPATH")])),
            "PULUMI_BACKEND_URL": f"file://{self.state}",
            "PULUMI_HOME": str(self._folder / "home"),
            "PULUMI_CONFIG_PASSPHRASE": "a passphrase",
            "PULUMI_SKIP_UPDATE_CHECK": "1",
            "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "1",
            "PULUMI_IGNORE_AMBIENT_PLUGINS": "0",
            "PULUMI_DEBUG_COMMANDS": "1",  # for --event-log
            "PULUMI_PYTHON_CMD": str(self._folder / "bin" / "python"),
        }

    def _change(self, command: str, *options: str) -> Outcome:
        self.log.unlink(missing_ok=True)
        done = self._pulumi(command, "--event-log", str(self.log), *options)
        said = done.stdout + done.stderr
        if done.returncode:
            raise EngineFailed(said)
        return Outcome(steps=tuple(self.steps()), said=said)

    def steps(self) -> list[Step]:
        """Return what the latest command did, or tried before it failed."""
        found = []
        for line in self.log.read_text().splitlines() if self.log.exists() else ():
            values = json.loads(line)
            entry = values.get("resOutputsEvent") or values.get("resourcePreEvent")
            is_preview = "resourcePreEvent" in values
            if entry is None:
                continue
            metadata = entry["metadata"]
            found.append(
                (is_preview, Step(op=metadata["op"], urn=metadata["urn"], changed=tuple(metadata.get("diffs") or ())))
            )
        # Each step is announced before and told after it was done; a preview announces only.
        told = {(step.op, step.urn) for is_preview, step in found if not is_preview}
        steps = [step for is_preview, step in found if not is_preview]
        return steps + [step for is_preview, step in found if is_preview and (step.op, step.urn) not in told]

    def _pulumi(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["pulumi", *arguments, "--non-interactive", "--color", "never", "--cwd", str(self._program)]
        command += ["--stack", self._stack] if arguments[:2] != ("stack", "init") else []
        environment = self.environment
        executable = shutil.which("pulumi", path=environment["PATH"]) or "pulumi"
        return subprocess.run(
            [executable, *command[1:]],
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_LIMIT,
            check=False,
        )


def write_plugin(folder: Path) -> None:
    """Write the program that the engine finds on PATH as the `aws` provider."""
    code, python = shlex.quote(str(CODE)), shlex.quote(sys.executable)
    _write(folder / _PLUGIN, f"#!/bin/sh\nPYTHONPATH={code} exec {python} -W ignore -P -m tests.infra.provider\n")


def write_python(folder: Path) -> None:
    """Write a `python` that runs programs as ours does, and answers what the language host asks of pip."""
    _write(folder / "python", _PYTHON.format(python=sys.executable, listing=_LISTING))


def copy_project(folder: Path) -> Path:
    """Make a folder that is this project to pulumi: the same Pulumi.yaml and code, stacks' settings of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(CODE / "Pulumi.yaml", folder / "Pulumi.yaml")
    for name in ("infra", "runner", "image_builder"):
        (folder / name).symlink_to(CODE / name)
    write_python(folder / ".venv" / "bin")
    return folder


def clone_project(folder: Path) -> Path:
    """Make a folder that is this project as a clone of it is, tasks and all, with a `.venv` that runs as we do."""
    folder.mkdir(parents=True)
    for name in ("Pulumi.yaml", "tasks.py"):
        shutil.copy(CODE / name, folder / name)
    for name in ("infra", "runner", "image_builder"):
        shutil.copytree(CODE / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    write_python(folder / ".venv" / "bin")
    return folder


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
