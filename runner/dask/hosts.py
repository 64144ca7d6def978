"""``--hosts``: a scheduler or workers on other machines, over one SSH connection each, that end with it.

The keeper, its spec and the certificates of its role go there into a folder of their own (0700, in the machine's
temporary folder), which the keeper removes when it ends.
"""

import contextlib
import getpass
import io
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from runner.dask import keeper
from runner.dask.certificates import RoleFiles
from runner.dask.launch import KEEPER, LEASE, Plan, gave_up, no_python
from runner.errors import RampCloudError, TransportError, UsageError
from runner.transport.base import Reason, Stream
from runner.transport.ssh import SshTransport, connect
from runner.transport.ssh.known_hosts import known_host_key

_GATE = threading.Semaphore(8)  # handshakes at once
_RENEWAL = LEASE / 4  # seconds
_PAUSE = 5.0  # seconds between two attempts to connect again
_ENDING = 20.0  # seconds that a keeper has to end what it keeps
_NO_PROGRAM = (126, 127)  # exit codes of a shell
_HOST = re.compile(r"((?P<user>[^@\s]+)@)?(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9][A-Za-z0-9_.-]*)(:(?P<port>[0-9]+))?")
_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
_WORDS = {
    Reason.REFUSED: "nothing listens on its SSH port; start its SSH server, or give HOST:PORT",
    Reason.SILENT: "it does not answer; check the address, and that its firewall lets this machine in by SSH",
    Reason.UNREACHABLE: "it cannot be reached; check its name and the network",
    Reason.AUTH: "it does not let us in; check USER@HOST, and that the key of --key is in its authorized_keys",
    Reason.HOST_KEY: "it shows another host key than known_hosts has; nothing was sent to it. Look whether it was "
    "installed anew before you mend known_hosts",
}
_FOR_GOOD = {Reason.AUTH, Reason.HOST_KEY, Reason.FAILED}


@dataclass(frozen=True, kw_only=True)
class Host:
    """A machine that is reached by SSH."""

    host: str
    port: int
    user: str
    key_path: Path
    host_key: str
    python: str

    @property
    def name(self) -> str:
        """What people call it."""
        return self.host

    def keep(self, plan: Plan, hear: Callable[[str], None], stop: threading.Event) -> None:
        """Keep it running; see ``Place``. A connection that breaks later is made again."""
        was_up = False
        while not stop.is_set():
            try:
                with contextlib.closing(self._connect()) as transport:
                    was_up = True
                    code = _Session(transport, plan, hear, stop).run(self.python)
            except TransportError as error:
                reason = error.fields.get("reason")
                if reason in _FOR_GOOD or not was_up:
                    raise self._in_words(error) from error
                hear(f"the connection is gone ({error.message}); connecting again")
                stop.wait(_PAUSE)
                continue
            if code in _NO_PROGRAM:
                raise no_python(self.python, f"exit code {code}")
            if code:
                raise gave_up(plan)

    def _connect(self) -> SshTransport:
        return connect(
            self.host,
            port=self.port,
            user=self.user,
            key_path=self.key_path,
            host_key=self.host_key,
            gate=_GATE,
        )

    def _in_words(self, error: TransportError) -> TransportError:
        reason = error.fields.get("reason")
        words = _WORDS.get(reason, error.message) if isinstance(reason, Reason) else error.message
        return TransportError(f"{self.host} cannot be used: {words}", detail=error.detail, **error.fields)


def hosts_of(text: str, *, key: Path | None, python: str, known_hosts: Path) -> list[Host]:
    """Return the machines that ``--hosts`` names: [USER@]HOST[:PORT], comma separated.

    Args:
        text: what the flag says; a user left out is the one who asks.
        key: private key file. Default: the first of ~/.ssh/id_ed25519, id_ecdsa and id_rsa.
        python: interpreter on these machines.
        known_hosts: file that has their host keys.

    Raises:
        UsageError: the text names no machines, or there is no key.
        ConfigError: a machine's host key is not known.
    """
    found = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        matched = _HOST.fullmatch(word)
        if matched is None:
            msg = f"--hosts cannot hold {word!r}; write [USER@]HOST[:PORT], with commas between"
            raise UsageError(msg)
        host, port = matched["host"].strip("[]"), int(matched["port"] or 22)
        login = matched["user"] or getpass.getuser()
        host_key = known_host_key(known_hosts, host, port)
        key_path = key or _own_key()
        found.append(Host(host=host, port=port, user=login, key_path=key_path, host_key=host_key, python=python))
    if not found:
        msg = "--hosts names no machine; write [USER@]HOST[:PORT], with commas between"
        raise UsageError(msg)
    return found


