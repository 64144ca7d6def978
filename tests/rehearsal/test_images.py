"""Images of the emulated EC2: made of machines, launched from, copied, deregistered; with snapshots, tags and homes."""

import os
import shutil
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from runner.rehearsal.faults import ImageCreationFails
from runner.rehearsal.homes import Homes, copy_tree
from tests.rehearsal.conftest import World, run

NAME = "made 2026-11-23T10-15-30.123Z"


def describe(world: World, image: str) -> dict[str, Any]:
    (found,) = world.ec2.describe_images(ImageIds=[image])["Images"]
    return dict(found)


def available(world: World, image: str) -> dict[str, Any]:
    return dict(World.wait(lambda: describe(world, image), lambda found: found["State"] == "available"))


def make_image(world: World, instance: str, name: str = NAME, **parameters: Any) -> str:
    world.wait_for(instance, "running")
    image = world.ec2.create_image(InstanceId=instance, Name=name, **parameters)["ImageId"]
    available(world, image)
    return str(image)


def refusal(call: Any, **parameters: Any) -> str:
    with pytest.raises(ClientError) as caught:
        call(**parameters)
    return str(caught.value.response["Error"]["Code"])


def tag(kind: str, **tags: str) -> dict[str, Any]:
    return {"ResourceType": kind, "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}


def in_machine(world: World, instance: str, command: str) -> str:
    with world.connect(instance) as ssh:
        code, out, err = run(ssh, command)
        assert code == 0, err
        return out.decode().strip()


def home_of(world: World, instance: str) -> Path:
    return Path(in_machine(world, instance, "pwd"))


def test_a_machine_of_an_image_starts_with_what_the_other_had(world: World) -> None:
    (first,) = world.launch()
    in_machine(world, first, "mkdir -p made && echo content > made/file && ln -s made/file link && chmod 600 made/file")
    in_machine(world, first, 'mkdir -p "$RAMP_CLOUD_ROOT/etc" && echo setting > "$RAMP_CLOUD_ROOT/etc/some.conf"')

    image = make_image(world, first)
    (second,) = world.launch(ImageId=image)

    assert in_machine(world, second, "cat link") == "content"
    assert in_machine(world, second, 'cat "$RAMP_CLOUD_ROOT/etc/some.conf"') == "setting"
    assert stat.S_IMODE((home_of(world, second) / "made/file").stat().st_mode) == 0o600
    in_machine(world, second, "echo changed > made/file")
    assert in_machine(world, first, "cat made/file") == "content"
    (third,) = world.launch(ImageId=image)
    assert in_machine(world, third, "cat made/file") == "content"


def test_programs_find_their_files_on_the_new_machine(world: World) -> None:
    (first,) = world.launch()
    in_machine(
        world,
        first,
        'mkdir tool && echo "cat $PWD/tool/data" > tool/run && echo here > tool/data && ln -s "$PWD/tool" by-link && '
        'echo "export TOOL=$PWD/tool" >> ~/.profile && head -c 100 /dev/zero > tool/binary',
    )
    image = make_image(world, first)
    old = home_of(world, first)
    world.ec2.terminate_instances(InstanceIds=[first])
    world.wait_for(first, "terminated")
    shutil.rmtree(old)

    (second,) = world.launch(ImageId=image)

    home = in_machine(world, second, "pwd")
    assert in_machine(world, second, "sh tool/run") == "here"
    assert in_machine(world, second, "cat by-link/data") == "here"
    assert in_machine(world, second, "bash -lc 'echo $TOOL'") == f"{home}/tool"
    assert in_machine(world, second, "bash -lc 'command -v shutdown'").startswith(str(Path(home).parent))
    assert str(old) not in in_machine(world, second, "cat ~/.profile")


def test_an_image_is_described_as_ec2_does(world: World) -> None:
    (instance,) = world.launch(BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 30}}])
    specifications = [tag("image", **{"ramp-cloud:image": "made"}), tag("snapshot", kept="no")]

    image = make_image(world, instance, TagSpecifications=specifications, Description="a test")

    found = describe(world, image)
    assert (found["Name"], found["OwnerId"], found["Description"]) == (NAME, "123456789012", "a test")
    assert found["Tags"] == [{"Key": "ramp-cloud:image", "Value": "made"}]
    assert (found["RootDeviceName"], found["RootDeviceType"], found["Architecture"]) == ("/dev/sda1", "ebs", "x86_64")
    (device,) = found["BlockDeviceMappings"]
    assert (device["DeviceName"], device["Ebs"]["VolumeSize"]) == ("/dev/sda1", 30)
    (snapshot,) = world.ec2.describe_snapshots(SnapshotIds=[device["Ebs"]["SnapshotId"]])["Snapshots"]
    assert (snapshot["VolumeSize"], snapshot["State"]) == (30, "completed")
    assert snapshot["Tags"] == [{"Key": "kept", "Value": "no"}]
    assert instance in snapshot["Description"]
    by_tag = world.ec2.describe_images(Filters=[{"Name": "tag:ramp-cloud:image", "Values": ["made"]}])["Images"]
    assert [one["ImageId"] for one in by_tag] == [image]
    assert world.ec2.describe_images(Filters=[{"Name": "tag:ramp-cloud:image", "Values": ["other"]}])["Images"] == []


