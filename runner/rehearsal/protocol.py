"""What a command that a machine is given is for: the one place that knows the runner's commands from outside."""

import re
import shlex
from enum import StrEnum

_ENDS = frozenset(";&|(){}<>")  # what a word is made of that ends a command in a shell
_EXTRACT = re.compile(r"-[A-Za-z]*x[A-Za-z]*|--extract")
_CREATE = re.compile(r"-[A-Za-z]*c[A-Za-z]*|--create")
_RUN = re.compile(r"\.ramp-cloud/runs/(\w+)")


class Errand(StrEnum):
    """What a command is for."""

    PROBE = "probe"  # a login shell looks for ramp-test
    UPLOAD = "upload"  # tar -x reads an archive from its input
    SUPERVISE = "supervise"  # supervise.py starts a training
    WATCH = "watch"  # watch.py tells how it goes
    FETCH = "fetch"  # tar -c writes an archive to its output
    OTHER = "other"


def errand_of(command: str) -> Errand:
    """Return what a command line is for, also when it is wrapped in `sh -c '...'` or `setsid`."""
    words = words_of(command)
    if any(word.endswith("supervise.py") for word in words):
        return Errand.SUPERVISE
    if any(word.endswith("watch.py") for word in words):
        return Errand.WATCH
    for position, word in enumerate(words):
        if word == "tar" or word.endswith("/tar"):
            for option in words[position + 1 :]:
                if set(option) <= _ENDS:
                    break
                if _EXTRACT.fullmatch(option):
                    return Errand.UPLOAD
                if _CREATE.fullmatch(option):
                    return Errand.FETCH
    return Errand.PROBE if "ramp-test" in words else Errand.OTHER


def run_of(command: str) -> str:
    """Return the id of the run whose folder a command names, "" when it names none."""
    found = _RUN.search(command)
    return found[1] if found else ""


def words_of(command: str) -> list[str]:
    """Split a command line into its words, and words that are command lines themselves into theirs."""
    reader = shlex.shlex(command, posix=True, punctuation_chars=True)  # so that ; and && are words
    reader.whitespace_split = True
    reader.commenters = ""
    try:
        words = list(reader)
    except ValueError:
        return command.split()
    if words == [command]:
        return words
    return [inner for word in words for inner in (words_of(word) if re.search(r"\s", word) else [word])]
