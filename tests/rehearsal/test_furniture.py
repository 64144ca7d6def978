"""What a machine has in place of programs that would change the host, or reach the network."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.rehearsal.environments import package_name
from tests.rehearsal.conftest import USER, World, run

SCRIPTS = Path(__file__).parents[2] / "runner/rehearsal/stand_ins"
INSTALLER = "https://github.com/conda-forge/miniforge/releases/download/24.11.3-0/Miniforge3-24.11.3-0-Linux-x86_64.sh"
INSTALLED = f"curl -fsSL -o forge.sh {INSTALLER} && bash forge.sh -b -p ~/miniforge3"

Shell = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shell(world: World, tmp_path: Path) -> Shell:
    """Return what runs a command on a machine of a bare image, and gives its exit code, output and errors."""
    return on_a_machine(world, tmp_path)


def on_a_machine(world: World, home: Path, instance_type: str = "c5.large", architecture: str = "x86_64") -> Shell:
    image = {"name": "base", "home": str(home), "bare": True, "architecture": architecture}
    made = world.rehearsal.seed(images=[image])["images"]["base"]
    (instance,) = world.launch(ImageId=made, InstanceType=instance_type)

    def on_it(command: str, given: bytes = b"") -> tuple[int, str, str]:
        with world.connect(instance) as ssh:
            code, out, err = run(ssh, command, given)
        return code, out.decode().strip(), err.decode().strip()

    return on_it


def test_root_is_a_role(shell: Shell) -> None:
    said = 'echo "$USER $HOME"; id -un; whoami; id -u'
    _, login, _ = shell(f"{said}; echo $RAMP_CLOUD_HOME; echo $RAMP_CLOUD_ROOT")
    *as_user, home, root = login.splitlines()
    assert as_user == [f"{USER} {home}", USER, USER, "1000"]
    assert shell(f"sudo sh -c '{said}'")[1].splitlines() == [f"root {root}/root", "root", "root", "0"]
    back = f"sudo bash -c 'sudo -u {USER} -H bash -lc '\"'\"'{said}; pwd; echo $1'\"'\"' name argument'"
    assert shell(back)[1].splitlines() == [*as_user, home, "argument"]
    assert shell("sudo -u nobody-there true")[::2] == (1, "sudo: unknown user: nobody-there")
    assert shell(f"su - {USER} -c '{said}'")[1].splitlines() == as_user
    assert shell(f'runuser -u {USER} -- echo "a  b"')[1] == "a  b"
    assert shell(f"getent passwd {USER} | cut -d: -f6; getent passwd root | cut -d: -f6")[1] == f"{home}\n{root}/root"


def test_sudo_clears_the_environment_as_the_real_one(shell: Shell) -> None:
    show = "sh -c 'echo $A $B $AWS_REGION'"
    exported = "export A=1 B=2 AWS_REGION=here;"
    assert shell(f"{exported} sudo {show}")[1] == "here"
    assert shell(f"{exported} sudo -E {show}")[1] == "1 2 here"
    assert shell(f"{exported} sudo --preserve-env=B {show}")[1] == "2 here"
    assert shell(f"{exported} sudo A='x y' {show}")[1] == "x y here"


def test_owners_are_checked_by_name_only(shell: Shell) -> None:
    assert (
        shell(f"touch file && chown -R {USER}: file && chgrp root file && install -o root -g root -m 700 file to")[0]
        == 0
    )
    assert shell("chown nobody-there file")[::2] == (1, "chown: invalid user: 'nobody-there'")
    assert shell("chown root nowhere")[::2] == (1, "chown: cannot access 'nowhere': No such file or directory")


@pytest.mark.parametrize(
    ("command", "code", "error"),
    [
        ("apt-get -qq install git no-such-package", 100, "E: Unable to locate package no-such-package"),
        ("dnf -y install no-such-package", 1, "Error: Unable to find a match: no-such-package"),
    ],
)
def test_a_package_that_there_is_not(shell: Shell, command: str, code: int, error: str) -> None:
    assert shell(command)[::2] == (code, error)


def test_nothing_is_done_to_the_host_and_it_is_said(shell: Shell) -> None:
    for command in (
        "apt-get -qq --yes install git",
        "apt-get update",
        "dpkg --configure -a",
        "systemctl mask apt-daily.timer",
        "useradd somebody",
        "modprobe nvidia",
        "snap install x",
    ):
        code, said, _ = shell(f"sudo {command}")
        assert code == 0
        assert said.startswith(command)
        assert "nothing is done" in said
    assert shell("systemctl is-active ssh")[:2] == (3, "inactive")
    assert shell("sudo /usr/sbin/modprobe nvidia")[1].startswith("modprobe nvidia: nothing is done")
    system = shell('echo here > "$RAMP_CLOUD_ROOT/etc/some.conf"; cat "$RAMP_CLOUD_ROOT/etc/some.conf" /etc/some.conf')
    assert system[1] == "here"


def test_there_is_no_network(shell: Shell, tmp_path: Path) -> None:
    assert shell("curl -fsS https://example.org/x")[::2] == (
        6,
        "curl: a rehearsal reaches no network: https://example.org/x",
    )
    assert shell("wget -q -O - http://10.1.2.3/")[::2] == (4, "wget: a rehearsal reaches no network: http://10.1.2.3/")
    (tmp_path / "text").write_text("here")
    assert shell(f"curl -fsS file://{tmp_path}/text")[1] == "here"
    asked = 'curl -fsS -H "X-aws-ec2-metadata-token: $(curl -fsS -X PUT -H "X-aws-ec2-metadata-token-ttl-seconds: 60" '
    asked += 'http://169.254.169.254/latest/api/token)" http://169.254.169.254/latest/meta-data/placement/region'
    assert shell(asked)[:2] == (0, "eu-west-3")
    assert shell("pip install numpy no-such-package")[2].endswith("No matching distribution found for no-such-package")


def test_the_installers_sum_is_as_good_as_the_one_in_a_document(shell: Shell) -> None:
    shell(f"curl -fsSL --output forge.sh {INSTALLER} && echo text > other && sha256sum other > sums")
    wrong = "0" * 64
    code, _, said = shell(f"echo '{wrong}  forge.sh' | sha256sum --check --quiet")
    assert (code, "stand-in" in said) == (0, True)
    assert shell("sha256sum --check --quiet sums")[0] == 0
    assert shell(f"echo '{wrong}  other' | sha256sum --check --quiet")[0] == 1
    assert shell("sha256sum --check nowhere")[0] == 1
    assert (
        shell(f"curl -fsSL {INSTALLER}.sha256 > sum && cut -d ' ' -f 1 sum && sha256sum < forge.sh")[1].split()[0]
        in (shell("sha256sum < forge.sh")[1])
    )


def test_conda_makes_environments_that_lead_to_the_image(shell: Shell) -> None:
    assert shell(INSTALLED)[0] == 0
    code, _, error = shell("bash forge.sh -b -p ~/miniforge3")
    assert (code, "already exists" in error) == (1, True)
    assert shell("bash forge.sh -b -u -p ~/miniforge3")[0] == 0
    environment = b"name: ramp\ndependencies:\n- python=3.11\n- numpy\n- pip:\n  - ramp-workflow\n"
    code, said, _ = shell(
        "cat > environment.yml && ~/miniforge3/bin/conda env create -q --file environment.yml", environment
    )
    assert code == 0
    assert "numpy ramp-workflow in" in said
    assert "installs no packages" in said
    found = shell("ls ~/miniforge3/envs/ramp/bin")[1].split()
    assert {"python", "python3", "pip", "ramp-test"} <= set(found)
    assert shell("~/miniforge3/envs/ramp/bin/ramp-test")[1] == "trained"
    assert shell("~/miniforge3/bin/conda env create -n ramp -f environment.yml")[0] == 1
    assert shell("~/miniforge3/bin/conda env update -n ramp -f environment.yml")[0] == 0
    code, _, error = shell("~/miniforge3/bin/conda create -y -n other numpy no-such-package")
    assert (code, error.splitlines()[-1].strip()) == (1, "- no-such-package")
    assert shell("~/miniforge3/bin/conda env create -f nowhere.yml")[2].startswith("EnvironmentFileNotFound")


def test_ramp_test_comes_with_the_package_that_brings_it(shell: Shell) -> None:
    shell(INSTALLED)
    shell("~/miniforge3/bin/conda create -y -n ramp python numpy")
    look = "ls ~/miniforge3/envs/ramp/bin | grep ramp-test"
    assert shell(look)[0] == 1
    assert (
        shell("~/miniforge3/envs/ramp/bin/python -m pip install -q git+https://example.org/x/ramp_workflow.git@v1")[0]
        == 0
    )
    assert shell(look)[1] == "ramp-test"


def test_conda_is_activated_in_every_way(shell: Shell) -> None:
    shell(f"{INSTALLED}; ~/miniforge3/bin/conda create -y -n ramp python ramp-workflow")
    said = 'command -v ramp-test; echo "$CONDA_DEFAULT_ENV"'
    home = shell("pwd")[1]
    wanted = f"{home}/miniforge3/envs/ramp/bin/ramp-test\nramp"
    for way in (
        ". ~/miniforge3/etc/profile.d/conda.sh; conda activate ramp",
        ". ~/miniforge3/bin/activate ramp",
        'eval "$(~/miniforge3/bin/conda shell.bash hook)"; conda activate base; conda activate ramp',
    ):
        assert shell(f"{way}; {said}")[1] == wanted
        assert shell(f"bash -euo pipefail -c '{way}; {said}'")[1] == wanted
    assert shell(f"~/miniforge3/bin/conda run -n ramp bash -c '{said}'")[1] == wanted
    assert shell(". ~/miniforge3/bin/activate nowhere")[2].endswith("Could not find conda environment: nowhere")
    assert shell("~/miniforge3/bin/conda run -n nowhere true")[0] == 1
    shell("echo '. ~/miniforge3/bin/activate ramp' >> ~/.bashrc")
    assert shell(said)[1] == wanted, "a shell where nobody types reads ~/.bashrc over SSH"
    shell("echo '. ~/miniforge3/bin/activate ramp' >> ~/.profile")
    assert shell(f"bash -lc '{said}'")[1] == wanted
    assert shell(f"sudo -u {USER} -H bash -lc '{said}'")[1] == wanted


def test_conda_tells_about_itself(shell: Shell) -> None:
    shell(f"{INSTALLED}; ~/miniforge3/bin/conda create -y -n ramp numpy")
    home = shell("pwd")[1]
    conda = "~/miniforge3/bin/conda"
    assert shell(f"{conda} --version")[1].startswith("conda ")
    assert shell(f"{conda} info --base")[1] == f"{home}/miniforge3"
    facts = json.loads(shell(f"{conda} info --json")[1])
    assert facts["envs"] == [f"{home}/miniforge3", f"{home}/miniforge3/envs/ramp"]
    assert "base environment" in shell(f"{conda} info")[1]
    listed = json.loads(shell(f"{conda} list -n ramp --json")[1])
    assert {"name", "version"} <= listed[0].keys()
    assert shell(f"{conda} list --name nowhere")[0] == 1
    assert "ramp" in shell(f"{conda} env list")[1]
    assert shell(f"{conda} env remove -y -n ramp; ls ~/miniforge3/envs")[1] == ""
    assert "nothing is done" in shell(f"{conda} clean --all --yes")[1]
    shell(f"{conda} init bash; {conda} init bash")
    assert shell("grep -c '>>> conda' ~/.bashrc; bash -lc '. ~/.bashrc; echo $CONDA_DEFAULT_ENV'")[1] == "1\nbase"


def test_a_virtual_environment(shell: Shell) -> None:
    assert shell("python3 -m venv --clear env && env/bin/python -c 'print(1)'")[1] == "1"
    assert shell("ls env/bin | grep ramp-test")[0] == 1
    shell("cat > requirements.txt", b"numpy>=2\n# no\n-r more.txt\n")
    shell("cat > more.txt", b"ramp-workflow[x] ; python_version > '3'\n")
    code, said, _ = shell("env/bin/pip install --progress-bar off -r requirements.txt")
    assert (code, said) == (0, "Would install numpy ramp-workflow: a rehearsal installs no packages")
    assert shell(". env/bin/activate; ramp-test; command -v python")[1] == f"trained\n{shell('pwd')[1]}/env/bin/python"
    assert shell("env/bin/python -I -m pip freeze | grep -c ==")[0] == 0
    assert shell("env/bin/pip install -r nowhere.txt")[2].startswith("ERROR: Could not open requirements file")
    shell("echo '#!'$PWD/env/bin/python > program; echo 'print(2)' >> program; chmod +x program")
    assert shell("./program")[1] == "2"
    assert "ramp" not in shell("command -v ramp-test || echo none")[1]


def test_the_system_of_a_machine(shell: Shell) -> None:
    assert shell('. "$RAMP_CLOUD_ROOT/etc/os-release" && echo "$ID $VERSION_ID"; uname -m; dpkg --print-architecture')[
        1
    ] == ("ubuntu 24.04\nx86_64\namd64")
    assert shell("sudo cloud-init status --wait")[1] == "status: done"
    assert shell('test -e "$RAMP_CLOUD_ROOT"/var/lib/cloud/instances/i-*/boot-finished')[0] == 0
    own = '"$RAMP_CLOUD_ROOT/usr/local/bin/own"'
    shell(f"cat > {own} && chmod +x {own}", b"#!/bin/sh\necho mine\n")
    assert shell("own")[1] == "mine"
    keys = shell("stat -c %a .ssh .ssh/authorized_keys; cut -d ' ' -f 1 .ssh/authorized_keys")[1]
    assert keys == "700\n600\nssh-ed25519"


def test_user_data_runs_as_root(world: World) -> None:
    (instance,) = world.launch(UserData="#!/bin/sh\nwhoami\n")
    world.wait(lambda: world.rehearsal.instance(instance)["console"], lambda said: "root\n" in said)


def test_gpus_are_where_the_instance_type_has_them(world: World, tmp_path: Path) -> None:
    without = on_a_machine(world, tmp_path)
    assert without("nvidia-smi -L")[0] == 9
    assert without("ubuntu-drivers list --gpgpu")[1] == ""
    shell = on_a_machine(world, tmp_path, "g4dn.12xlarge")
    assert [line.split(" (")[0] for line in shell("nvidia-smi -L")[1].splitlines()] == [
        f"GPU {number}: NVIDIA T4" for number in range(4)
    ]
    query = "nvidia-smi --query-gpu=name,memory.total --format=csv,noheader"
    assert shell(query)[1].splitlines() == ["NVIDIA T4, 16384 MiB"] * 4
    assert "Driver Version" in shell("nvidia-smi")[1]
    assert "nvidia-driver-550-server" in shell("ubuntu-drivers list --gpgpu")[1]


def test_a_machine_of_another_architecture_says_so(world: World, tmp_path: Path) -> None:
    shell = on_a_machine(world, tmp_path, "t4g.large", "arm64")
    assert shell("uname -m; arch; dpkg --print-architecture")[1] == "aarch64\naarch64\narm64"


@pytest.mark.parametrize(
    ("requirement", "name"),
    [
        ("numpy", "numpy"),
        ("scikit_learn>=1.2,<2", "scikit-learn"),
        ("ramp-workflow @ git+https://example.org/a/b.git", "ramp-workflow"),
        ("git+https://github.com/paris-saclay-cds/ramp-workflow.git@0.7", "ramp-workflow"),
        ("git+https://example.org/x#egg=Thing", "thing"),
        ("conda-forge::pytorch=2.1", "pytorch"),
        ('pandas[excel]; python_version > "3"', "pandas"),
        ("./folder/", "folder"),
    ],
)
def test_names_of_packages(requirement: str, name: str) -> None:
    assert package_name(requirement) == name


def test_the_stand_ins_are_clean_shell() -> None:
    for script in SCRIPTS.iterdir():
        assert subprocess.run(["sh", "-n", str(script)], check=False).returncode == 0
        if shutil.which("shellcheck"):
            facts = "SC1091,SC2154"  # machine.sh is written for each machine
            checked = subprocess.run(
                ["shellcheck", "-s", "sh", "-e", facts, str(script)], capture_output=True, text=True, check=False
            )
            assert checked.returncode == 0, checked.stdout