def test_images_of_one_second_can_be_told_apart(world: World) -> None:
    seeded = world.rehearsal.seed(
        images=[
            {"name": "early", "created": "2026-01-01T10:00:00.123Z"},
            {"name": "late", "created": "2026-01-01T10:00:00.124Z"},
        ]
    )["images"]
    dates = [describe(world, seeded[name])["CreationDate"] for name in ("early", "late")]
    assert dates == ["2026-01-01T10:00:00.123Z", "2026-01-01T10:00:00.124Z"]


def test_an_image_is_pending_for_a_while(make_world: Any) -> None:
    world = make_world(image_seconds=3600)
    (instance,) = world.launch()
    world.wait_for(instance, "running")
    image = world.ec2.create_image(InstanceId=instance, Name=NAME)["ImageId"]
    assert describe(world, image)["State"] == "pending"
    assert refusal(world.launch, ImageId=image) == "InvalidAMIID.Unavailable"
    # make_world ends it all the same, and without waiting for the hour to pass


def test_a_reboot_breaks_connections_and_ends_processes_unless_told_otherwise(world: World) -> None:
    (instance,) = world.launch()
    with world.connect(instance) as ssh:
        _, stdout, _ = ssh.exec_command("sleep 1000")
        make_image(world, instance, NoReboot=True)
        transport = ssh.get_transport()
        assert transport
        assert transport.is_active()
        assert any(process["command"] == ["sleep", "1000"] for process in world.rehearsal.processes(instance))
        make_image(world, instance, name="with a reboot")
        assert stdout.read() == b""
        World.wait(transport.is_active, lambda active: not active)
    World.wait(lambda: world.rehearsal.processes(instance), lambda found: found == [])
    World.wait(lambda: world.rehearsal.instance(instance)["console"].count("sshd answers"), lambda count: count == 2)
    assert world.rehearsal.instance(instance)["state"] == "running"
    assert in_machine(world, instance, "echo back") == "back"


def test_a_reboot_forgets_the_timer_of_shutdown(make_world: Any) -> None:
    """As on a real machine: who lets an image be made and goes on must set the timer anew."""
    world = make_world(minute_seconds=2)
    (instance,) = world.launch()
    in_machine(world, instance, "shutdown -P +1")
    make_image(world, instance)
    (other,) = world.launch()
    in_machine(world, other, "shutdown -P +1")
    world.wait_for(other, "terminated")
    assert world.rehearsal.instance(instance)["state"] == "running"


def test_a_machine_that_reboots_itself_comes_back(world: World) -> None:
    (instance,) = world.launch()
    with world.connect(instance) as ssh:
        ssh.exec_command("sudo reboot; sleep 1000")[1].read()
    World.wait(lambda: world.rehearsal.instance(instance)["console"].count("sshd answers"), lambda count: count == 2)
    assert in_machine(world, instance, "echo back") == "back"


