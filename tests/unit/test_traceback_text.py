"""The part of a log that a participant is shown."""

from pathlib import Path

import pytest

from runner.traceback_text import traceback_in_log

TRACEBACK = """\
Traceback (most recent call last):
  File "classifier.py", line 3, in fit
    1 / 0
ZeroDivisionError: division by zero"""


def log(folder: Path, content: str | bytes) -> Path:
    path = folder / "log"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_no_log(tmp_path: Path) -> None:
    assert traceback_in_log(tmp_path / "log") == ""


@pytest.mark.parametrize("content", ["", "\n\n", "   \n"])
def test_empty_log(tmp_path: Path, content: str) -> None:
    assert traceback_in_log(log(tmp_path, content)) == ""


def test_from_the_traceback_on(tmp_path: Path) -> None:
    assert traceback_in_log(log(tmp_path, f"Training ...\nfold 0\n{TRACEBACK}\n")) == TRACEBACK


def test_empty_lines_that_ramp_test_adds_are_dropped(tmp_path: Path) -> None:
    assert traceback_in_log(log(tmp_path, TRACEBACK.replace("\n", "\n\n"))) == TRACEBACK


def test_chained_tracebacks_are_whole(tmp_path: Path) -> None:
    both = f"{TRACEBACK}\nDuring handling of the above exception, another exception occurred:\n{TRACEBACK}"
    assert traceback_in_log(log(tmp_path, f"x\n{both}")) == both


def test_without_a_traceback_the_last_lines(tmp_path: Path) -> None:
    text = traceback_in_log(log(tmp_path, "".join(f"line {number}\n" for number in range(100))))
    assert text.splitlines() == [f"line {number}" for number in range(70, 100)]


def test_end_of_a_long_log(tmp_path: Path) -> None:
    text = traceback_in_log(log(tmp_path, "x" * 1_000_000 + "\n" + TRACEBACK))
    assert text == TRACEBACK


def test_what_is_not_text(tmp_path: Path) -> None:
    assert traceback_in_log(log(tmp_path, b"\xff\xfe\x00 progress \xe2\x96")) == "\ufffd\ufffd\x00 progress \ufffd"
