"""Looks at the scripts of component documents: is it bash, does shellcheck find an error, does a secret stand in it.

Secrets do not belong there: components cannot be changed or hidden in AWS, and go on every image. A value that looks
like one is never repeated in a message.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from typing import Literal

ADVICE = (
    "looks like a secret, which would stand in AWS for good; store it in Secrets Manager and name it as data_secret"
)
_PATIENCE = 60.0  # seconds for bash or shellcheck to read one script
_LAST_LINES = 3
_SECRET_WORD = r"(?:pass(?:word|wd|phrase)|secrets?|token|api[_-]?key|access[_-]?key|credentials?)"  # noqa: S105 - a pattern
# password_file, token_url and such name a place, and not a secret.
_PLACES = r"(?:file|path|folder|dir|name|arn|id|url|uri|ttl|seconds|env|var|type|length|manager)"
_SECRET_NAME = re.compile(rf"(?i){_SECRET_WORD}(?:[_-]?[0-9]+|[_-](?!{_PLACES})\w+)?$")
_LITERAL = re.compile(
    rf"""(?ix)
    (?<![a-z0-9]) (?P<name> [a-z0-9_-]* {_SECRET_WORD} (?:[_-] (?!{_PLACES}) [a-z0-9]+)* )
    (?: ["']? \s* [:=] \s* | (?<=\w) \s+ (?=["']?[^\s-]) )
    (?P<value> "[^"]*" | '[^']*' | [^\s"';|&)]+ )
    """
)
_SHAPES = {
    "an AWS access key": re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    "a private key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
    "a token": re.compile(
        r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|hf_[A-Za-z0-9]{30,}"
        r"|sk-[A-Za-z0-9_-]{30,}|pypi-[\w-]{40,}|AIza[\w-]{30,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+)"
    ),
    "an address with a password": re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s/:@'\"]+:[^\s/@'\"$]{2,}@"),
}
_FROM_ELSEWHERE = ("$", "`", "{{", "<", "%", "/", "./", "~", "*", "(", "...", "…")
_NO_VALUES = {"", "none", "null", "true", "false", "-", "yes", "no"}


def syntax_problems(script: str) -> Iterator[str]:
    """Yield what bash cannot read in a script, as bash says it."""
    said = subprocess.run(
        ["bash", "-n"],  # noqa: S607 - whichever bash is there
        input=script,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_PATIENCE,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    if said.returncode:
        lines = [re.sub(r"^bash: ", "", line) for line in said.stderr.strip().splitlines()[:_LAST_LINES]]
        yield f"bash cannot read it: {'; '.join(lines)}"


def shellcheck(script: str, *, severity: Literal["error", "warning", "info", "style"]) -> Iterator[str]:
    """Yield what shellcheck finds; nothing where it is not installed."""
    program = shutil.which("shellcheck")
    if program is None:
        return
    said = subprocess.run(  # noqa: S603 - an argument list, never a shell
        [program, "--norc", "--shell=bash", f"--severity={severity}", "--format=json1", "-"],
        input=script,
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        check=False,
    )
    for comment in json.loads(said.stdout)["comments"]:
        yield f"line {comment['line']} of its script: {comment['message']} (shellcheck SC{comment['code']})"


def is_secret_name(name: str) -> bool:
    """Whether a parameter is a secret going by its name, such as password or OSF_token."""
    return _SECRET_NAME.search(name) is not None


def secrets_in(texts: Iterable[str]) -> Iterator[str]:
    """Yield what looks like a secret, by its kind or by the name before it, and what to do instead."""
    for text in texts:
        for kind, shape in _SHAPES.items():
            if shape.search(text):
                yield f"{kind}: {ADVICE}"
        for found in _LITERAL.finditer(text):
            value = found["value"].strip("\"'")
            has_option = found["name"].startswith("--") or not found[0][len(found["name"]) :][:1].isspace()
            if has_option and _is_literal(value):
                yield f"the value after {found['name']}: {ADVICE}"


def _is_literal(value: str) -> bool:
    return value.lower() not in _NO_VALUES and not value.startswith(_FROM_ELSEWHERE) and len(value) > 3  # noqa: PLR2004, RUF100 - shorter ones are words like `yes`