def test_an_image_outlives_a_machine_that_ends_meanwhile(make_world: Any) -> None:
    world = make_world(shutdown_seconds=0.2)
    (instance,) = world.launch()
    in_machine(world, instance, "echo kept > file")
    image = world.ec2.create_image(InstanceId=instance, Name=NAME)["ImageId"]
    world.ec2.terminate_instances(InstanceIds=[instance])
    available(world, image)
    world.wait_for(instance, "terminated")
    assert in_machine(world, world.launch(ImageId=image)[0], "cat file") == "kept"


def test_a_stopped_machine_can_be_imaged_and_an_ended_one_cannot(world: World) -> None:
    (instance,) = world.launch()
    in_machine(world, instance, "echo kept > file")
    world.ec2.stop_instances(InstanceIds=[instance])
    world.wait_for(instance, "stopped")
    image = world.ec2.create_image(InstanceId=instance, Name=NAME)["ImageId"]
    available(world, image)
    assert world.rehearsal.instance(instance)["state"] == "stopped"
    assert in_machine(world, world.launch(ImageId=image)[0], "cat file") == "kept"
    world.ec2.terminate_instances(InstanceIds=[instance])
    world.wait_for(instance, "terminated")
    assert refusal(world.ec2.create_image, InstanceId=instance, Name="late") == "IncorrectState"


def test_names_are_unique_and_well_formed(world: World) -> None:
    (instance,) = world.launch()
    image = make_image(world, instance)
    create = world.ec2.create_image
    assert refusal(create, InstanceId=instance, Name=NAME) == "InvalidAMIName.Duplicate"
    assert refusal(create, InstanceId=instance, Name="10:15") == "InvalidAMIName.Malformed"
    assert refusal(create, InstanceId="i-00000000000000000", Name="x y z") == "InvalidInstanceID.NotFound"
    world.ec2.deregister_image(ImageId=image)
    assert make_image(world, instance) != image


def test_an_image_that_fails_says_why(world: World) -> None:
    world.rehearsal.arm(ImageCreationFails(name="made *", message="Client.VolumeLimitExceeded: no room"))
    (instance,) = world.launch()
    world.wait_for(instance, "running")
    image = world.ec2.create_image(InstanceId=instance, Name=NAME)["ImageId"]
    found = World.wait(lambda: describe(world, image), lambda found: found["State"] != "pending")
    assert found["State"] == "failed"
    assert found["StateReason"]["Message"] == "Client.VolumeLimitExceeded: no room"
    world.ec2.deregister_image(ImageId=image)


