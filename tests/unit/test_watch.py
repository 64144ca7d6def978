"""What the watcher says, how it is read, and that no bytes are lost between, however they are cut into pieces."""

import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import TransportError
from runner.watch import Watch
from runner.watch_frames import Beat, Ended, Frame, Gone, Log, Notice, read_frames

OUTCOME = {"returncode": 0, "ending": ""}
NOTICE = {"action": "terminate", "time": "2026-01-02T03:04:05Z"}


class Cut(io.BytesIO):
    """A stream that gives what it has in pieces of given sizes."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        super().__init__(data)
        self._sizes = iter(sizes)

    def read(self, size: int | None = -1) -> bytes:
        """Return the next piece."""
        assert size is not None
        assert size > 0
        return super().read(min(size, next(self._sizes, size)))


class Run:
    """A run folder, a watch over it, and what it has said; time passes only when told to."""

    def __init__(self, folder: Path, *, offset: int = 0) -> None:
        self.folder = folder / "0123456789abcdef"
        self.folder.mkdir()
        self.now = 1000.0
        self.notice: dict[str, str] | None = None
        self.out = io.BytesIO()
        self.watch = Watch(self.folder, offset, self.out, notice=lambda: self.notice, clock=lambda: self.now, start=10)

    def log(self, data: bytes) -> None:
        """Let the training print."""
        with (self.folder / "log").open("ab") as file:
            file.write(data)

    def live(self, pid: int | None = None) -> None:
        """Let a supervisor be there: by default this process, whose command line does not name the folder."""
        (self.folder / "pid").write_text(str(pid or os.getpid()))

    def step(self, *, after: float = 0.2) -> list[Frame]:
        """Let time pass and return what is then said."""
        self.now += after
        self.goes_on = self.watch.step()
        said = self.out.getvalue()
        self.out.seek(0)
        self.out.truncate()
        return list(read_frames(io.BytesIO(said)))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a run that has just begun."""
    return Run(tmp_path)


