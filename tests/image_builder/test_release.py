"""What `./inv build-image --if-changed` does with an image that is there already."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from image_builder.release import Release
from runner.aws.ec2 import Ec2
from runner.aws.tags import ACCEPTED, CONTENT, REJECTED, as_list
from runner.event import open_event
from runner.rehearsal.emulation import Emulation, emulated

IRIS = Path(__file__).parents[2] / "examples" / "iris" / "aws.yml"


@pytest.fixture(scope="module")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulation]:
    """The bundled event, with an image in its account that nobody built."""
    with emulated(IRIS, folder=tmp_path_factory.mktemp("account"), settings={"ssh_seconds": 0}) as made:
        yield made


@pytest.fixture
def release(emulation: Emulation, monkeypatch: pytest.MonkeyPatch) -> Iterator[Release]:
    """The images of that event; every test's environment begins without AWS."""
    for name, value in emulation.aws.environment.items():
        monkeypatch.setenv(name, value)
    with open_event(emulation.config) as event:
        yield Release(config=event.config, store=event.store)


def retagged(release: Release, **tags: str | None) -> str:
    """Give the event's image these tags, take away those that are None, and return its id."""
    (image,) = Ec2(release.session).images("iris")
    given = {CONTENT: tags.get("content"), ACCEPTED: tags.get("accepted")}
    release.session.call("ec2", "delete_tags", Resources=[image.id], Tags=[{"Key": key} for key in given])
    kept = {key: value for key, value in given.items() if value is not None}
    if kept:
        release.session.call("ec2", "create_tags", Resources=[image.id], Tags=as_list(kept))
    return image.id


def test_an_image_of_the_same_content_is_good_enough(release: Release) -> None:
    image = retagged(release, content=release.plan.content, accepted="2026-11-23T10:15:00Z")
    said: list[str] = []
    assert release.unchanged(said.append) == image
    assert said == [f"{image} holds what config.yml says (content {release.plan.content}); nothing is built"]


@pytest.mark.parametrize("accepted", ["2026-11-23T10:15:00Z", None, REJECTED])
def test_other_content_is_not(release: Release, accepted: str | None) -> None:
    retagged(release, content="0" * 16, accepted=accepted)
    assert release.unchanged([].append) is None


def test_neither_is_one_that_failed_its_test(release: Release) -> None:
    retagged(release, content=release.plan.content, accepted=REJECTED)
    assert release.unchanged([].append) is None


def test_one_whose_test_was_interrupted_is_tested_now(release: Release) -> None:
    image = retagged(release, content=release.plan.content)
    said: list[str] = []
    assert release.unchanged(said.append) == image
    assert "training starting_kit on it" in said
    (found,) = Ec2(release.session).images("iris")
    assert found.accepted
