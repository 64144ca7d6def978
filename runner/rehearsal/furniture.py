"""What a machine finds in place of programs that would change the host or reach the network.

The programs are files under stand_ins/. They stand once in a rehearsal's folder, on every machine's PATH, and know
their machine by $RAMP_CLOUD_ROOT, the folder that stands for its system:

    <machine>/home                the login user's, $RAMP_CLOUD_HOME
    <machine>/system/...          what would be /etc, /var, /usr/local, /root, $RAMP_CLOUD_ROOT
    <machine>/bin                 programs that only this machine can have: shutdown and its like
    <machine>/stand-ins           leads to the stand-ins
    <machine>/machine.sh, .json   facts about the machine, for the stand-ins
"""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from runner.rehearsal.machine import Birth
from runner.rehearsal.settings import Settings

SYSTEM_PATH = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin")
SHELL = "/bin/bash" if Path("/bin/bash").exists() else "/bin/sh"
_SCRIPTS = Path(__file__).parent / "stand_ins"
_CODE = Path(__file__).parents[2]
_SAME = {
    "apt-get": "apt dnf yum",
    "chown": "chgrp",
    "curl": "wget",
    "id": "whoami",
    "pip": "pip3",
    "runuser": "su",
    "uname": "arch",
    "nothing": "add-apt-repository apt-key apt-mark chpasswd debconf-set-selections dkms groupadd hostnamectl ldconfig "
    "loginctl mkswap modprobe mount needrestart passwd service snap swapoff swapon sysctl timedatectl "
    "umount update-alternatives update-initramfs useradd userdel usermod",
}
_RELEASE = 'PRETTY_NAME="Ubuntu 24.04 LTS"\nNAME="Ubuntu"\nVERSION_ID="24.04"\nID=ubuntu\nID_LIKE=debian\n'
_FOLDERS = ("etc/profile.d", "root", "run", "tmp", "usr/local/bin", "var/lib/cloud/instances", "var/log", "var/tmp")


def build(folder: Path) -> None:
    """Put the stand-ins into a folder, anew: ``bin`` for PATH, ``lib`` for themselves."""
    shutil.rmtree(folder, ignore_errors=True)
    binaries, library = folder / "bin", folder / "lib"
    binaries.mkdir(parents=True)
    library.mkdir()
    for script in _SCRIPTS.iterdir():
        if not script.suffix:
            write_program(binaries / script.name, script.read_text())
    for name, others in _SAME.items():
        for other in others.split():
            (binaries / other).symlink_to(name)
    module = "runner.rehearsal.environments"
    python, code = shlex.quote(sys.executable), shlex.quote(str(_CODE))
    write_program(library / "run", f'#!/bin/sh\nPYTHONPATH={code} exec {python} -P -m {module} "$@"\n')
    write_program(
        library / "miniforge.sh",
        "#!/bin/sh\n# A rehearsal's stand-in for the installer of Miniforge.\n"
        'exec "${RAMP_CLOUD_ROOT:?}/../stand-ins/../lib/run" miniforge "" "$@"\n',
    )


def furnish(partial: Path, folder: Path, birth: Birth, settings: Settings, *, stand_ins: Path) -> None:
    """Furnish a new machine.

    Args:
        partial: the machine's folder, which may hold home and system already.
        folder: where it will be.
        stand_ins: what ``build`` made.
    """
    for name in _FOLDERS:
        (partial / "system" / name).mkdir(parents=True, exist_ok=True)
    release = partial / "system" / "etc" / "os-release"
    if not release.exists():
        release.write_text(_RELEASE)
    (partial / "tmp").mkdir()
    (partial / "bin").mkdir()
    fifo = folder / "shutdown.fifo"
    os.mkfifo(partial / fifo.name, 0o600)
    for name, words in (("shutdown", '"$*"'), ("poweroff", "now"), ("halt", "now"), ("reboot", "reboot")):
        write_program(partial / "bin" / name, f"#!/bin/sh\nprintf '%s\\n' {words} > {shlex.quote(str(fifo))}\n")
    (partial / "stand-ins").symlink_to(stand_ins / "bin")
    _write_facts(partial, folder, birth, settings, stand_ins)
    _let_in(partial, birth)
    own = os.pathsep.join(_own_path(folder, birth, settings, stand_ins))
    (partial / "path.sh").write_text(_PATH.format(first=folder / "bin", own=own))
    _write_profiles(partial / "home", folder)


def path_of(folder: Path, birth: Birth, settings: Settings, stand_ins: Path) -> str:
    """Return the PATH of a machine's commands."""
    return os.pathsep.join([*_own_path(folder, birth, settings, stand_ins), *SYSTEM_PATH])


