"""The parts of a rehearsal that need no server: commands, user data, mixtures of faults, buckets, settings."""

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import UsageError
from runner.rehearsal.calls import Limits, TokenBucket
from runner.rehearsal.cloud_init import read_shutdown, read_user_data
from runner.rehearsal.faults import Armed, NoCapacity, SpotInterruption, load_fault, parse
from runner.rehearsal.protocol import Errand, errand_of, run_of
from runner.rehearsal.settings import load_settings

RUN = "0123456789abcdef0123456789abcdef"


def quoted(*words: str) -> str:
    return shlex.join(words)


@pytest.mark.parametrize(
    ("command", "errand"),
    [
        (quoted("sh", "-c", 'mkdir -p -- "$1" && exec tar -C "$1" --no-same-owner -xmf -', "x", "home"), Errand.UPLOAD),
        ("tar xf -", Errand.OTHER),
        ("tar -x", Errand.UPLOAD),
        ("/usr/bin/tar --extract -f -", Errand.UPLOAD),
        (quoted("sh", "-c", 'if test -d "$1"; then exec tar -C "$1" -cf - .; fi; exec tar -cf - -T x'), Errand.FETCH),
        (
            quoted("sh", "-c", 'cd "$1" && { setsid "$2" "$3" & }', "x", "f", "python3", "a/supervise.py"),
            Errand.SUPERVISE,
        ),
        ("python3 /home/u/.ramp-cloud/bin/watch.py folder 0 --spot", Errand.WATCH),
        (quoted("bash", "-lc", "for program in ramp-test mprof; do command -v $program; done"), Errand.PROBE),
        ("echo tar; ls -x", Errand.OTHER),
        ("echo 'unbalanced", Errand.OTHER),
        ("", Errand.OTHER),
    ],
)
def test_commands_are_told_apart(command: str, errand: Errand) -> None:
    assert errand_of(command) is errand


@given(st.text())
def test_no_command_is_too_strange(command: str) -> None:
    assert errand_of(command) in Errand
    run_of(command)


def test_the_run_is_in_the_folder() -> None:
    assert run_of(f"cat /home/u/.ramp-cloud/runs/{RUN}/log") == RUN
    assert run_of("cat log") == ""


@pytest.mark.parametrize(
    ("words", "minutes", "cancel"),
    [
        ("-P +30", 30, False),
        ("now", 0, False),
        ("-h 5 going", 5, False),
        ("", 1, False),
        ("-c", 1, True),
        ("23:00", 0, False),
    ],
)
def test_the_words_of_shutdown(words: str, minutes: float, cancel: bool) -> None:
    read = read_shutdown(words.split())
    assert read.cancel == cancel
    assert cancel or read.minutes == minutes


def test_user_data_is_read_as_cloud_init_does(tmp_path: Path) -> None:
    path = tmp_path / "user-data"
    keys = "ssh_deletekeys: true\nssh_keys:\n  ed25519_private: |\n    secret\n"
    path.write_text(f"#cloud-config\n{keys}runcmd:\n- [a, 1]\n- b c\nswap: 1\n")
    read = read_user_data(path)
    assert read.host_key == "secret\n"
    assert read.commands == (("a", "1"), ("/bin/sh", "-c", "b c"))
    assert "swap" in read.problem
    path.write_text("")
    assert read_user_data(path).commands == ()


def test_a_mixture_is_named_in_words() -> None:
    faults = parse("spot, capacity,ssh")
    assert any(isinstance(fault, SpotInterruption) for fault in faults)
    assert any(isinstance(fault, NoCapacity) for fault in faults)
    for word in ("spot", "capacity", "ssh", "death", "boot", "disk", "throttling", "api"):
        mixture = parse(word)
        assert any(fault.probability == 1 and fault.times == 1 for fault in mixture), f"{word}: one is sure to strike"
        assert all(fault.times or fault.probability < 1 for fault in mixture), f"{word}: none strikes all"
    assert parse("") == []
    with pytest.raises(UsageError, match=r"spt.*capacity.*spot"):
        parse("spt,ssh")


def test_every_mixture_passes_through_json() -> None:
    for fault in parse("spot,capacity,ssh,death,boot,disk,throttling,api"):
        assert load_fault(fault.model_dump(mode="json")) == fault


@given(
    seed=st.integers(), chance=st.floats(min_value=0.01, max_value=1), skip=st.integers(0, 5), times=st.integers(1, 5)
)
def test_faults_strike_within_their_bounds_and_the_same_again(seed: int, chance: float, skip: int, times: int) -> None:
    fault = NoCapacity(probability=chance, skip=skip, times=times)

    def struck() -> list[int]:
        armed = Armed(seed)
        armed.arm([fault])
        return [len(armed.strike(NoCapacity, lambda _: True)) for _ in range(40)]

    seen = struck()
    assert sum(seen[:skip]) == 0
    assert sum(seen) <= times
    assert chance < 1 or sum(seen) == times
    assert seen == struck()


def test_a_bucket_is_refilled_evenly() -> None:
    bucket = TokenBucket(5, 2)
    assert [bucket.take(100.0) for _ in range(6)] == [True] * 5 + [False]
    assert not bucket.take(100.4)
    assert bucket.take(100.5)
    assert [bucket.take(200.0) for _ in range(6)] == [True] * 5 + [False]
    assert not TokenBucket(5, 2).take(0.0, 6)


def test_launches_share_a_bucket_and_lookups_have_another() -> None:
    limits = Limits()
    assert [limits.allow("RunInstances", 1) for _ in range(3)] == [True] * 3
    assert [limits.allow("CreateFleet", 1) for _ in range(3)] == [True, True, False]
    assert limits.allow("DescribeInstances", 0)
    limits.forget()
    assert not limits.allow("RunInstances", 1001)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"boot_second": 1}, "boot_second"),
        ({"network": "10.0"}, r"127\.1 to 127\.255"),
        ({"network": "127.0"}, r"127\.1 to 127\.255"),
        ({"network": "127.999"}, r"127\.1 to 127\.255"),
        ({"sshd": "openssh", "user": "nobody-of-that-name"}, "log in"),
        ({"status_seconds": -1, "trainings": "none"}, r"status_seconds(.|\n)*trainings"),
    ],
)
def test_wrong_settings_are_refused_all_at_once(values: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_settings(values)
