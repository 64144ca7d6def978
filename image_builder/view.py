"""What people see of image building: a build while it runs, the images, a pruning. Only this module prints here.

What follows a build goes to standard error; standard output gets the results, so that scripts can read them.
"""

import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from image_builder.build_log import mark_of, printed
from image_builder.builds import PHASES
from runner.console import printer

_WIDTH = 20  # characters of the bar
_REFRESH = 4  # times a second
# A log may hold whatever a program printed: no line of it may move the cursor or colour the screen.
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b.|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_FATES = {"gone": "green", "goes": "yellow", "failed": "bold red", "stays": ""}


class BuildView(Protocol):
    """Shows a build while it is followed; see image_builder.following.Heard."""

    def phase(self, name: str, seconds: float) -> None:
        """Show the phase and the seconds since the build began."""

    def line(self, text: str) -> None:
        """Show a line of the log."""

    def note(self, text: str) -> None:
        """Show something that is not from the log."""


class PlainBuildView:
    """Lines only, one for each new phase, for logs and CI.

    Args:
        stream: where to; standard error by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._last = ""

    def phase(self, name: str, seconds: float) -> None:
        """Print the phase when it is another one."""
        if name != self._last:
            self._last = name
            self._print(f"-- {name.lower()} after {clock(seconds)}")

    def line(self, text: str) -> None:
        """Print a line of the log."""
        if mark := mark_of(text):
            if mark.begins:
                self._print(f"-- {mark.document}, {mark.phase}: {mark.step}")
        else:
            self._print(clean(printed(text)))

    def note(self, text: str) -> None:
        """Print a note."""
        self._print(f"-- {text}")

    def _print(self, text: str) -> None:
        # In one piece: others may print too.
        print(f"{text}\n", end="", file=self._stream, flush=True)


class LiveBuildView:
    """A bar of the phases below the log, drawn anew while the build runs.

    Args:
        console: a terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phase = PHASES[0]
        self._seconds = 0.0
        self._step = ""
        self._heard = time.monotonic()

    def phase(self, name: str, seconds: float) -> None:
        """Move the bar."""
        self._phase, self._seconds, self._heard = name, seconds, time.monotonic()

    def line(self, text: str) -> None:
        """Print a line of the log above the bar; what a step says of itself stands in the bar."""
        if mark := mark_of(text):
            self._step = f"{mark.document}: {mark.step}" if mark.begins else ""
        else:
            self._console.print(Text(clean(printed(text)), style="dim"))

    def note(self, text: str) -> None:
        """Print a note above the bar."""
        self._console.print(Text(text, style="yellow"))

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the bar until the block ends."""
        with Live(
            get_renderable=self._bar,
            console=self._console,
            refresh_per_second=_REFRESH,
            transient=True,
        ):
            yield

    def _bar(self) -> Text:
        since = time.monotonic() - self._heard  # it is heard of several seconds apart
        step = f", {self._step}" if self._step else ""
        return Text(
            bar(self._phase, self._seconds + since) + step, style="bold cyan", no_wrap=True, overflow="ellipsis"
        )


@contextmanager
def following() -> Iterator[BuildView]:
    """Show a build on standard error while the block runs: live on a terminal, in plain lines elsewhere."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        yield PlainBuildView()
        return
    view = LiveBuildView(console)
    with view.shown():
        yield view


def bar(phase: str, seconds: float) -> str:
    """Return the bar of a build: how many of its phases are behind it, which it is in, and how long it has run."""
    if phase not in PHASES:
        return f"{'!' * _WIDTH}  {phase.lower()} after {clock(seconds)}"
    done = round(_WIDTH * PHASES.index(phase) / (len(PHASES) - 1))
    return f"{'█' * done}{'░' * (_WIDTH - done)}  {phase.lower()}, {clock(seconds)}"