def environment(folder: Path, birth: Birth, settings: Settings, stand_ins: Path, *, as_root: bool) -> dict[str, str]:
    """Return what a machine's commands find in their environment."""
    home, user = (folder / "system" / "root", "root") if as_root else (folder / "home", settings.user)
    return {
        "PATH": path_of(folder, birth, settings, stand_ins),
        "HOME": str(home),
        "USER": user,
        "LOGNAME": user,
        "SHELL": SHELL,
        "LANG": "C.UTF-8",
        "TMPDIR": str(folder / "tmp"),
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{birth.address}:{settings.imds_port}",
        "RAMP_CLOUD_ROOT": str(folder / "system"),
        "RAMP_CLOUD_HOME": str(folder / "home"),
        "PIP_NO_INDEX": "1",  # a pip that is no stand-in reaches no network either
    }


def finish_first_boot(folder: Path, instance: str) -> None:
    """Note that the user data's commands are done, where cloud-init does."""
    cloud = folder / "system" / "var" / "lib" / "cloud"
    done = cloud / "instances" / instance / "boot-finished"
    done.parent.mkdir(parents=True, exist_ok=True)
    done.touch()
    link = cloud / "instance"
    link.unlink(missing_ok=True)
    link.symlink_to(f"instances/{instance}")


def leave_profiles(home: Path) -> None:
    """Take away what ``furnish`` wrote into the shell profiles of a home."""
    for name in (".bash_profile", ".bash_login", ".profile"):
        file = home / name
        if not file.is_file() or file.is_symlink():
            continue
        lines = file.read_text(errors="surrogateescape").splitlines(keepends=True)
        kept = [line for line in lines if not line.rstrip().endswith(_MARK)]
        if lines and not kept:
            file.unlink()
        elif kept != lines:
            file.write_text("".join(kept), errors="surrogateescape")


def write_program(path: Path, text: str) -> None:
    """Write a program."""
    path.write_text(text)
    path.chmod(0o755)


def _own_path(folder: Path, birth: Birth, settings: Settings, stand_ins: Path) -> list[str]:
    image = () if birth.bare else settings.image.path
    own = [folder / "bin", stand_ins / "bin", *image, folder / "system" / "usr" / "local" / "bin"]
    return [str(path) for path in own]


def _write_facts(partial: Path, folder: Path, birth: Birth, settings: Settings, stand_ins: Path) -> None:
    image_path = os.pathsep.join([*map(str, settings.image.path), *SYSTEM_PATH])
    system_path = os.pathsep.join(SYSTEM_PATH)
    image_python = shutil.which("python3", path=image_path) or sys.executable
    system_python = shutil.which("python3", path=system_path) or sys.executable
    facts: Mapping[str, str] = {
        "machine": str(folder),
        "machine_id": birth.id,
        "machine_user": settings.user,
        "machine_path": path_of(folder, birth, settings, stand_ins),
        "machine_architecture": birth.architecture,
        "machine_gpus": "\n".join(f"{name},{mib}" for name, mib in birth.gpus),
        "furniture": str(stand_ins),
        "image_python": image_python,
        "system_python": system_python if birth.bare else image_python,
    }
    lines = [f"{name}={shlex.quote(value)}\n" for name, value in facts.items()]
    (partial / "machine.sh").write_text("".join(lines))
    (partial / "machine.json").write_text(json.dumps({"image_path": list(map(str, settings.image.path))}))


def _let_in(partial: Path, birth: Birth) -> None:
    """Write the key pair's public key where cloud-init does."""
    if not birth.public_key:
        return
    folder = partial / "home" / ".ssh"
    folder.mkdir(mode=0o700, exist_ok=True)
    keys = folder / "authorized_keys"
    known = keys.read_text() if keys.exists() else ""
    if birth.public_key.strip() not in known:
        keys.touch(mode=0o600)
        keys.write_text(f"{known}{birth.public_key.strip()}\n")


_MARK = "# rehearsal"
# The system's /etc/profile sets PATH anew, and `shutdown` would be the host's. What a profile puts before the system's
# folders stays before the stand-ins.
_PATH = """\
case ":$PATH:" in
*:{first}:*) ;;
*/usr/*) rehearsal_path=${{PATH%%/usr/*}}; PATH=$rehearsal_path{own}:${{PATH#"$rehearsal_path"}} ;;
*) PATH={own}:$PATH ;;
esac
unset rehearsal_path
export PATH
"""


def _write_profiles(home: Path, folder: Path) -> None:
    """Let a login shell find the stand-ins, before what the image's profile does and after it."""
    read = f". '{folder}/path.sh' {_MARK}\n"
    for name in (".bash_profile", ".bash_login", ".profile"):
        file = home / name
        if file.exists():
            text = file.read_text(errors="surrogateescape")
            end = "" if not text or text.endswith("\n") else "\n"
            file.write_text(f"{read}{text}{end}{read}", errors="surrogateescape")
        elif name == ".profile":  # which bash reads where there is no other
            file.write_text(read)
