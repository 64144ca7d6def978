"""The keys of both sides: host keys that machines get, and the private key that logs in."""

import shlex
from dataclasses import dataclass
from pathlib import Path

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runner.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class HostKey:
    """A host key: ``private`` as OpenSSH keeps it in a file, ``public`` as "ssh-ed25519 AAAA..."."""

    private: str
    public: str


def new_host_key() -> HostKey:
    """Make a host key that a machine gets when it is launched."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return HostKey(private=private.decode(), public=public.decode())


def check_key_file(path: Path) -> None:
    """Check that a private key can log in: it is there, only its owner can read it, and it has no passphrase.

    Raises:
        ConfigError: it cannot; the message says what to run.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        msg = f"the key file {path} cannot be found; set key_path to the private key of the key pair"
        raise ConfigError(msg, detail=str(error)) from error
    if mode & 0o077:
        msg = f"the key file {path} can be read by others; run: chmod 600 {shlex.quote(str(path))}"
        raise ConfigError(msg)
    load_key(path)


def public_key_of(path: Path) -> str:
    """Return the public half of a private key file, as "ssh-ed25519 AAAA...".

    Raises:
        ConfigError: it cannot be read.
    """
    key = load_key(path)
    return f"{key.get_name()} {key.get_base64()}"


def load_key(path: Path) -> paramiko.PKey:
    """Read a private key file.

    Raises:
        ConfigError: it cannot be read, has a passphrase, or is no key.
    """
    try:
        return paramiko.PKey.from_path(path)
    except TypeError as error:  # what the cryptography package raises for want of a password
        msg = f"the key file {path} has a passphrase; make a key pair without one for the event, or remove it: "
        msg += f"ssh-keygen -p -N '' -f {shlex.quote(str(path))}"
        raise ConfigError(msg, detail=str(error)) from error
    except OSError as error:
        msg = f"the key file {path} cannot be read; run: chmod 600 {shlex.quote(str(path))}"
        raise ConfigError(msg, detail=str(error)) from error
    except (ValueError, paramiko.SSHException, paramiko.pkey.UnknownKeyType) as error:
        msg = f"{path} is no private key of type ed25519, ECDSA or RSA; set key_path to the .pem file of the key pair"
        raise ConfigError(msg, detail=str(error)) from error
