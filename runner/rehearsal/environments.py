"""pip and venv on a machine: stand-ins that install nothing and say so. Run by the machine's programs.

    python -m runner.rehearsal.environments pip|venv|ensurepip|conda|miniforge PREFIX ARGUMENTS

The Python of an environment is the image's, and so are its other programs once a package that brings them is named.
"""

import importlib.metadata
import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

MISSING = "no-such-package"
# Options of pip whose value is no package.
_VALUED = re.compile(
    r"-[cift]|--(constraint|index-url|extra-index-url|find-links|target|root|prefix|log|cache-dir|timeout|retries|"
    r"platform|python-version|implementation|abi|progress-bar|report|proxy|cert|trusted-host|upgrade-strategy|"
    r"config-settings|no-binary|only-binary|exists-action|python)"
)
# Programs that an environment has only when the package that brings them was asked for.
_BROUGHT = {"ramp": "ramp-workflow", "mprof": "memory-profiler"}
_OWN = ("python", "pip", "conda", "mamba", "activate", "deactivate", "Activate")
_ACTIVATE = """# To be read by a shell.
VIRTUAL_ENV={prefix}
PATH="$VIRTUAL_ENV/bin:$PATH"
export VIRTUAL_ENV PATH
"""


def make_environment(prefix: Path) -> None:
    """Make an environment that has Python and pip, or complete one that is there."""
    binaries = prefix / "bin"
    binaries.mkdir(parents=True, exist_ok=True)
    write_program(binaries / "python", "python3", prefix)
    write_program(binaries / "pip", "pip", prefix)
    for name, leads_to in (("python3", "python"), ("pip3", "pip")):
        if not (binaries / name).is_symlink():
            (binaries / name).symlink_to(leads_to)


def write_program(path: Path, stand_in: str, prefix: Path, tool: str = "pip") -> None:
    """Write a program of an environment that leads to the machine's stand-in."""
    path.unlink(missing_ok=True)
    path.write_text(
        f"#!/bin/sh\nstand_in_prefix={shlex.quote(str(prefix))} stand_in_tool={tool}\n"
        f'export stand_in_prefix stand_in_tool\nexec "${{RAMP_CLOUD_ROOT:?}}/../stand-ins/{stand_in}" "$@"\n'
    )
    path.chmod(0o755)


def add_packages(prefix: Path | None, names: Sequence[str]) -> list[str]:
    """Bring what packages bring to an environment (to none: nothing), and return those that cannot be found."""
    missing = [name for name in names if name == MISSING]
    if prefix is None or missing:
        return missing
    for program in _image_programs():
        needed = next((package for start, package in _BROUGHT.items() if program.name.startswith(start)), None)
        link = prefix / "bin" / program.name
        if (needed is None or needed in names) and not link.is_symlink() and not link.exists():
            link.symlink_to(program)
    return missing


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(text + "\n")


def complain(text: str) -> None:
    """Print a line where errors go."""
    sys.stdout.flush()
    sys.stderr.write(text + "\n")


