"""One tree of errors. Whoever catches ``RampCloudError`` at the front door has caught all that is expected.

RampCloudError
├── UsageError             the command was called wrongly                         exit code 2
│   └── NoSuchSubmission   a name that the event does not have
├── ConfigError            config.yml does not say something that can be done     exit code 2
├── KitError               the kit, its data or its environment cannot be used
├── EnvironmentNotBuilt    a conda environment could not be created or updated
├── StoreError             the database cannot be reached, read or written
├── LaunchStopped          no machine can be launched any more (quota, rights, cost); what waits stays new
├── AwsError               AWS refused a call, or could not be reached
│   ├── Throttled          too many calls; the same call is good after a pause
│   └── NoCapacity         AWS has no machine of that type in that zone now
├── ImageError             an image of the event cannot be built, tested or pruned
│   └── BuildFailed        a build ended without an image that can be used
├── TransportError         the connection to a machine could not be made, or broke
│   └── WrongHostKey       another machine answers than the one that was launched
└── WorkerError            one attempt failed for a reason of ours; it is repeated
    ├── Interrupted        the machine or process that trained is gone
    ├── NoRoom             there is no machine to be had now; tried again later, and counts for nothing
    └── SubmissionUnusable the submission's folder cannot be run; not repeated, the participant is told
"""


class RampCloudError(Exception):
    """An expected failure, told in two voices.

    Args:
        message: what a participant or organiser reads: what happened and what to do next.
        detail: what only the organiser should see (paths, output of commands, host names).
        fields: facts for the log, such as ``host`` or ``command``.
    """

    exit_code = 1

    def __init__(self, message: str, *, detail: str = "", **fields: object) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.fields = fields

    def for_organiser(self) -> str:
        """Return message, detail and fields as one text of one or more lines."""
        facts = ", ".join(f"{name}={value}" for name, value in self.fields.items())
        return "\n".join(part for part in (self.message, self.detail, facts) if part)


class UsageError(RampCloudError):
    """A command was called with words that mean nothing here."""

    exit_code = 2


class NoSuchSubmission(UsageError):
    """The event has no submission of that name."""


class ConfigError(RampCloudError):
    """The event's config.yml cannot be used; the message lists every problem found."""

    exit_code = 2


class KitError(RampCloudError):
    """The kit, its data, or the environment that should run it cannot be used."""


class EnvironmentNotBuilt(RampCloudError):
    """conda could not create or update the kit's environment; the message says what is left of it."""


class StoreError(RampCloudError):
    """The event's database cannot be reached, read or written."""


class LaunchStopped(RampCloudError):
    """No machine can be launched any more, whatever the submission; the event ends when what runs has ended."""


class AwsError(RampCloudError):
    """AWS refused a call, or could not be reached. Field ``code`` is AWS's own, ``operation`` the call."""


class Throttled(AwsError):
    """AWS was called too often."""


class NoCapacity(AwsError):
    """AWS has no machine of a type in a zone now, or none at the price that was offered."""


class ImageError(RampCloudError):
    """An image of the event cannot be built, tested or pruned as things are."""


class BuildFailed(ImageError):
    """A build ended without an image that can be used. Fields ``phase``, ``document`` and ``step`` say where."""


class TransportError(RampCloudError):
    """The connection to a machine could not be made, or broke. It can be made again; what runs there goes on."""


class WrongHostKey(TransportError):
    """Another machine answers at the address than the one that was launched; nothing was sent to it."""


class WorkerError(RampCloudError):
    """An attempt failed for a reason that is not the participant's; it is repeated within bounds."""


class Interrupted(WorkerError):
    """The process or machine that trained a submission is gone before it ended."""


class NoRoom(WorkerError):
    """There is no machine to be had now. The submission is new again for ``retry_after`` seconds."""

    def __init__(self, message: str, *, retry_after: float, detail: str = "", **fields: object) -> None:
        super().__init__(message, detail=detail, **fields)
        self.retry_after = retry_after


class SubmissionUnusable(WorkerError):
    """The submission's folder cannot be run as it is (gone, links inside, too large); repeating would not help."""