def clock(seconds: float) -> str:
    """Return a duration as minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"


def clean(text: str) -> str:
    """Return a line of a log without what would steer a terminal."""
    return _CONTROL.sub("", text)


def say(text: str) -> None:
    """Print a sentence to standard error: standard output is for results."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - this is the console view


def asks_to_cancel(build: object) -> bool:
    """Ask on the terminal whether a build is to be cancelled; no answer, and no terminal, mean that it goes on."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"Cancel the build {build}? [y/N] ", end="", file=sys.stderr, flush=True)  # noqa: T201 - as above
    try:
        return sys.stdin.readline().strip().lower() in {"y", "yes"}
    except KeyboardInterrupt:
        print(file=sys.stderr)  # noqa: T201 - as above
        return False


def show_image(image_id: str) -> None:
    """Print the id of the image that a build made: the last line on standard output."""
    print(image_id, flush=True)  # noqa: T201 - this is the console view


def show_images(listing: Mapping[str, Any]) -> None:
    """Print the object of ``images --json``."""
    console = printer()
    rows = listing["images"]
    if not rows:
        console.print(f"There is no image {listing['image']!r} yet; `./inv build-image` makes one.", markup=False)
        return
    several = len(listing["regions"]) > 1
    table = _table("image", "built (UTC)", "content,\nacceptance", "in use by")
    for row in rows:
        used = [*(["launched from now"] if row["launched"] else []), *row["used_by"]]
        table.add_row(
            Text("\n".join([row["name"], row["id"], *([row["region"]] if several else [])])),
            Text(row["created"][:16].replace("T", "\n")),
            Text.assemble(f"{(row['content'] or '-')[:8]}\n", _acceptance(row)),
            Text("\n".join([*([] if row["state"] == "available" else [row["state"]]), *used]), overflow="fold"),
        )
    console.print(f"Images {listing['image']!r}, newest first", markup=False)
    console.print(table)


def show_pruning(pruned: Mapping[str, Any]) -> None:
    """Print the object of ``prune-images --json``; of what Image Builder has only that which goes."""
    console = printer()
    rows = [row for row in pruned["found"] if row["goes"] or not row["id"].startswith("arn:")]
    if not rows:
        console.print(f"There is no image {pruned['image']!r}, and nothing that was left of one.", markup=False)
        return
    table = _table("", "what", "why")
    for row in rows:
        fate = _fate(row)
        what = f"{row['kind']} {row['name']}"
        what += "" if row["id"].startswith("arn:") else f"\n{row['id']}, {row['region']}"
        why = row["why"] + (f"\n→ {row['error']}" if row["error"] else "")
        table.add_row(Text(fate, style=_FATES[fate]), Text(what, overflow="fold"), Text(why, overflow="fold"))
    console.print(table)
    console.print(pruning_in_words(pruned), markup=False)


def pruning_in_words(pruned: Mapping[str, Any]) -> str:
    """Return one sentence on what came of a pruning: the object of ``prune-images --json``."""
    fates = [_fate(row) for row in pruned["found"]]
    if pruned["dry_run"]:
        if "goes" not in fates:
            return f"Nothing goes: what is there is in use, or among the newest {pruned['keep']}."
        return f"{fates.count('goes')} would go; nothing was done. To remove them: the same again with --yes."
    if "failed" in fates:
        return f"{fates.count('gone')} removed, {fates.count('failed')} could not be; the same again goes on with them."
    return f"{fates.count('gone')} removed." if "gone" in fates else "Nothing was to be removed."


def _table(*columns: str) -> Table:
    return Table(*columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _fate(row: Mapping[str, Any]) -> str:
    if row["error"]:
        return "failed"
    return "gone" if row["removed"] else "goes" if row["goes"] else "stays"


def _acceptance(row: Mapping[str, Any]) -> Text:
    if row["rejected"]:
        return Text("failed", style="bold red")
    if row["accepted"]:
        return Text(row["accepted"][:10], style="green")
    return Text("not tested", style="yellow")
