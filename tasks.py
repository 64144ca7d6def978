"""Every task of ramp-cloud: those of its parts, and those of the project itself. `./inv --list` shows them."""

import os
import shlex
import subprocess
import sys

from invoke import Collection, Context, Exit, Task, task

import image_builder.tasks
import infra.tasks
import runner.dask.tasks
import runner.tasks
from runner.front_door import ROOT, bring, front_door


@task(help={"only": "a test file or folder"})
@front_door
def test(context: Context, only: str = "tests") -> None:  # noqa: PT028 - a task, not a test
    """Run the tests, all of them or a part."""
    bring("dev")
    # Two processes per core, since half of them wait for machines to boot; a part is run as it is, quicker to start.
    parallel = ["-n", str(2 * (os.cpu_count() or 1)), "--dist", "loadgroup"] if only == "tests" else []
    _run(context, [sys.executable, "-m", "pytest", *parallel, only])


@task
@front_door
def check(context: Context) -> None:
    """Check format, lint, types and documents, then run the tests. This is what CI runs."""
    bring("dev")
    _run(context, [sys.executable, "-m", "ruff", "format", "--check", "."])
    _run(context, [sys.executable, "-m", "ruff", "check", "."])
    _run(context, [sys.executable, "-m", "mypy"])
    _run(context, [sys.executable, "-m", "pytest", "-q", "tests/unit/test_docs.py"])
    test(context)


@task(
    help={
        "submissions": "how many",
        "workers": "at a time",
        "rounds": "of all in turn",
        "only": "contenders, by commas",
    }
)
@front_door
def bench(
    context: Context,
    submissions: int = 60,
    workers: int = 2,
    rounds: int = 1,
    only: str = "",
    no_bytecode: bool = False,
) -> None:
    """Time an event beside a pool of ramp-test and ramp-engine 0.10.1, in turn, on this machine."""
    bring("dev")
    words = [f"--submissions={submissions}", f"--workers={workers}", f"--rounds={rounds}"]
    words += ["--no-bytecode"] * no_bytecode + (["--only", *only.split(",")] if only else [])
    _run(context, [sys.executable, "benchmarks/compare.py", *words])


@task
@front_door
def document(_: Context) -> None:
    """Write the generated parts of the documents anew: config reference, JSON Schema, README."""
    from runner.reference import documents

    for path, text in documents(ROOT).items():
        path.write_text(text, encoding="utf-8")
        print(f"Wrote {path.relative_to(ROOT)}")


@task(help={"upgrade": "take the newest versions in place of those locked now"})
@front_door
def lock(context: Context, upgrade: bool = False) -> None:
    """Compile requirements/*.txt from pyproject.toml, with hashes and without addresses. Needs uv on PATH."""
    same = ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-emit-index-url", "--no-header"]
    same += ["--quiet", *(["--upgrade"] if upgrade else [])]
    # The set of everything first, and the others in its versions, so that any can be added to any other.
    sets = {"dev": ["aws", "dask", "infra", "rehearsal", "dev"], "rehearsal": ["aws", "rehearsal"]}
    sets |= {"infra": ["aws", "infra"], "dask": ["aws", "dask"]}
    whole: list[str] = []
    for name, extras in {**sets, "aws": ["aws"], "run": []}.items():
        wanted = [word for extra in ("build", *extras) for word in ("--extra", extra)]
        target = f"requirements/{name}.txt"
        _run(context, ["uv", "pip", "compile", "pyproject.toml", *wanted, *same, *whole, "-o", target])
        whole = whole or ["-c", target]
    _run(context, ["uv", "pip", "compile", "-", "--no-annotate", *same, "-o", "requirements/uv.txt"], given="uv")


def _run(_: Context, command: list[str], given: str | None = None) -> None:
    finished = subprocess.run(command, cwd=ROOT, check=False, input=given, text=True)  # noqa: S603 - an argument list
    if finished.returncode:
        msg = f"failed: {shlex.join(command[1:])}"
        raise Exit(msg, code=1)


namespace = Collection()
for part in (runner.tasks, runner.dask.tasks, image_builder.tasks, infra.tasks, sys.modules[__name__]):
    for found in vars(part).values():
        if isinstance(found, Task):
            namespace.add_task(found)
