"""All that an event needs of AWS, put together from its config: checked once, before the first launch."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from runner.aws.boot import boot_minutes, longest_life, user_data
from runner.aws.ec2 import Ec2
from runner.aws.images import Image as AmiImage
from runner.aws.launcher import Launcher
from runner.aws.ledger import Budget, Ledger
from runner.aws.machines import Connect, Machine, Machines, Patience
from runner.aws.pools import Pools, candidates
from runner.aws.prices import Prices
from runner.aws.session import AwsSession
from runner.aws.spec import LaunchSpec
from runner.errors import AwsError, ConfigError
from runner.layout import instances_file
from runner.remote import Image, probe
from runner.stack import StackFileBroken, fill, read
from runner.transport.ssh import check_key_file, connect, new_host_key, wait_for_ssh

logger = logging.getLogger(__name__)
_IMAGE_LOOK = 600.0  # seconds between two looks for a newer image
HANDSHAKES = 10  # at once; an image's sshd refuses more, and each costs this machine CPU
_NEEDED = {
    "region_name": "the region, such as eu-west-1",
    "key_name": "the name of an EC2 key pair",
    "key_path": "the private key file of the key pair",
    "security_group": "a security group that lets this machine in on port 22",
}


@dataclass(frozen=True, kw_only=True)
class Ec2Event:
    """The instances of an event and what is known of their images. Make it with ``open_event``."""

    ec2: Ec2
    machines: Machines
    owner: str
    event_id: str
    kit_folder: str
    patience: Patience
    newest: "Newest"
    _images: dict[str, Image] = field(default_factory=dict)
    _swept: threading.Event = field(default_factory=threading.Event)

    def image_of(self, machine: Machine) -> Image:
        """Return where things are on a machine; looked for once per image.

        Raises:
            KitError: the image cannot run the kit.
            TransportError: the connection broke.
        """
        found = self._images.get(machine.instance.image)
        if found is None:
            found = self._images[machine.instance.image] = probe(machine.transport, self.kit_folder)
        return found

    def sweep(self, live: Callable[[], Mapping[str, Mapping[str, Any] | None]]) -> list[str]:
        """End what belongs to no attempt; the first time also the launch templates of dispatchers that died.

        Now and then it also looks for a newer image: an event may stay open for weeks.
        """
        self.newest.look()
        swept = self.machines.sweep(live)
        if not self._swept.is_set():
            self._swept.set()
            swept += [f"launch template {name}" for name in self.ec2.delete_left_templates(self.owner, self.event_id)]
        return swept


class Newest:
    """Keeps an event's launches at the newest image of its name.

    Args:
        find: finds it.
        current: what is launched now.
        use: is told of a newer one.
    """

    def __init__(self, find: Callable[[], AmiImage], current: AmiImage, use: Callable[[AmiImage], None]) -> None:
        self._find = find
        self._current = current
        self._use = use
        self._looked = time.monotonic()

    def look(self, *, every: float = _IMAGE_LOOK) -> None:
        """Look for a newer image, unless that was done less than ``every`` seconds ago."""
        if time.monotonic() - self._looked < every:
            return
        self._looked = time.monotonic()
        try:
            found = self._find()
        except (AwsError, ConfigError) as error:  # the one that is known still works
            logger.warning("no newer image could be looked for: %s", error.message)
            return
        if found.id != self._current.id:
            logger.warning("from now on instances are launched from %s, %r", found.id, found.name)
            self._current = found
            self._use(found)


def filled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with what the stack's outputs say, and an owner.

    Raises:
        ConfigError: the outputs cannot be read, or something is neither in config.yml nor there.
    """
    try:
        outputs = read(Path(config["stack_outputs"]))
    except StackFileBroken as error:
        raise ConfigError(str(error)) from error
    whole = dict(fill(config, outputs).config)
    whole["owner"] = whole.get("owner") or config.get("event_uid") or config["event_name"]
    if missing := [f"{key} ({what})" for key, what in _NEEDED.items() if not whole.get(key)]:
        where = "set it in config.yml, or let `pulumi up` export it" if outputs is None else "set it in config.yml"
        msg = f"worker_type aws also needs {', '.join(missing)}; {where}"
        raise ConfigError(msg)
    return whole


def open_session(config: Mapping[str, Any]) -> AwsSession:
    """Return the way to the account that the config names; nothing is asked yet."""
    keys = ("region_name", "profile_name", "access_key_id", "secret_access_key")
    return AwsSession(**{key: config[key] for key in keys})


