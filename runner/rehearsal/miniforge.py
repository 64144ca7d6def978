"""Miniforge on a machine: its installer and `conda`, stand-ins that install nothing and say so."""

import argparse
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from runner.errors import ConfigError
from runner.rehearsal.environments import (
    MISSING,
    add_packages,
    complain,
    make_environment,
    package_name,
    packages,
    say,
    write_program,
)
from runner.yaml_lines import read_yaml

VERSION = "25.3.1"
_SCRIPTS = Path(__file__).parent / "stand_ins"
_INSTALLING = ("create", "install", "env create", "env update")
_INIT = "# >>> conda initialize >>>"


def install(words: Sequence[str]) -> int:
    """Do as Miniforge's installer does: -b, -p PREFIX, -u to install over an older one, -f."""
    parser = argparse.ArgumentParser(prog="Miniforge3")
    parser.add_argument("-p", type=Path, default=Path.home() / "miniforge3")
    for option in "bufksmct":
        parser.add_argument(f"-{option}", action="store_true")
    asked = parser.parse_args(words)
    if not asked.b:
        complain("ERROR: a rehearsal cannot be asked; give -b")
        return 1
    prefix = Path(os.path.abspath(asked.p))  # noqa: PTH100 - a link in it stays one
    if prefix.exists() and not asked.u and not asked.f:
        complain(
            f"ERROR: File or directory already exists: '{prefix}'\n"
            "If you want to update an existing installation, use the -u option."
        )
        return 1
    say(f"PREFIX={prefix}\nUnpacking payload ... a rehearsal installs no packages")
    make_environment(prefix)
    for folder in ("conda-meta", "envs", "condabin", "etc/profile.d"):
        (prefix / folder).mkdir(parents=True, exist_ok=True)
    for name in ("bin/conda", "bin/mamba", "condabin/conda", "condabin/mamba"):
        write_program(prefix / name, "pip", prefix, "conda")
    (prefix / "conda-meta" / "history").touch()
    hook = (_SCRIPTS / "conda.sh").read_text().replace("@ROOT@", str(prefix))
    (prefix / "etc" / "profile.d" / "conda.sh").write_text(hook)
    (prefix / "bin" / "activate").write_text(
        f'. {shlex.quote(f"{prefix}/etc/profile.d/conda.sh")}\nconda activate "${{1:-base}}"\n'
    )
    say("installation finished.")
    return 0


def conda(root: Path, words: Sequence[str]) -> int:
    """Do as conda does. ``root`` is where it is installed."""
    command, rest = (words[0], list(words[1:])) if words else ("--version", [])
    if command == "env" and rest:
        command, rest = f"env {rest[0]}", rest[1:]
    if command == "run":
        return _run(root, rest)
    asked, names = _parse(rest)
    prefix = _prefix(root, asked)
    do: dict[str, Callable[[], int | None]] = {
        "--version": lambda: say(f"conda {VERSION}"),
        "-V": lambda: say(f"conda {VERSION}"),
        "shell.bash": lambda: say((root / "etc" / "profile.d" / "conda.sh").read_text()),
        "shell.posix": lambda: say((root / "etc" / "profile.d" / "conda.sh").read_text()),
        "info": lambda: _info(root, asked),
        "env list": lambda: _environments(root, asked),
        "env remove": lambda: shutil.rmtree(prefix, ignore_errors=True),
        "init": lambda: _init(root),
        "list": lambda: _list(prefix, asked),
        **{name: lambda: _install(command, prefix, asked, names) for name in _INSTALLING},
    }
    if command not in do:
        say(f"conda {shlex.join(words)}: nothing is done, a rehearsal installs no packages")
        return 0
    return do[command]() or 0


def _parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="conda", add_help=False, allow_abbrev=False)
    parser.add_argument("-n", "--name", default="")
    parser.add_argument("-p", "--prefix", default="")
    parser.add_argument("-f", "--file", action="append", default=[])
    parser.add_argument("-c", "--channel", action="append")
    parser.add_argument("--solver")
    for option in ("--json", "--base", "--envs"):
        parser.add_argument(option, action="store_true")
    asked, left = parser.parse_known_args(words)
    return asked, [word for word in left if not word.startswith("-")]


def _prefix(root: Path, asked: argparse.Namespace) -> Path:
    if asked.prefix:
        return Path(os.path.abspath(asked.prefix))  # noqa: PTH100 - a link in it stays one
    if asked.name:
        return root if asked.name == "base" else root / "envs" / asked.name
    return Path(os.environ.get("CONDA_PREFIX") or root)


