"""The part of a log that tells a participant what went wrong."""

from pathlib import Path

_TAIL = 200_000  # bytes; a log may be long, what went wrong stands at its end
_LINES = 30
_START = "Traceback (most recent call last)"


def traceback_in_log(log: Path) -> str:
    """Return the traceback in a log, or its last lines when it has none; empty when there is no log."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - _TAIL, 0))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    start = text.find(_START)
    if start < 0:
        return "\n".join(text.splitlines()[-_LINES:]).strip()
    # ramp-test prints every line of a traceback with an empty one after it.
    return "\n".join(line for line in text[start:].splitlines() if line.strip())