def open_event(
    config: Mapping[str, Any],
    *,
    patience: Patience | None = None,
    session: AwsSession | None = None,
    minutes: int | None = None,
    volume_gb: int | None = None,
    tags: Mapping[str, str] | None = None,
    more_groups: Sequence[str] = (),
) -> Ec2Event:
    """Check key, image, subnets, group and prices, and return what launches. Launches nothing itself.

    Args:
        config: what workers get.
        patience: how long things may take.
        session: the way to the account, where there is one already.
        minutes: from its boot until an instance ends itself; None: as ``boot_minutes`` has it for submissions.
        volume_gb: size of the root volume in GiB; None: the image's own.
        tags: of instances and their volumes, besides those of runner/aws/tags.py.
        more_groups: security groups besides the one of the config, by id or name.

    Raises:
        ConfigError: something is missing or cannot be used.
        AwsError: AWS does not answer, or does not allow it.
    """
    config, patience = filled(config), patience or Patience()
    check_key_file(Path(config["key_path"]))
    ec2 = Ec2(session or open_session(config))
    types = [config["instance_type"]] if isinstance(config["instance_type"], str) else list(config["instance_type"])
    prices = Prices.load(config["region_name"], config["prices"])
    if config["max_event_cost"] is not None:
        prices.require(types)
    find_image = partial(
        ec2.image,
        name=config["ami_image_name"],
        image_id=config["ami_image_id"],
        types=types,
        accepted_only=config["require_accepted"],
    )
    image = find_image()
    # Subnets, once they are known, already lie in the zones that were asked for.
    zones = () if config["subnets"] else tuple(config["zones"])
    subnets = ec2.subnets(ids=tuple(config["subnets"]), zones=zones)
    minutes = minutes or boot_minutes(config["timeout"], config["instances_reused"], config["keep_failed_minutes"])
    groups = [ec2.security_group(each, subnets) for each in dict.fromkeys([config["security_group"], *more_groups])]
    spec = replace(
        _spec(config, image, tuple(groups), minutes),
        volume_gb=volume_gb,
        tags=tags or {},
    )
    event, owner = config["event_name"], config["owner"]
    event_id = str(config.get("event_uid") or event)  # used without a store, a worker has no other
    budget = Budget(
        ledger=Ledger(instances_file(config["deployment_dir"], event)),
        prices=prices,
        life=longest_life(minutes),
        max_usd=config["max_event_cost"],
        max_price=config["max_price"],
        clock=lambda: datetime.now(UTC),
    )
    there = ec2.describe(owner=owner, event_id=event_id)
    budget.settle(there)
    launcher = Launcher(
        ec2,
        spec,
        pools=Pools(candidates(types, subnets), cool_down=patience.cool_down),
        event=event,
        event_id=event_id,
        owner=owner,
        use_spot=config["use_spot_instance"],
        on_demand_fallback=config["on_demand_fallback"],
        max_price=config["max_price"],
        budget=budget,
    )
    machines = Machines(
        ec2,
        launcher,
        connect=_login(config, patience),
        wait_for_ssh=wait_for_ssh,
        owner=owner,
        event_id=event_id,
        host_key=spec.host_key,
        there=there,
        uses=config["instances_reused"],
        patience=patience,
    )
    return Ec2Event(
        ec2=ec2,
        machines=machines,
        owner=owner,
        event_id=event_id,
        kit_folder=config["remote_ramp_kit_folder"],
        patience=patience,
        newest=Newest(find_image, image, launcher.launch_from),
    )


def _spec(config: Mapping[str, Any], image: AmiImage, groups: tuple[str, ...], minutes: int) -> LaunchSpec:
    """Return what is launched, with an SSH host key of its own."""
    host_key = new_host_key()
    return LaunchSpec(
        image=image,
        user_data=user_data(host_key.private, host_key.public, minutes),
        boot_minutes=minutes,
        host_key=host_key.public,
        security_groups=groups,
        key_name=config["key_name"],
        instance_profile=config["instance_profile"],
        launch_template=config["launch_template"],
    )


def _login(config: Mapping[str, Any], patience: Patience) -> Connect:
    """Return what connects to an instance that shows a host key; all lives share its gate."""
    login = partial(
        connect,
        port=config["ssh_port"],
        user=config["ami_user_name"],
        key_path=Path(config["key_path"]),
        gate=threading.Semaphore(HANDSHAKES),
        banner_timeout=patience.handshake,
        auth_timeout=patience.handshake,
    )
    return lambda address, host_key: login(address, host_key=host_key)
