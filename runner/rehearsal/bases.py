"""The images that an event's image can start from, as Canonical and AWS publish them, for an emulated account."""

from pathlib import Path
from typing import Any

_CANONICAL, _AMAZON = "099720109477", "137112412989"  # accounts that publish the bases
_UBUNTU = "/aws/service/canonical/ubuntu/server/{}/stable/current/{}/hvm/{}/ami-id"
_AL2023 = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-{}"
# Name, the parameters that lead there, architecture, what kind of home.
_BASES = (
    ("ubuntu-noble-24.04-amd64-server", (_UBUNTU.format("24.04", "amd64", "ebs-gp3"),), "x86_64", "ubuntu"),
    ("ubuntu-noble-24.04-arm64-server", (_UBUNTU.format("24.04", "arm64", "ebs-gp3"),), "arm64", "ubuntu"),
    ("ubuntu-jammy-22.04-amd64-server", (_UBUNTU.format("22.04", "amd64", "ebs-gp2"),), "x86_64", "ubuntu"),
    ("ubuntu-jammy-22.04-arm64-server", (_UBUNTU.format("22.04", "arm64", "ebs-gp2"),), "arm64", "ubuntu"),
    ("al2023-ami-x86_64", (_AL2023.format("x86_64"),), "x86_64", "amazon"),
    ("al2023-ami-arm64", (_AL2023.format("arm64"),), "arm64", "amazon"),
)
_BASHRC = "# ~/.bashrc of a rehearsal's base image\ncase $- in *i*) ;; *) return ;; esac\n"
_LOGIN = (
    '# login shells of a rehearsal\'s base image\nif [ -n "$BASH_VERSION" ] && [ -f ~/.bashrc ]; then . ~/.bashrc; fi\n'
)
_AMAZON_RELEASE = (
    'PRETTY_NAME="Amazon Linux 2023"\nNAME="Amazon Linux"\nVERSION_ID="2023"\nID="amzn"\nID_LIKE="fedora"\n'
)


def published(folder: Path, base: str = "") -> list[dict[str, Any]]:
    """Write the bases' homes and return the images for ``Rehearsal.seed``.

    Args:
        folder: for the homes; stays as long as the account.
        base: ``image.base`` of an event; one named by its id is published, too.
    """
    kinds = {kind: folder / "bases" / kind for kind in ("ubuntu", "amazon")}
    for kind, place in kinds.items():
        (place / "home").mkdir(parents=True, exist_ok=True)
        (place / "system" / "etc").mkdir(parents=True, exist_ok=True)
        (place / "home" / ".bashrc").write_text(_BASHRC)
        (place / "home" / (".profile" if kind == "ubuntu" else ".bash_profile")).write_text(_LOGIN)
        if kind == "amazon":
            (place / "system" / "etc" / "os-release").write_text(_AMAZON_RELEASE)
    common = {"created": "2026-01-01T00:00:00.000Z", "public": True, "bare": True, "once": True}
    bases = [
        {
            **common,
            "name": name,
            "owner": _AMAZON if kind == "amazon" else _CANONICAL,
            "parameters": parameters,
            "architecture": architecture,
            "root_device": "/dev/xvda" if kind == "amazon" else "/dev/sda1",
            "home": str(kinds[kind] / "home"),
            "system": str(kinds[kind] / "system"),
        }
        for name, parameters, architecture, kind in _BASES
    ]
    if base.startswith("ami-"):
        of_ubuntu = {name: str(kinds["ubuntu"] / name) for name in ("home", "system")}
        bases.append({**common, "name": f"base {base}", "owner": _CANONICAL, "id": base, **of_ubuntu})
    return bases
