"""Host keys that a user has accepted already, from a known_hosts file as ssh keeps it."""

from pathlib import Path

import paramiko

from runner.errors import ConfigError

_DEFAULT_PORT = 22
# Of a kind that can be pinned by its name; RSA keys sign by other names than their own.
_KINDS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521")


def known_host_key(path: Path, host: str, port: int = _DEFAULT_PORT) -> str:
    """Return the host key that a machine must show, as "ssh-ed25519 AAAA...".

    Args:
        path: a known_hosts file; names in it may be hashed.
        host: the name or address, as it is connected to.
        port: the SSH server's.

    Raises:
        ConfigError: the file cannot be read, or has no key of that host that can be used.
    """
    name = host if port == _DEFAULT_PORT else f"[{host}]:{port}"
    option = "" if port == _DEFAULT_PORT else f" -p {port}"
    advice = (
        f"log in once by hand (ssh{option} {host}) and compare what it asks, or add the key of `ssh-keyscan -t ed25519"
        f"{option} {host}` to {path} after comparing it with the one on the machine"
    )
    try:
        found = paramiko.HostKeys(str(path)).lookup(name)
    except OSError as error:
        msg = f"the host key of {host} is not known, since {path} cannot be read: {error.strerror}; {advice}"
        raise ConfigError(msg) from error
    for kind in _KINDS:
        if found is not None and kind in found:
            return f"{kind} {found[kind].get_base64()}"
    msg = f"the host key of {host} is not known: {path} has no ed25519 or ECDSA key of {name}; {advice}"
    raise ConfigError(msg)
