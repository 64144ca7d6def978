"""Who belongs to an event's cluster: a certificate authority of the event, and a certificate for each role.

<deployment>/events/<event>/tls/ca.pem              what all sides trust, and nothing else
                                <role>.pem          certificate of scheduler, worker or client
                                <role>-key.pem      its private key, 0600 in a folder of 0700

The authority's own key signs three times and is then thrown away, so nobody can make a fourth certificate.
"""

import contextlib
import fcntl
import os
import shlex
import ssl
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from distributed import Security

from runner.errors import ConfigError

ROLES = ("scheduler", "worker", "client")
LIFETIME = timedelta(days=366)
_BACKDATED = timedelta(hours=1)  # clocks of the machines differ
_CA = "ca.pem"


@dataclass(frozen=True, kw_only=True)
class RoleFiles:
    """What one side shows and trusts: three PEM files."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """The certificates that this machine has, by role; on a machine with workers alone that may be one."""

    roles: Mapping[str, RoleFiles]

    def of(self, role: str) -> RoleFiles:
        """Return the files of a role.

        Raises:
            ConfigError: this machine has none for it.
        """
        if role not in self.roles:
            msg = f"this machine has no certificate of a {role}; it has those of {', '.join(self.roles)}"
            raise ConfigError(msg)
        return self.roles[role]

    def security(self, *roles: str) -> Security:
        """Return what distributed takes, with the keys of these roles alone. Nothing is ever sent in clear."""
        files = {role: self.of(role) for role in roles}
        keys = {f"tls_{role}_{kind}": str(getattr(files[role], kind)) for role in roles for kind in ("cert", "key")}
        ca = str(files[roles[0]].ca)
        return Security(require_encryption=True, tls_ca_file=ca, tls_min_version=ssl.TLSVersion.TLSv1_3, **keys)


def tls_folder(deployment_dir: str | Path, event_name: str) -> Path:
    """Return the folder of an event's own certificates."""
    return Path(deployment_dir, "events", event_name, "tls")


def certificates_for(
    config: Mapping[str, Any], *, make: bool = True, now: datetime | None = None
) -> Certificates | None:
    """Return the certificates that a worker's config names; None for plain tcp.

    Args:
        config: the worker's dict.
        make: whether ``auto`` makes them where there are none: who starts a cluster does, who joins one does not.
        now: the time, which decides what has expired.

    Raises:
        ConfigError: they cannot be used; the message says why and what to do.
    """
    now = now or datetime.now(UTC)
    security = config["security"]
    if security is None:
        return None
    if security == "auto":
        folder = tls_folder(config["deployment_dir"], config["event_name"])
        return event_certificates(folder, now=now) if make else present(folder, now=now)
    files = RoleFiles(**{name: Path(security[name]) for name in ("ca", "cert", "key")})
    check(files, now=now)
    return Certificates(roles=dict.fromkeys(ROLES, files))


