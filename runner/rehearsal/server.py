"""The server process of a rehearsal: moto's services and our machines on one free loopback port.

    python -m runner.rehearsal.server --root FOLDER [--network 127.16] [--settings FILE.json]

It prints one JSON line with its ``url`` and lives until SIGTERM or until its input ends, so that it never outlives who
started it. Then every machine is off.
"""

import argparse
import errno
import gc
import json
import logging
import os
import resource
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from runner.errors import RampCloudError, UsageError
from runner.rehearsal.settings import Settings, load_settings

_ENDING = 25.0  # seconds for switching all machines off
_POLL = 0.05  # seconds until the HTTP server sees that it is to end
_RESERVED = 1668  # port that holds a network; nothing else of a rehearsal uses it
_LAST_NUMBER = 254  # of a network, so that broadcast addresses stay out of it


def main() -> int:
    """Serve until told to end; return the exit code."""
    parser = argparse.ArgumentParser(prog="runner.rehearsal.server", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder for the machines")
    parser.add_argument("--network", help="first two numbers of all addresses (default: a free one from 127.16 on)")
    parser.add_argument("--settings", type=Path, help="JSON file; its keys are those of runner.rehearsal.settings")
    arguments = parser.parse_args()
    try:
        values = json.loads(arguments.settings.read_text()) if arguments.settings else {}
        if arguments.network:
            values["network"] = arguments.network
        reservation, network = _reserve(values.get("network"), load_settings(values).ssh_port)
        with reservation:
            serve(arguments.root, load_settings({**values, "network": network}))
    except RampCloudError as error:
        sys.stdout.write(json.dumps({"error": error.for_organiser()}) + "\n")
        return error.exit_code
    return 0


def serve(root: Path, settings: Settings) -> None:
    """Serve until SIGTERM or the end of the input."""
    # Read by moto when it is imported: it needs none of Amazon's own images.
    os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    from runner.rehearsal import account, ec2, quotas
    from runner.rehearsal.api import Api
    from runner.rehearsal.calls import CallLog
    from runner.rehearsal.control import Control
    from runner.rehearsal.hall import Hall
    from runner.rehearsal.imagebuilder import ImageBuilder
    from runner.rehearsal.lasting import Lasting, Stored
    from runner.rehearsal.launch import Launcher
    from runner.rehearsal.openssh import check_sshd

    if settings.sshd == "openssh":
        check_sshd()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a thousand machines have thousands of sockets
    lock = threading.RLock()
    calls = CallLog()
    lasting = Lasting(root) if settings.lasting else None
    hall = Hall(root, settings)
    launcher = Launcher(hall, calls, lock)
    ec2.install(launcher)
    quotas.install(hall)
    account.build_network(hall)
    builder = ImageBuilder(hall, launcher, lock)
    if lasting:
        lasting.load({"images": Stored(hall.homes), "imagebuilder": builder.store})

    def reset(values: dict[str, Any]) -> None:
        fixed = values.keys() & {"network", "ssh_port", "imds_port"}
        if fixed:
            msg = f"{', '.join(sorted(fixed))} cannot change while a rehearsal runs; start another"
            raise UsageError(msg)
        wanted = load_settings(settings.model_dump() | values)
        if wanted.sshd == "openssh":
            check_sshd()
        builder.builds.stop()  # without the lock, which they need to end
        with lock:
            hall.reset(wanted)
            builder.forget()
            launcher.forget()
            calls.forget()
            api.limits.forget()
            account.forget_everything()

    control = Control(
        hall,
        calls,
        seed=lambda values: account.seed(hall, values),
        reset=reset,
        defects=lambda: list(builder.defects),
    )
    api = Api(DomainDispatcherApplication(create_backend_app), builder, control, hall, calls, lock)
    server = make_server("127.0.0.1", 0, api, threaded=True)
    builder.builds.endpoint = f"http://127.0.0.1:{server.port}"
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    signal.signal(signal.SIGINT, lambda *_: over.set())
    threading.Thread(target=server.serve_forever, args=(_POLL,), name="http", daemon=True).start()
    threading.Thread(target=_wait_for_end_of_input, args=(over,), daemon=True).start()
    gc.freeze()  # moto's tables never become garbage, and looking at them again and again takes time
    facts = {"url": f"http://127.0.0.1:{server.port}", "network": settings.network, "ssh_port": settings.ssh_port}
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()
    over.wait()
    late = threading.Timer(_ENDING, os._exit, [1])  # whatever hangs, we do not outlive who started us
    late.daemon = True
    late.start()
    server.shutdown()
    builder.builds.stop()
    hall.close()
    if lasting:
        lasting.save()
    launcher.close()


def _wait_for_end_of_input(over: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    over.set()


def _reserve(wanted: str | None, ssh_port: int) -> tuple[socket.socket, str]:
    """Take a network for ourselves: whoever listens on one port of its last address has it, whatever else it uses.

    Raises:
        UsageError: it is taken, none is free, or this host does not let us use it.
    """
    for network in [wanted] if wanted else [f"127.{number}" for number in range(16, _LAST_NUMBER)]:
        held = socket.socket()
        try:
            held.bind((f"{network}.255.254", _RESERVED))
            held.listen(1)
        except OSError as error:
            held.close()
            if error.errno == errno.EADDRNOTAVAIL:
                msg = f"this host has no loopback addresses such as {network}.0.4; a rehearsal needs Linux"
                raise UsageError(msg) from error
            continue
        try:
            socket.create_server((f"{network}.255.254", ssh_port)).close()
        except OSError as error:
            held.close()
            why = "needs root" if error.errno in {errno.EACCES, errno.EPERM} else "is in use on every address"
            msg = f"port {ssh_port} {why}; set ssh_port in the rehearsal's settings to another above 1023"
            raise UsageError(msg) from error
        return held, network
    msg = f"{wanted or 'every network from 127.16 to 127.253'} is taken by another rehearsal"
    raise UsageError(msg + "; wait until one has ended, or choose another with --network")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # everything is off; taking moto's tables apart object by object takes two seconds