def _install(command: str, prefix: Path, asked: argparse.Namespace, names: list[str]) -> int:
    wanted = [package_name(name) for name in names]
    is_env = command.startswith("env")
    for file in map(Path, asked.file or (["environment.yml"] if is_env else [])):
        try:
            data = {"dependencies": file.read_text().splitlines()} if file.suffix == ".txt" else read_yaml(file).data
        except (FileNotFoundError, ConfigError) as error:
            if file.exists():
                complain(f"CondaError: {error}")
            else:
                complain(f"EnvironmentFileNotFound: '{file.resolve()}' file not found")
            return 1
        wanted += list(_dependencies(data))
        if is_env and not asked.name and not asked.prefix and data.get("name"):
            prefix = _named_in_file(prefix, str(data["name"]))
    refusal = _refusal(command, prefix, wanted)
    if refusal:
        complain(refusal)
        return 1
    make_environment(prefix)
    (prefix / "conda-meta").mkdir(exist_ok=True)
    (prefix / "conda-meta" / "history").touch()
    if wanted:
        add_packages(prefix, wanted)
    say(f"Would install {' '.join(wanted) or 'nothing'} in {prefix}: a rehearsal installs no packages")
    return 0


def _named_in_file(active: Path, name: str) -> Path:
    root = active.parents[1] if active.parent.name == "envs" else active
    return root if name == "base" else root / "envs" / name


def _refusal(command: str, prefix: Path, wanted: list[str]) -> str:
    is_there = (prefix / "bin" / "python").exists()
    if command == "env create" and is_there:
        return f"CondaValueError: prefix already exists: {prefix}"
    if command == "install" and not is_there:
        return f"EnvironmentLocationNotFound: Not a conda environment: {prefix}"
    if MISSING in wanted:
        return (
            f"PackagesNotFoundError: The following packages are not available from current channels:\n\n  - {MISSING}"
        )
    return ""


def _dependencies(data: dict[str, Any]) -> Iterator[str]:
    for entry in data.get("dependencies") or ():
        if isinstance(entry, dict):
            yield from (package_name(str(name)) for name in entry.get("pip") or ())
        elif str(entry).strip() and not str(entry).startswith("#"):
            yield package_name(str(entry).strip())


def _run(root: Path, words: list[str]) -> int:
    own: list[str] = []
    while words and words[0].startswith("-"):
        own.append(words.pop(0))
        if own[-1] in ("-n", "--name", "-p", "--prefix", "--cwd") and words:
            own.append(words.pop(0))
    prefix = _prefix(root, _parse(own)[0])
    if not (prefix / "bin" / "python").exists():
        complain(f"EnvironmentLocationNotFound: Not a conda environment: {prefix}")
        return 1
    if "--cwd" in own:
        os.chdir(own[own.index("--cwd") + 1])
    path = os.pathsep.join([str(prefix / "bin"), os.environ.get("PATH", "")])
    os.environ |= {"PATH": path, "CONDA_PREFIX": str(prefix), "CONDA_DEFAULT_ENV": prefix.name}
    sys.stdout.flush()
    program = shutil.which(words[0], path=path) if words else None
    if program is None:
        complain(f"conda run: {words[0] if words else 'no command'}: command not found")
        return 127
    return os.execv(program, [program, *words[1:]])  # noqa: S606 - a command that the machine's user gave, no shell


def _all(root: Path) -> list[Path]:
    return [root, *sorted(path.parents[1] for path in (root / "envs").glob("*/bin/python"))]


def _info(root: Path, asked: argparse.Namespace) -> None:
    if asked.base:
        say(str(root))
    elif asked.envs:
        _environments(root, asked)
    elif asked.json:
        facts = {
            "conda_version": VERSION,
            "root_prefix": str(root),
            "conda_prefix": str(root),
            "active_prefix": os.environ.get("CONDA_PREFIX"),
            "envs": [str(path) for path in _all(root)],
            "envs_dirs": [str(root / "envs")],
            "platform": "linux-64",
        }
        say(json.dumps(facts, indent=2))
    else:
        say(f"     active environment : {os.environ.get('CONDA_DEFAULT_ENV')}")
        say(
            f"          conda version : {VERSION}, a rehearsal's stand-in\n       base environment : {root}  (writable)"
        )


def _environments(root: Path, asked: argparse.Namespace) -> None:
    found = _all(root)
    if asked.json:
        say(json.dumps({"envs": [str(path) for path in found]}))
        return
    say("# conda environments:\n#")
    for path in found:
        say(f"{'base' if path == root else path.name:<20} {path}")


def _list(prefix: Path, asked: argparse.Namespace) -> int:
    if not (prefix / "bin" / "python").exists():
        complain(f"EnvironmentLocationNotFound: Not a conda environment: {prefix}")
        return 1
    if asked.json:
        say(json.dumps([{"name": name, "version": version, "channel": "pypi"} for name, version in packages()]))
        return 0
    say(f"# packages in environment at {prefix}:\n#")
    for name, version in packages():
        say(f"{name:<28} {version:<14} pypi_0  pypi")
    return 0


def _init(root: Path) -> None:
    file = Path.home() / ".bashrc"
    text = file.read_text() if file.exists() else ""
    if _INIT not in text:
        hook = shlex.quote(f"{root}/etc/profile.d/conda.sh")
        file.write_text(f"{text}{_INIT}\n. {hook}\nconda activate base\n# <<< conda initialize <<<\n")
