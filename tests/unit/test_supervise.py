"""The log keeps its beginning and its end, whatever is printed and however it is cut into pieces."""

import ast
import io
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import fence, preload, preload_keeper, supervise, watch
from runner.supervise import BoundedLog, Lease, main

LIMIT = 100


class Kept(io.BytesIO):
    """A file whose content can still be read when it is closed."""

    content = b""

    def close(self) -> None:
        """Keep what was written."""
        self.content = self.getvalue()
        super().close()


@given(st.lists(st.binary(max_size=150), max_size=30))
def test_head_and_tail_are_kept_and_the_rest_is_counted(pieces: list[bytes]) -> None:
    file = Kept()
    log = BoundedLog(file, LIMIT)
    for piece in pieces:
        log.write(piece)
    log.end("")
    printed = b"".join(pieces)

    if log.cut:
        head, cut, tail = re.split(rb"\n\[ramp-cloud: (\d+) bytes[^\n]*\]\n", file.content, maxsplit=1)
        assert int(cut) == log.cut
        assert printed.startswith(head)
        assert printed.endswith(tail)
        assert len(head) + len(tail) + log.cut == len(printed)
        assert len(head) == LIMIT // 2
        assert len(tail) >= LIMIT // 2
    else:
        assert file.content == printed


def test_the_head_can_be_read_while_the_training_runs() -> None:
    file = Kept()
    log = BoundedLog(file, LIMIT)

    log.write(b"first line\n")

    assert file.getvalue() == b"first line\n"


class Full(Kept):
    """A file on a full disk."""

    def write(self, data: object) -> int:
        """Refuse."""
        raise OSError(28, "No space left on device")


def test_a_full_disk_is_noted_and_ends_nothing() -> None:
    log = BoundedLog(Full(), LIMIT)

    log.write(b"x" * 500)
    log.end("killed at the time limit of 2 s")

    assert "No space left on device" in log.lost


def test_a_supervisor_that_comes_too_late_starts_nothing(tmp_path: Path) -> None:
    main([str(tmp_path / "given up")])

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "module", [supervise, watch, preload, preload_keeper, fence], ids=lambda module: module.__name__
)
def test_runs_alone_on_the_oldest_python_of_an_image(module: ModuleType) -> None:
    tree = ast.parse(Path(str(module.__file__)).read_text(), feature_version=(3, 9))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported - sys.stdlib_module_names <= {"psutil"}


def test_a_lease_is_over_when_nobody_touched_its_file_for_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(supervise.time, "monotonic", lambda: now)
    file = tmp_path / "lease"
    file.touch()
    lease = Lease(file, 120)

    assert not lease.is_over()
    now += 119
    assert not lease.is_over()
    os.utime(file, (1, 1))  # whatever the clock of the files says: it was touched
    assert not lease.is_over()
    now += 119
    assert not lease.is_over()
    now += 2
    assert lease.is_over()


def test_without_a_lease_nothing_is_over(tmp_path: Path) -> None:
    assert not Lease(tmp_path / "lease", None).is_over()
