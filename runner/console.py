"""What people see: tables, the live view of a running event, plain lines when nobody watches."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from runner.kit import Kit
from runner.life import Life
from runner.records import Outcome
from runner.scores import Row
from runner.states import Cause, State

_COLOURS = {
    State.SCORED: "green",
    State.TRAINING: "cyan",
    State.TESTED: "cyan",
    State.SENT_TO_TRAINING: "cyan",
    State.TRAINING_ERROR: "red",
    State.CHECKING_ERROR: "bold red",
    State.CANCELLED: "yellow",
}
_CHECKED = {"ok": "green", "warning": "yellow", "unknown": "cyan", "wrong": "bold red"}
_REFRESH = 2  # times a second


def printer() -> Console:
    """Return a console on standard output; lines keep their full width when nobody watches."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 160)
    return console


Lives = Callable[[], Sequence[Life]]


class PlainView:
    """One line per change, for logs and CI."""

    def moved(self, name: str, state: State, outcome: Outcome | None) -> None:
        """Print the change; see ``runner.life.Listener``."""
        reason = f" ({outcome.cause})" if outcome and outcome.cause not in {Cause.OK, Cause.SUBMISSION_ERROR} else ""
        last = _last_line(outcome.message) if outcome else ""
        time = datetime.now().astimezone().strftime("%H:%M:%S")
        printed = f"{time} {name}: {state}{reason}{': ' + last if last else ''}"
        # In one piece: many threads print.
        print(f"{printed}\n", end="", flush=True)  # noqa: T201 - this is the console view

    def log_handler(self) -> logging.Handler:
        """Return a handler that writes to standard error."""
        return logging.StreamHandler()

    @contextmanager
    def shown(self, lives: Lives) -> Iterator[None]:  # noqa: ARG002, RUF100 - as LiveView
        """Do nothing more while the event runs."""
        yield


class LiveView:
    """A table, drawn anew while the event runs: what trains now, and how many are in which state.

    Args:
        states: those of the submissions that the event has already.
    """

    def __init__(self, states: Mapping[str, State]) -> None:
        self._console = printer()
        self._lives: Lives = list
        self._states = dict(states)
        self._lock = threading.Lock()

    def moved(self, name: str, state: State, outcome: Outcome | None) -> None:  # noqa: ARG002, RUF100 - as Listener
        """Note the change; see ``runner.life.Listener``."""
        with self._lock:
            self._states[name] = state

    def log_handler(self) -> logging.Handler:
        """Return a handler whose lines stay above the table."""
        return RichHandler(console=self._console, show_path=False, markup=False)

    @contextmanager
    def shown(self, lives: Lives) -> Iterator[None]:
        """Show the table until the block ends."""
        self._lives = lives
        with Live(get_renderable=self._table, console=self._console, refresh_per_second=_REFRESH, transient=True):
            yield

    def _table(self) -> Table:
        with self._lock:
            states = list(self._states.values())
        counts = {state: states.count(state) for state in State if state in states}
        title = "   ".join(f"{state}: {count}" for state, count in counts.items())
        table = Table("submission", "attempt", "folds", "elapsed", "limit", box=box.SIMPLE_HEAD, title=title or None)
        for life in self._lives():
            folds, seconds = life.folds_done, life.training_seconds
            table.add_row(
                Text(life.attempt.name),
                str(life.attempt.number),
                "" if folds is None else str(folds),
                "setting up" if seconds is None else f"{seconds:.0f} s",
                f"{life.limit:g} s",
            )
        return table


def show_status(status: dict[str, Any]) -> None:
    """Print the object of ``status --json`` as a table."""
    console = printer()
    table = Table("submission", "state", "cause", "attempts", "seconds", "CPU s", "MB", "message", box=box.SIMPLE_HEAD)
    for row in status["submissions"]:
        state = State(row["state"])
        table.add_row(
            Text(row["name"]),
            Text(state.value, style=_COLOURS.get(state, "")),
            row["cause"] or "",
            str(row["attempts"]),
            _number(row["seconds"], 1),
            _number(row["cpu_seconds"], 1),
            _number(row["peak_memory_mb"], 0),
            Text(_last_line(row["message"] or ""), overflow="ellipsis", no_wrap=True),
        )
    console.print(f"Event {status['event']}: {status['state']}", markup=False)
    console.print(table if status["submissions"] else "No submissions yet; put folders into submissions_dir.")


