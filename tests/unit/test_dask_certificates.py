"""Certificates of an event: made once, kept private, checked before they are used."""

import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from runner.dask.certificates import ROLES, RoleFiles, certificates_for, check, event_certificates, present, tls_folder
from runner.errors import ConfigError

NOW = datetime(2031, 5, 1, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "events/e/tls"


def serials(folder: Path) -> set[int]:
    return {x509.load_pem_x509_certificate(path.read_bytes()).serial_number for path in certificate_files(folder)}


def certificate_files(folder: Path) -> list[Path]:
    return [folder / f"{name}.pem" for name in ("ca", *ROLES)]


def complaint(folder: Path, *, now: datetime = NOW) -> str:
    with pytest.raises(ConfigError) as caught:
        present(folder, now=now)
    return caught.value.message


def test_files_are_for_their_owner_alone_and_the_authoritys_key_is_gone(folder: Path) -> None:
    event_certificates(folder, now=NOW)

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name for path in folder.iterdir()} == {
        "ca.pem",
        *(f"{role}.pem" for role in ROLES),
        *(f"{role}-key.pem" for role in ROLES),
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_each_role_has_a_key_of_its_own_for_what_it_does(folder: Path) -> None:
    made = event_certificates(folder, now=NOW)

    keys = {made.of(role).key.read_bytes() for role in ROLES}
    assert len(keys) == 3
    for role in ROLES:
        certificate = x509.load_pem_x509_certificate(made.of(role).cert.read_bytes())
        uses = set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        assert (ExtendedKeyUsageOID.SERVER_AUTH in uses) is (role != "client")


def test_security_has_the_named_roles_alone_and_never_plain(folder: Path) -> None:
    security = event_certificates(folder, now=NOW).security("worker")

    assert security.require_encryption is True
    assert security.tls_min_version == ssl.TLSVersion.TLSv1_3
    assert security.tls_worker_key == str(folder / "worker-key.pem")
    assert (security.tls_client_key, security.tls_scheduler_key) == (None, None)


def test_valid_ones_are_kept_and_expired_ones_are_made_anew(folder: Path) -> None:
    event_certificates(folder, now=NOW)
    first = serials(folder)

    event_certificates(folder, now=NOW + timedelta(days=365))
    assert serials(folder) == first

    event_certificates(folder, now=NOW + timedelta(days=367))
    assert serials(folder).isdisjoint(first)
    assert [path.name for path in folder.parent.iterdir() if "expired" in path.name] == ["tls-expired-20320502T000000"]


def test_two_at_once_get_the_same(folder: Path) -> None:
    barrier, errors = threading.Barrier(4), []

    def make() -> None:
        barrier.wait()
        try:
            event_certificates(folder, now=NOW)
        except ConfigError as error:
            errors.append(error)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert sorted(path.name for path in folder.parent.iterdir()) == [".tls.lock", "tls"]


def test_a_machine_with_workers_needs_their_files_alone(folder: Path) -> None:
    event_certificates(folder, now=NOW)
    for name in ("scheduler.pem", "scheduler-key.pem", "client.pem", "client-key.pem"):
        (folder / name).unlink()

    found = event_certificates(folder, now=NOW)

    assert list(found.roles) == ["worker"]
    with pytest.raises(ConfigError, match=r"no certificate of a client; it has those of worker"):
        found.of("client")


def test_who_joins_makes_none(tmp_path: Path) -> None:
    config = {"security": "auto", "deployment_dir": str(tmp_path), "event_name": "e"}

    with pytest.raises(ConfigError, match=r"no certificate with its key; start the scheduler from this machine"):
        certificates_for(config, make=False)
    assert list(tmp_path.iterdir()) == []

    assert certificates_for(config) is not None
    assert certificates_for(config, make=False) is not None
    assert certificates_for({**config, "security": None}) is None


def test_a_key_that_others_can_read(folder: Path) -> None:
    event_certificates(folder, now=NOW)
    (folder / "worker-key.pem").chmod(0o640)

    assert complaint(folder).endswith(f"can be read by others; run: chmod 600 {folder}/worker-key.pem")


def test_expired_and_not_yet_valid(folder: Path) -> None:
    event_certificates(folder, now=NOW)

    assert "ca.pem has expired on 2032-05-01; remove the whole folder" in complaint(folder, now=NOW + timedelta(400))
    assert "is valid from 2031-04-30 23:00 UTC on only; set this machine's clock" in complaint(
        folder, now=NOW - timedelta(1)
    )


def test_another_authority(folder: Path, tmp_path: Path) -> None:
    event_certificates(folder, now=NOW)
    event_certificates(tmp_path / "other/tls", now=NOW)
    (folder / "ca.pem").write_bytes((tmp_path / "other/tls/ca.pem").read_bytes())

    assert "scheduler.pem was not signed by the authority" in complaint(folder)


def test_a_key_of_another_certificate(folder: Path) -> None:
    event_certificates(folder, now=NOW)
    (folder / "worker-key.pem").write_bytes((folder / "client-key.pem").read_bytes())

    assert "worker-key.pem does not belong to the certificate" in complaint(folder)


@pytest.mark.parametrize(
    ("name", "said"), [("worker.pem", "is no certificate in PEM"), ("worker-key.pem", "is no private key in PEM")]
)
def test_files_that_are_something_else(folder: Path, name: str, said: str) -> None:
    event_certificates(folder, now=NOW)
    (folder / name).write_text("hello\n")

    assert said in complaint(folder)


def test_files_that_are_not_there(tmp_path: Path, folder: Path) -> None:
    own = {name: str(tmp_path / f"{name}.pem") for name in ("ca", "cert", "key")}
    config = {"security": own, "deployment_dir": str(tmp_path), "event_name": "e"}

    with pytest.raises(ConfigError, match=r"ca.pem cannot be read: No such file or directory"):
        certificates_for(config, now=NOW)

    made = event_certificates(folder, now=NOW).of("client")
    check(RoleFiles(ca=made.ca, cert=made.cert, key=made.key), now=NOW)
    assert tls_folder(tmp_path, "e") == folder


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "events").write_text("a file")

    with pytest.raises(ConfigError, match=r"cannot be kept in .*; make that folder writable"):
        event_certificates(tmp_path / "events/e/tls", now=NOW)