def _own_key() -> Path:
    folder = Path("~/.ssh").expanduser()
    for name in _KEYS:
        if (folder / name).exists():
            return folder / name
    msg = f"there is no private key in {folder}; make one (ssh-keygen -t ed25519), or name one with --key"
    raise UsageError(msg)


class _Session:
    """One connection's worth of a keeper on another machine."""

    def __init__(self, transport: SshTransport, plan: Plan, hear: Callable[[str], None], stop: threading.Event) -> None:
        self._transport = transport
        self._plan = plan
        self._hear = hear
        self._stop = stop

    def run(self, python: str) -> int:
        """Start the keeper, pass on what it says until it ends, and return its exit code."""
        template = f"{keeper.PREFIX}XXXXXXXX"
        made = self._transport.run(["mktemp", "-d", "-t", template])
        folder = made.out.decode("utf-8", "replace").strip()
        if made.code or not folder.startswith("/"):
            msg = "no temporary folder can be made there; look at its disk"
            raise TransportError(msg, detail=made.err.decode("utf-8", "replace"), reason=Reason.FAILED)
        try:
            return self._keep_in(folder, python)
        finally:
            # The keeper has done so, unless it never started or was killed. With a connection that broke, it will.
            with contextlib.suppress(TransportError):
                self._transport.run(["rm", "-rf", "--", folder])

    def _keep_in(self, folder: str, python: str) -> int:
        self._transport.put(_packed(self._plan), folder, timeout=60)
        stream = self._transport.open([python, "-I", f"{folder}/{KEEPER.name}", folder])
        over = threading.Event()
        renewal = threading.Thread(target=self._renew, args=(f"{folder}/{keeper.ALIVE_FILE}", over, stream))
        renewal.start()
        try:
            for line in _lines(stream):
                self._hear(line)
            return stream.wait(_ENDING)
        finally:
            over.set()
            renewal.join()

    def _renew(self, alive: str, over: threading.Event, stream: Stream) -> None:
        """Tell the keeper that we live, until it ends or is to end."""
        try:
            while not over.is_set():
                if self._stop.is_set():
                    self._transport.run(["rm", "-f", alive])  # says to end; it answers by ending
                    if not over.wait(_ENDING):
                        stream.close()
                    return
                self._transport.run(["touch", "-c", alive])
                _wait_for_either(over, self._stop, _RENEWAL)
        except RampCloudError:
            self._transport.close()  # who reads hears of it


def _wait_for_either(first: threading.Event, second: threading.Event, seconds: float) -> None:
    waited = 0.0
    while waited < seconds and not first.is_set() and not second.wait(0.5):
        waited += 0.5


def _lines(stream: Stream) -> Iterator[str]:
    rest = b""
    while chunk := stream.read(65536):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.decode("utf-8", "replace").rstrip() for line in lines)
    if rest:
        yield rest.decode("utf-8", "replace")


def _packed(plan: Plan) -> io.BytesIO:
    """Return all that a keeper needs as a tar archive, every file readable by its owner alone."""
    content = {KEEPER.name: KEEPER.read_bytes(), keeper.ALIVE_FILE: b""}
    there = None
    if plan.files:
        content |= {f"{kind}.pem": getattr(plan.files, kind).read_bytes() for kind in ("ca", "cert", "key")}
        there = RoleFiles(**{kind: Path("{folder}", f"{kind}.pem") for kind in ("ca", "cert", "key")})
    content[keeper.SPEC_FILE] = plan.spec(files=there, lease=LEASE).encode()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o600
            archive.addfile(member, io.BytesIO(data))
    packed.seek(0)
    return packed