def show_leaderboard(rows: Sequence[Row], kit: Kit | None, *, step: str) -> None:
    """Print the leaderboard, the official score first, rounded as the kit says."""
    console = printer()
    if not rows:
        console.print("No submission is scored yet.")
        return
    table = Table("rank", "submission", box=box.SIMPLE_HEAD)
    scores = list(kit.scores) if kit else []
    for score in scores:
        for title in ("bagged valid", "bagged test", "train", "valid", "test"):
            official = score is scores[0] and title == f"bagged {step}"
            table.add_column(f"{score.name}\n{title}", justify="right", style="bold" if official else "")
    table.add_column("train\nseconds", justify="right")
    for row in rows:
        cells = [
            _number(row.scores[kind].get(which, {}).get(score.name), score.precision)
            for score in scores
            for kind, which in (
                ("bagged", "valid"),
                ("bagged", "test"),
                ("mean", "train"),
                ("mean", "valid"),
                ("mean", "test"),
            )
        ]
        seconds = _number(row.scores["mean"].get("train", {}).get("time"), 1)
        table.add_row("-" if row.rank is None else str(row.rank), Text(row.name), *cells, seconds)
    console.print(table)
    if kit:
        better = "lower" if kit.scores[0].lower_is_better else "higher"
        ranking = f"Ranked by {kit.scores[0].name}, bagged {step} ({better} is better)"
        console.print(f"{ranking}; the other columns are means.", markup=False)
    else:
        console.print("Not ranked: problem.py could not be read, so the official score is not known.")


def show_findings(report: dict[str, Any]) -> None:
    """Print the object of ``doctor --json``: each check with what was found and what to do."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    table.add_column()
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in report["checks"]:
        found = check["found"] + (f"\n→ {check['next']}" if check["next"] else "")
        table.add_row(Text(check["state"], style=_CHECKED[check["state"]]), Text(check["name"]), Text(found))
    console = printer()
    console.print(table)
    said = "Nothing is wrong." if report["ok"] else "Mend what is wrong, then run doctor again."
    console.print(said, markup=False)


def show_sweep(swept: dict[str, Any]) -> None:
    """Print the object of ``sweep --json``."""
    console = printer()
    table = Table("id", "event", "submissions", "type", "hours", "state", "USD", "", "why", box=box.SIMPLE_HEAD)
    for row in swept["found"]:
        fate = "ended" if row["ended"] else "goes" if row["goes"] else "stays"
        table.add_row(
            row["id"],
            Text(row["event"]),
            Text(row["submissions"] or "", overflow="ellipsis", no_wrap=True),
            row["type"] or row["kind"],
            _number(row["hours"], 1),
            row["state"] or "",
            _number(row["cost_usd"], 2),
            Text(fate, style="red" if row["goes"] else ""),
            Text(row["why"]),
        )
    console.print(table if swept["found"] else f"Nothing of owner {swept['owner']} is there.", markup=False)
    if swept["others"]:
        owners = ", ".join(f"{owner} ({count})" for owner, count in swept["others"].items())
        console.print(f"Left alone are the instances of other owners: {owners}.", markup=False)
    if swept["dry_run"] and any(row["goes"] for row in swept["found"]):
        console.print("Nothing was done. To end what goes: the same again with --yes.", markup=False)


def show_rehearsal(rehearsed: dict[str, Any]) -> None:
    """Print the object of ``rehearse --json``: what became of the submissions, and what AWS would have seen."""
    show_status({"event": "rehearsed", "state": "done", "submissions": rehearsed["submissions"]})
    console = printer()
    launched = [
        f"{row['count']} x {row['instance_type']} ({row['market']}) in {row['zone']}" for row in rehearsed["launched"]
    ]
    lines = [f"The event was stopped: {rehearsed['stopped']}"] if rehearsed["stopped"] else []
    lines += [
        f"Launched on the emulated AWS: {', '.join(launched) or 'nothing'}; {rehearsed['instances_left']} left over.",
        f"{rehearsed['trainings_at_once']} trainings at once at most; {rehearsed['ec2_calls']} EC2 calls.",
        f"It took {rehearsed['makespan_s']:.1f} s; no runner could have taken less than {rehearsed['ideal_s']:.1f} s.",
    ]
    if rehearsed["faults"]:
        struck = ", ".join(f"{kind} {times}" for kind, times in rehearsed["faults"].items())
        lines.append(f"How often each fault struck: {struck}.")
    if rehearsed["cost_usd"] is not None:
        lines.append(f"On AWS, instances of that life would have cost at most USD {rehearsed['cost_usd']:.4f}.")
    console.print("\n".join(lines), markup=False)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""