def test_what_is_deregistered_leaves_its_snapshot_and_nothing_else(world: World, server: Any) -> None:
    (instance,) = world.launch()
    image = make_image(world, instance)
    snapshot = describe(world, image)["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
    folder = home_of(world, instance).parents[2] / "images" / image
    assert folder.is_dir()
    assert refusal(world.ec2.delete_snapshot, SnapshotId=snapshot) == "InvalidSnapshot.InUse"

    world.ec2.deregister_image(ImageId=image)

    assert not folder.exists()
    assert refusal(world.launch, ImageId=image) == "InvalidAMIID.NotFound"
    assert len(world.ec2.describe_snapshots(SnapshotIds=[snapshot])["Snapshots"]) == 1
    world.ec2.delete_snapshot(SnapshotId=snapshot)
    assert refusal(world.ec2.describe_snapshots, SnapshotIds=[snapshot]) == "InvalidSnapshot.NotFound"


def test_an_image_of_others_cannot_be_deregistered(world: World) -> None:
    seeded = world.rehearsal.seed(images=[{"name": "base", "owner": "099720109477", "public": True}])["images"]
    assert refusal(world.ec2.deregister_image, ImageId=seeded["base"]) == "AuthFailure"


def test_a_machine_that_boots_keeps_what_it_copies(make_world: Any, tmp_path: Path) -> None:
    world = make_world(boot_seconds=0.5)
    for number in range(300):
        (tmp_path / str(number)).write_text("x")
    seeded = world.rehearsal.seed(images=[{"name": "base", "home": str(tmp_path)}])["images"]
    (instance,) = world.launch(ImageId=seeded["base"])
    world.ec2.deregister_image(ImageId=seeded["base"])
    world.wait_for(instance, "running")
    assert in_machine(world, instance, "ls | wc -l") == "301"  # and ramp-kits, a link of the settings


def test_a_copy_holds_the_same(world: World) -> None:
    (instance,) = world.launch()
    in_machine(world, instance, "echo kept > file")
    image = make_image(world, instance)
    specifications = [tag("image", copied="yes")]

    copied = world.ec2.copy_image(
        SourceImageId=image, SourceRegion="eu-west-3", Name="a copy", TagSpecifications=specifications
    )["ImageId"]

    world.ec2.deregister_image(ImageId=image)
    assert describe(world, copied)["Tags"] == [{"Key": "copied", "Value": "yes"}]
    assert in_machine(world, world.launch(ImageId=copied)[0], "cat file") == "kept"


def test_a_seeded_home_goes_before_the_image_of_the_settings(world: World, tmp_path: Path) -> None:
    (tmp_path / "ramp-kits/iris").mkdir(parents=True)
    (tmp_path / "ramp-kits/iris/problem.py").write_text("own = True\n")
    seeded = world.rehearsal.seed(images=[{"name": "own", "home": str(tmp_path)}])["images"]
    (instance,) = world.launch(ImageId=seeded["own"])
    assert in_machine(world, instance, "cat ramp-kits/iris/problem.py") == "own = True"
    assert in_machine(world, instance, "bash -lc 'echo \"[$FROM_PROFILE]\"'") == "[]", "not the template's profile"
    assert in_machine(world, instance, "command -v ramp-test").endswith("/ramp-test")


def test_a_bare_image_has_only_what_is_installed_on_it(world: World, tmp_path: Path) -> None:
    seeded = world.rehearsal.seed(images=[{"name": "bare", "home": str(tmp_path), "bare": True}])["images"]
    (instance,) = world.launch(ImageId=seeded["bare"])
    assert in_machine(world, instance, "command -v ramp-test || echo none") == "none"
    image = make_image(world, instance)
    (second,) = world.launch(ImageId=image)
    assert in_machine(world, second, "bash -lc 'command -v ramp-test || echo none'") == "none"


def test_seeding_again_finds_what_is_there(world: World) -> None:
    values: dict[str, Any] = {
        "images": [{"name": "base", "owner": "099720109477", "public": True, "once": True, "parameters": ["/aws/x"]}],
        "instance_profile": "profile",
        "bucket": "a-bucket",
    }
    first = world.rehearsal.seed(**values)
    assert world.rehearsal.seed(**values) == first | {"security_group": ""}


def test_a_parameter_leads_to_a_base_image(world: World, clients: Any) -> None:
    name = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
    image = {"name": "al2023", "owner": "137112412989", "public": True, "parameters": [name]}
    seeded = world.rehearsal.seed(images=[image])["images"]
    assert clients("ssm").get_parameter(Name=name)["Parameter"]["Value"] == seeded["al2023"]


def test_sockets_and_pipes_stay_behind(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "folder").mkdir(parents=True)
    os.mkfifo(source / "folder/pipe")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(source / "socket"))
    listening.close()
    (source / "dangling").symlink_to("nowhere")
    (source / "program").write_text("#!/bin/sh\n")
    (source / "program").chmod(0o755)
    copy_tree(source, target)
    assert {path.name for path in target.rglob("*")} == {"folder", "dangling", "program"}
    assert os.access(target / "program", os.X_OK)


@given(
    before=st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20),
    after=st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20),
)
def test_whatever_stands_around_a_path_stays(before: str, after: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("homes")
    origin, machine = folder / "i-0", folder / "i-1"
    (origin / "home").mkdir(parents=True)
    (origin / "home" / "file").write_text(f"{before}{origin}/home{after}")
    (origin / "home" / "data").write_bytes(f"\0{origin}".encode())
    homes = Homes(folder / "images")
    homes.keep("ami-0", home=origin / "home", origin=origin)
    machine.mkdir()
    homes.bring("ami-0", machine, folder=machine)
    assert (machine / "home" / "file").read_text() == f"{before}{machine}/home{after}"
    assert (machine / "home" / "data").read_bytes() == f"\0{origin}".encode(), "no text"