def event_certificates(folder: Path, *, now: datetime) -> Certificates:
    """Return the certificates of an event. Made when there are none, or when those that are there have expired.

    Any number of processes may ask at once; all get the same. A folder that holds some of the roles is taken as it
    is: it was copied to a machine that plays these alone.

    Raises:
        ConfigError: what is there cannot be used, or the folder cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder.with_name(f".{folder.name}.lock")):
            if not folder.is_dir() or _is_over(folder, now):
                _replace(folder, now)
    except OSError as error:
        msg = f"the event's certificates cannot be kept in {folder}: {error.strerror}; make that folder writable"
        raise ConfigError(msg) from error
    return present(folder, now=now)


def present(folder: Path, *, now: datetime) -> Certificates:
    """Return the certificates that a folder holds, checked; makes none.

    Raises:
        ConfigError: there is no complete role among them, or one cannot be used.
    """
    files = {
        role: RoleFiles(ca=folder / _CA, cert=folder / f"{role}.pem", key=folder / f"{role}-key.pem") for role in ROLES
    }
    found = {role: each for role, each in files.items() if each.cert.exists() and each.key.exists()}
    if not found:
        msg = (
            f"{folder} has no certificate with its key; start the scheduler from this machine (`./inv dask-scheduler`"
            ", with --hosts for another one), which makes them, or copy ca.pem, ROLE.pem and ROLE-key.pem into it "
            "from the machine that made them, with ROLE one of scheduler, worker, client"
        )
        raise ConfigError(msg)
    for each in found.values():
        check(each, now=now)
    return Certificates(roles=found)


def check(files: RoleFiles, *, now: datetime) -> None:
    """Check that a certificate, its key and its authority belong together and can be used now.

    Raises:
        ConfigError: they cannot.
    """
    authority, certificate = _read(files.ca), _read(files.cert)
    for path, each in ((files.ca, authority), (files.cert, certificate)):
        if now >= each.not_valid_after_utc:
            msg = f"the certificate {path} has expired on {each.not_valid_after_utc:%Y-%m-%d}; {_RENEW}"
            raise ConfigError(msg)
        if now < each.not_valid_before_utc:
            msg = f"the certificate {path} is valid from {each.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on only; "
            msg += "set this machine's clock"
            raise ConfigError(msg)
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        msg = f"the certificate {files.cert} was not signed by the authority {files.ca}; take both from one set"
        raise ConfigError(msg) from error
    if _read_key(files.key) != _public_bytes(certificate.public_key()):
        msg = f"the key {files.key} does not belong to the certificate {files.cert}; take both from one set"
        raise ConfigError(msg)


_RENEW = "remove the whole folder to have new ones made, or have them signed again where they came from"


def _read(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        msg = f"the certificate {path} cannot be read: {error.strerror}; put it there, or mend `security`"
        raise ConfigError(msg) from error
    except ValueError as error:
        msg = f"{path} is no certificate in PEM; {_RENEW}"
        raise ConfigError(msg, detail=str(error)) from error


def _read_key(path: Path) -> bytes:
    """Return the public half of a private key that only its owner can read."""
    try:
        mode = path.stat().st_mode
        content = path.read_bytes()
    except OSError as error:
        msg = f"the key {path} cannot be read: {error.strerror}; put it there, or mend `security`"
        raise ConfigError(msg) from error
    if mode & 0o077:
        msg = f"the key {path} can be read by others; run: chmod 600 {shlex.quote(str(path))}"
        raise ConfigError(msg)
    try:
        return _public_bytes(serialization.load_pem_private_key(content, password=None).public_key())
    except TypeError as error:  # what cryptography raises for want of a password
        msg = f"the key {path} has a passphrase; remove it: openssl pkey -in {shlex.quote(str(path))} -out NEW"
        raise ConfigError(msg) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        msg = f"{path} is no private key in PEM; {_RENEW}"
        raise ConfigError(msg, detail=str(error)) from error


def _public_bytes(key: Any) -> bytes:
    content: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return content


def _is_over(folder: Path, now: datetime) -> bool:
    """Whether the authority has expired, so that nobody can use anything in the folder any more."""
    authority = folder / _CA
    return authority.exists() and now >= _read(authority).not_valid_after_utc


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _replace(folder: Path, now: datetime) -> None:
    """Make a set beside the folder and put it in its place, so that there is all of it or nothing."""
    partial = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}.partial")
    partial.mkdir(mode=0o700)
    _make(partial, now)
    if folder.is_dir():
        folder.rename(folder.with_name(f"{folder.name}-expired-{now:%Y%m%dT%H%M%S}"))
    partial.rename(folder)


def _make(folder: Path, now: datetime) -> None:
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority_name = _name("ramp-cloud event")
    begun, ends = now - _BACKDATED, now + LIFETIME
    ca = (
        _certificate(authority_name, authority_name, authority_key.public_key(), begun, ends)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    _write(folder / _CA, ca.public_bytes(serialization.Encoding.PEM))
    for role in ROLES:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _certificate(_name(role), authority_name, key.public_key(), begun, ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(_uses(role)), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(role)]), critical=False)
            .sign(authority_key, hashes.SHA256())
        )
        _write(folder / f"{role}.pem", certificate.public_bytes(serialization.Encoding.PEM))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        _write(folder / f"{role}-key.pem", private)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begun: datetime, ends: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begun)
        .not_valid_after(ends)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _uses(role: str) -> list[x509.ObjectIdentifier]:
    # A client only ever calls. Scheduler and workers are called and call each other.
    served = [] if role == "client" else [ExtendedKeyUsageOID.SERVER_AUTH]
    return [ExtendedKeyUsageOID.CLIENT_AUTH, *served]


def _write(path: Path, content: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123 - of a descriptor
        file.write(content)
