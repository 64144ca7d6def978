"""What an instance is told at its boot: its SSH host key, and when to end itself if nobody else ends it."""

import json
import math
from datetime import timedelta

from runner.errors import ConfigError

MAX_USER_DATA = 16_384  # bytes, EC2's limit, before it is encoded

_BOOT = 10.0  # minutes from the launch until SSH answers; who takes longer is given up
_PER_SUBMISSION = 15.0  # minutes beyond the time limit: upload, download, a connection that is made anew
_TO_SPARE = 10.0  # minutes, so that the timer never ends what the dispatcher still watches
_BEFORE_TIMER = timedelta(minutes=10)  # cloud-init comes to its runcmd late in the boot
_SHUTTING_DOWN = timedelta(minutes=5)


def user_data(private_key: str, public_key: str, minutes: int) -> str:
    """Return a cloud-config (JSON is YAML) that sets the host key and the boot timer.

    The key comes with the launch so that we know it before the first connection. Who may read the instance's user
    data may read it: it proves that a machine is the one that was launched, and opens none.

    Args:
        private_key: an ed25519 key in OpenSSH's format.
        public_key: its public half, as in a known_hosts file.
        minutes: see ``boot_minutes``.

    Raises:
        ConfigError: the text is longer than EC2 takes.
    """
    config = {
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": private_key, "ed25519_public": public_key},
        "runcmd": [["shutdown", "-P", f"+{minutes}"]],
    }
    text = f"#cloud-config\n{json.dumps(config, indent=1)}\n"
    if (size := len(text.encode())) > MAX_USER_DATA:
        msg = f"the user data of instances has {size} bytes, EC2 takes {MAX_USER_DATA}; use a shorter host key"
        raise ConfigError(msg)
    return text


def boot_minutes(timeout: float, instances_reused: int = 1, keep_failed_minutes: float = 0) -> int:
    """Return the minutes from its boot after which an instance ends itself.

    The sum: 10 for the boot; for each submission that it may serve the time limit and 15 for transfer and
    reconnecting; ``keep_failed_minutes``; 10 to spare.

    Args:
        timeout: time limit of one training in seconds.
        instances_reused: submissions that one instance serves, one after the other.
        keep_failed_minutes: how long an instance stays on after a failure, to be looked at.
    """
    trainings = instances_reused * (timeout / 60 + _PER_SUBMISSION)
    return math.ceil(_BOOT + trainings + keep_failed_minutes + _TO_SPARE)


def longest_life(minutes: int) -> timedelta:
    """Return how long an instance with that boot timer can be billed at most, from its launch on."""
    return _BEFORE_TIMER + timedelta(minutes=minutes) + _SHUTTING_DOWN
