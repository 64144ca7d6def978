"""The log of a build in CloudWatch, read while it is written, and where a reader finds it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from runner.aws.session import AwsSession
from runner.errors import AwsError

_MARK = re.compile(r"ramp-cloud: (begin|done) ([\w.-]+) (build|validate|test) ([\w.-]+)$")
_PREFIX = re.compile(r"^Std(?:out|err): ")  # how Image Builder writes what a document's step prints
_PAGE = 1000  # lines of one answer; AWS would send up to 10,000
_UNKNOWN = "ResourceNotFoundException"


@dataclass(frozen=True, kw_only=True)
class LogPlace:
    """Where the log of one build is: ``/aws/imagebuilder/<recipe>``, stream ``<version>/<build number>``."""

    group: str
    stream: str
    region: str

    def __str__(self) -> str:
        """Return what the console of CloudWatch calls it."""
        return f"CloudWatch log group {self.group}, stream {self.stream}, in {self.region}"


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A line by which a step of a document says that it begins, or is done; see image_builder/documents.py."""

    begins: bool
    document: str
    phase: str
    step: str


def mark_of(line: str) -> Mark | None:
    """Return the mark that a line of a log is, None for any other line."""
    found = _MARK.search(line.rstrip())
    if found is None:
        return None
    return Mark(begins=found[1] == "begin", document=found[2], phase=found[3], step=found[4])


def printed(line: str) -> str:
    """Return what a program printed, without what Image Builder put before it."""
    return _PREFIX.sub("", line.rstrip())


class BuildLog:
    """Reads one stream, each line once. Not for several threads.

    Args:
        session: the way to AWS, in the build's region.
        place: of the log. Neither group nor stream need be there yet: Image Builder makes them with the first line.
        repeats: whether botocore repeats a call by itself; who follows a log asks again soon anyway.
    """

    def __init__(self, session: AwsSession, place: LogPlace, *, repeats: bool = False) -> None:
        self._session = session
        self._repeats = repeats
        self.place = place
        self._token: str | None = None

    def fresh(self) -> Iterator[str]:
        """Yield the lines that came since the last call, oldest first. May be called again after any error.

        Raises:
            AwsError: CloudWatch refuses, or does not answer.
        """
        while True:
            token: dict[str, Any] = {"nextToken": self._token} if self._token else {}
            try:
                answer = self._session.call(
                    "logs",
                    "get_log_events",
                    repeats=self._repeats,
                    logGroupName=self.place.group,
                    logStreamName=self.place.stream,
                    startFromHead=True,
                    limit=_PAGE,
                    **token,
                )
            except AwsError as error:
                if error.fields.get("code") == _UNKNOWN:
                    return
                raise
            # Noted before anything is given away: whoever stops listening in between hears no line twice.
            at_end = answer["nextForwardToken"] == self._token
            self._token = answer["nextForwardToken"]
            for event in answer["events"]:
                yield from event["message"].splitlines() or [""]
            # A page can be empty and more still follow; only the same token again means the end.
            if at_end:
                return

    def whole(self) -> list[str]:
        """Return every line in the order of time, those that came late in their place.

        Raises:
            AwsError: CloudWatch refuses, or does not answer.
        """
        return list(BuildLog(self._session, self.place, repeats=True).fresh())