def package_name(requirement: str) -> str:
    """Return the normal form of a package's name in a requirement, an address or a path."""
    text = requirement.split("#egg=")[-1] if "#egg=" in requirement else requirement
    if re.match(r"(git\+)?\w+://|git\+|[./]", text):
        text = text.rstrip("/").rpartition("/")[2].split("@")[0].removesuffix(".git")
    text = re.split(r"[\s<>=!~;\[@]", text.rpartition("::")[2], maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", text).lower()


def read_requirements(path: Path) -> Iterator[str]:
    """Yield the names in a requirements file and in those that it names."""
    for line in path.read_text().splitlines():
        words = line.split("#")[0].split() if not line.strip().startswith("#") else []
        if words and words[0] in ("-r", "--requirement"):
            yield from read_requirements(path.parent / words[1])
        elif words and (words[0] in ("-e", "--editable") or not words[0].startswith("-")):
            yield package_name(line.strip().removeprefix("--editable").removeprefix("-e").strip())


def packages() -> list[tuple[str, str]]:
    """Return name and version of what is really there, sorted."""
    found = {package_name(known.name): known.version for known in importlib.metadata.distributions() if known.name}
    return sorted(found.items())


def pip(prefix: Path | None, words: Sequence[str]) -> int:
    """Do as pip does."""
    command = next((word for word in words if not word.startswith("-")), "")
    if "--version" in words or "-V" in words:
        say(f"pip 25.0 from a rehearsal (python {sys.version.split()[0]})")
    elif command in ("install", "download", "wheel"):
        return _install(prefix, words[words.index(command) + 1 :])
    elif command in ("freeze", "list"):
        _list(command, words)
    elif command == "show":
        return _show(words[words.index(command) + 1 :])
    elif command == "check":
        say("No broken requirements found.")
    else:
        say(f"pip {shlex.join(words)}: nothing is done, a rehearsal installs no packages")
    return 0


def _install(prefix: Path | None, words: Sequence[str]) -> int:
    try:
        names = list(_asked_for(words))
    except FileNotFoundError as error:
        complain(f"ERROR: Could not open requirements file: [Errno 2] No such file or directory: '{error.filename}'")
        return 1
    for name in add_packages(prefix, names):
        complain(f"ERROR: Could not find a version that satisfies the requirement {name} (from versions: none)")
        complain(f"ERROR: No matching distribution found for {name}")
        return 1
    say(f"Would install {' '.join(names) or 'nothing'}: a rehearsal installs no packages")
    return 0


def _asked_for(words: Iterable[str]) -> Iterator[str]:
    left = iter(words)
    for word in left:
        if word in ("-r", "--requirement"):
            yield from read_requirements(Path(next(left, "")))
        elif word.startswith("--requirement="):
            yield from read_requirements(Path(word.partition("=")[2]))
        elif _VALUED.fullmatch(word):
            next(left, "")
        elif not word.startswith("-"):
            yield package_name(word)


def _list(command: str, words: Sequence[str]) -> None:
    if any("json" in word for word in words):
        say(json.dumps([{"name": name, "version": version} for name, version in packages()]))
        return
    as_freeze = command == "freeze" or any("freeze" in word for word in words)
    for name, version in packages():
        say(f"{name}=={version}" if as_freeze else f"{name:<30} {version}")


def _show(names: Iterable[str]) -> int:
    known = dict(packages())
    asked = [package_name(name) for name in names if not name.startswith("-")]
    for name in asked:
        if name not in known:
            complain(f"WARNING: Package(s) not found: {name}")
            return 1
        say(f"Name: {name}\nVersion: {known[name]}")
    return 0


def venv(prefix: Path | None, words: Sequence[str]) -> int:
    """Do as `python -m venv` does. ``prefix`` is the environment whose Python was asked."""
    del prefix
    folders = [word for word in words if not word.startswith("-")]
    if not folders:
        complain("usage: venv [-h] ENV_DIR [ENV_DIR ...]")
        return 2
    for name in folders:
        folder = Path(os.path.abspath(name))  # noqa: PTH100 - a link in it stays one
        make_environment(folder)
        (folder / "pyvenv.cfg").write_text("home = a rehearsal's image\n")
        (folder / "bin" / "activate").write_text(_ACTIVATE.format(prefix=shlex.quote(str(folder))))
    return 0


def _image_programs() -> Iterator[Path]:
    """Yield the programs of the image, but for those that every environment has itself."""
    machine = json.loads((Path(os.environ["RAMP_CLOUD_ROOT"]).parent / "machine.json").read_text())
    for folder in map(Path, machine["image_path"]):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if not path.name.startswith(_OWN) and path.is_file() and os.access(path, os.X_OK):
                yield path


def main() -> int:
    """Be the program that the first argument names, in the environment of the second; return the exit code."""
    tool, given, words = sys.argv[1], sys.argv[2], sys.argv[3:]
    prefix = Path(given) if given else None
    if tool == "pip":
        return pip(prefix, words)
    if tool == "venv":
        return venv(prefix, words)
    if tool == "ensurepip":
        return 0
    from runner.rehearsal import miniforge

    return miniforge.install(words) if tool == "miniforge" else miniforge.conda(prefix or Path(), words)


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)  # it led to this module, and means nothing to what is started from here
    sys.exit(main())