@pytest.fixture
def living(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a run whose supervisor lives."""
    monkeypatch.setattr("runner.watch._is_supervisor", lambda pid, folder: pid == 77 and folder == run.folder)
    run.live(77)
    return run


# -- watching --------------------------------------------------------------------------------------------------------


def test_the_log_is_sent_as_it_grows(living: Run) -> None:
    assert living.step() == []
    living.log(b"one")
    assert living.step() == [Log(b"one")]
    living.log(b"two")
    living.log(b"three")
    assert living.step() == [Log(b"twothree")]
    assert living.step() == []
    assert living.goes_on


def test_the_log_is_sent_from_the_offset_on(tmp_path: Path) -> None:
    run = Run(tmp_path, offset=4)
    run.log(b"one")
    assert run.step() == []
    run.log(b" two")
    assert run.step() == [Log(b"two")]


def test_frames_of_the_log_are_small(living: Run) -> None:
    living.log(bytes(200_000))
    living.watch.step()
    headers = [line for line in living.out.getvalue().replace(b"\0", b"").split(b"}") if line]
    assert [int(line.split(b":")[1]) for line in headers if b"log" in line] == [65536, 65536, 65536, 3392]


def test_a_training_that_prints_a_lot_lets_the_watch_say_other_things(living: Run) -> None:
    living.log(bytes(10_000_000))
    living.notice = NOTICE
    said = living.step()
    assert said[-1] == Notice("terminate", NOTICE["time"])
    assert sum(len(frame.data) for frame in said if isinstance(frame, Log)) < 2_000_000
    (living.folder / "outcome.json").write_text(json.dumps(OUTCOME))
    assert living.step()[-1] == Ended(OUTCOME)


def test_the_outcome_comes_after_the_whole_log(living: Run) -> None:
    living.log(b"last words")
    (living.folder / "outcome.json").write_text(json.dumps(OUTCOME))
    assert living.step() == [Log(b"last words"), Ended(OUTCOME)]
    assert not living.goes_on


def test_a_run_that_ended_before_the_watch_began(run: Run) -> None:
    run.log(b"x")
    (run.folder / "outcome.json").write_text(json.dumps(OUTCOME))
    assert run.step() == [Log(b"x"), Ended(OUTCOME)]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 5000, b'"x"', b'{"a":' + b"1" * 10**6])
def test_an_outcome_that_is_none(living: Run, content: bytes) -> None:
    (living.folder / "outcome.json").write_bytes(content)
    assert living.step() == [Ended({})]


def test_a_beat_in_silence(living: Run) -> None:
    assert living.step(after=14.9) == []
    assert living.step(after=0.2) == [Beat()]
    assert living.step(after=14.9) == []
    living.log(b"x")
    assert living.step(after=0.2) == [Log(b"x")]
    assert living.step(after=14.9) == []
    assert living.step(after=0.2) == [Beat()]


def test_a_notice_is_said_once(living: Run) -> None:
    assert living.step() == []
    living.notice = NOTICE
    assert living.step() == [Notice("terminate", NOTICE["time"])]
    assert living.step() == []
    assert living.goes_on


def test_a_supervisor_that_never_starts(run: Run) -> None:
    assert run.step(after=9.9) == []
    assert run.step(after=0.2) == []
    assert run.step(after=0.9) == []
    assert run.step(after=0.2) == [Gone()]
    assert not run.goes_on


def test_a_supervisor_that_is_about_to_write_its_pid(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.watch._is_supervisor", lambda *_: True)
    (run.folder / "pid").touch()
    assert run.step(after=9) == []
    run.live()
    assert run.step(after=5) == []


def test_a_supervisor_that_dies(living: Run) -> None:
    assert living.step() == []
    living.log(b"x")
    living.live(78)
    assert living.step() == [Log(b"x")]
    assert living.step(after=0.5) == []
    living.log(b"y")
    assert living.step(after=0.6) == [Log(b"y"), Gone()]


def test_an_outcome_that_is_seen_a_moment_after_the_end(living: Run) -> None:
    assert living.step() == []
    living.live(78)
    assert living.step() == []
    (living.folder / "outcome.json").write_text(json.dumps(OUTCOME))
    assert living.step(after=5) == [Ended(OUTCOME)]


def test_a_process_that_got_the_number_of_the_supervisor(run: Run) -> None:
    run.live()  # it lives, but it is this test
    assert run.step() == []
    assert run.step(after=1.1) == [Gone()]


@pytest.mark.parametrize("name", ["log", "outcome.json", "pid"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_files_that_a_submission_replaced(living: Run, name: str, kind: str) -> None:
    path = living.folder / name
    path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    said = living.step()
    assert [frame for frame in said if isinstance(frame, Log)] == []


# -- reading ---------------------------------------------------------------------------------------------------------

FRAMES = st.one_of(
    st.binary(min_size=1, max_size=65536).map(Log),
    st.just(Beat()),
    st.just(Notice("stop", NOTICE["time"])),
    st.builds(Ended, st.dictionaries(st.text(), st.one_of(st.none(), st.integers(), st.text()), max_size=3)),
    st.just(Gone()),
)


def written(frame: Frame) -> bytes:
    """Return a frame as the watcher writes it."""
    match frame:
        case Log(data):
            return json.dumps({"log": len(data)}).encode() + b"\n" + data
        case Notice(action, time):
            return json.dumps({"notice": {"action": action, "time": time}}).encode() + b"\n"
        case Ended(outcome):
            return json.dumps({"ended": outcome}).encode() + b"\n"
    return json.dumps({type(frame).__name__.lower(): True}).encode() + b"\n"


def joined(frames: list[Frame]) -> list[Frame | bytes]:
    """Return frames with what follows each other of the log put together."""
    found: list[Frame | bytes] = []
    for frame in frames:
        data = frame.data if isinstance(frame, Log) else None
        if data is not None and found and isinstance(found[-1], bytes):
            found[-1] += data
        else:
            found.append(frame if data is None else data)
    return found


@given(st.lists(FRAMES, max_size=6), st.lists(st.integers(1, 200), max_size=50))
def test_frames_arrive_however_they_are_cut(frames: list[Frame], sizes: list[int]) -> None:
    stream = Cut(b"".join(map(written, frames)), sizes)
    assert joined(list(read_frames(stream))) == joined(frames)


@given(st.lists(FRAMES, min_size=1, max_size=4), st.data())
def test_a_stream_that_ends_anywhere(frames: list[Frame], data: st.DataObject) -> None:
    whole = b"".join(map(written, frames))
    length = data.draw(st.integers(0, len(whole)))
    found = list(read_frames(io.BytesIO(whole[:length])))
    text, expected = (b"".join(frame.data for frame in some if isinstance(frame, Log)) for some in (found, frames))
    assert expected.startswith(text)
    assert [frame for frame in found if not isinstance(frame, Log)] == [
        frame for frame in frames if not isinstance(frame, Log)
    ][: sum(not isinstance(frame, Log) for frame in found)]


GARBAGE = [
    b"Last login: yesterday\n",
    b"{}\n",
    b"[]\n",
    b"1\n",
    b"null\n",
    b'{"log": 0}\n',
    b'{"log": -1}\n',
    b'{"log": true}\nx',
    b'{"log": 65537}\n',
    b'{"log": 1.0}\nx',
    b'{"log": "1"}\nx',
    b'{"log": 1, "gone": true}\nx',
    b'{"notice": {"action": "dance", "time": "x"}}\n',
    b'{"notice": {"action": "stop"}}\n',
    b'{"notice": {"action": ["stop"], "time": "x"}}\n',
    b'{"notice": true}\n',
    b'{"ended": []}\n',
    b'{"beat": 1}\n',
    b'{"gone": false}\n',
    b"[" * 50_000 + b"\n",
    b"x" * 70_000,
    b"\xff\n",
]


@pytest.mark.parametrize("said", GARBAGE, ids=lambda said: said[:40].decode("latin-1").strip())
def test_what_is_no_frame(said: bytes) -> None:
    frames = read_frames(io.BytesIO(written(Log(b"first")) + said))
    assert next(frames) == Log(b"first")
    with pytest.raises(TransportError, match=r"something else than how the training goes; .* \(\.bashrc\)") as error:
        next(frames)
    assert error.value.fields["reason"] == "failed"


@given(st.binary(max_size=300))
def test_any_bytes_whatever(data: bytes) -> None:
    frames = read_frames(io.BytesIO(data + b"\nno frame\n"))
    with pytest.raises(TransportError, match="something else"):
        list(frames)
