"""What `./inv down` removes after the stack: its things in Image Builder, which Pulumi leaves for the images' sake."""

from image_builder.prune import carry_out
from image_builder.pruning import Kind, Pruning
from image_builder.remains import remains
from infra.engine import StackFailed
from infra.settings import owner_of
from runner.aws.ec2 import Ec2
from runner.aws.event import open_session
from runner.config import EventConfig


class Remains:
    """The builds, recipes and components of an event's stack.

    Args:
        config: the event's.
        owner: whom the stack's things belong to, as the stack noted it; None: as `pulumi up` would have it.
    """

    def __init__(self, config: EventConfig, *, owner: str | None) -> None:
        self._event = config.event_name
        self._session = open_session(config.worker_config())
        self._owner = owner or owner_of(config, Ec2(self._session).account())

    def look(self) -> Pruning:
        """Return what there is.

        Raises:
            AwsError: AWS refuses, or does not answer.
            UsageError: a build is under way.
        """
        return remains(self._session, owner=self._owner, event=self._event)

    def clear(self) -> list[str]:
        """Remove it all, once the stack is gone, and tell in words what went.

        Raises:
            StackFailed: some of it is still there; the rest is gone.
        """
        pruned = carry_out(self._session, self.look())
        if pruned.failed:
            first, why = next(iter(pruned.failed.items()))
            msg = (
                f"the stack is gone, but Image Builder still has {len(pruned.failed)} of its things, such as {first}: "
                f"{why}. Run `./inv down` once more"
            )
            raise StackFailed(msg)
        gone = [item.kind for item in pruned.pruning.items]
        counted = [f"{gone.count(kind)} {kind.value}s" for kind in (Kind.BUILD, Kind.RECIPE, Kind.COMPONENT)]
        return [f"Image Builder forgot {', '.join(counted)}; the images themselves stay."] if gone else []
