"""The tasks of an event's image: build, follow, bake, test, list, prune."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from invoke import Context, Exit, task

from runner.front_door import (
    EMULATED,
    EVENT,
    IRIS_AWS,
    LOOK,
    account,
    bring,
    front_door,
    number,
    opened,
    print_json,
    warn,
)


@contextmanager
def _release(config: str | None, deployment_dir: str | None, *, emulated: bool = False) -> Iterator[Any]:
    """Open the images of an event; on an emulated AWS with what `pulumi up` would have made."""
    bring("aws")
    with account(config or str(IRIS_AWS), deployment_dir, emulated=emulated) as (path, folder):
        from image_builder.release import Release

        with opened(path, folder) as event:
            warn(event.config)
            release = Release(config=event.config, store=event.store)
            if emulated:
                from image_builder.emulated import bring_up

                release = bring_up(release)
            yield release


def _follow(release: Any, begin: Callable[[Any], Any]) -> str:
    """Follow a build and return its image, tested. After Ctrl-C it may be cancelled; left alone it goes on in AWS."""
    from image_builder import view

    build = None
    try:
        with view.following() as heard:
            build = begin(heard)
            images = release.follow(build, heard)
    except KeyboardInterrupt:
        if build is None:
            raise
        msg = f"{build} goes on in AWS; `./inv follow-build` shows it again, with --cancel it ends it."
        if view.asks_to_cancel(build):
            release.builder.cancel(build)
            msg = f"{build} is being cancelled; AWS takes some minutes to end its instances."
        raise Exit(msg, code=130) from None
    with view.following() as heard:
        return str(release.accepted(images, heard.note))


@task(
    name="build-image",
    help={**EMULATED, "if_changed": "build nothing when the newest image holds what config.yml says"},
)
@front_door
def build_image(
    _: Context,
    config: str | None = None,
    deployment_dir: str | None = None,
    if_changed: bool = False,
    emulated: bool = False,
) -> None:
    """Build the event's image with its pipeline, test it, and print its id."""
    with _release(config, deployment_dir, emulated=emulated) as release:
        from image_builder import view

        if if_changed and (same := release.unchanged(view.say)):
            view.show_image(same)
            return
        image = _follow(release, release.start)
        if release.section.keep is not None:
            view.say(view.pruning_in_words(release.prune(really=True).as_json()))
        view.show_image(image)


@task(name="follow-build", help={**EVENT, "cancel": "end it in place of following it"})
@front_door
def follow_build(
    _: Context, config: str | None = None, deployment_dir: str | None = None, cancel: bool = False
) -> None:
    """Follow the build that began last, from whatever machine it was started; then test its image."""
    with _release(config, deployment_dir) as release:
        from image_builder import view

        build = release.running()
        if cancel:
            release.builder.cancel(build)
            view.say(f"{build} is being cancelled; AWS takes some minutes to end its instances.")
            return
        view.show_image(_follow(release, lambda _: build))


@task(
    name="bake-image",
    help={**EMULATED, "local": "only run the documents, in this folder of this machine; nothing is launched"},
)
@front_door
def bake_image(
    _: Context,
    config: str | None = None,
    deployment_dir: str | None = None,
    local: str | None = None,
    emulated: bool = False,
) -> None:
    """Build the event's image over SSH, without Image Builder, test it, and print its id."""
    with _release(config, deployment_dir, emulated=emulated) as release:
        from image_builder import view

        with view.following() as heard:
            if local is not None:
                release.try_here(Path(local), heard.line)
                heard.note(f"every document ran to its end in {local}")
                return
            images = {release.session.region(): release.bake(heard)}
            image = release.accepted(images, heard.note)
        view.show_image(image)


@task(name="test-image", help={**EMULATED, "ami": "the image (default: the newest of the event)"})
@front_door
def accept_image(
    _: Context,
    config: str | None = None,
    deployment_dir: str | None = None,
    ami: str | None = None,
    emulated: bool = False,
) -> None:
    """Launch one instance of an image, train the starting kit on it as an event would, and mark the image."""
    with _release(config, deployment_dir, emulated=emulated) as release:
        from image_builder import view

        with view.following() as heard:
            image = release.accepted({release.session.region(): ami or release.newest()}, heard.note)
        view.show_image(image)


@task(help={**LOOK, "emulated": EMULATED["emulated"]})
@front_door
def images(
    _: Context,
    config: str | None = None,
    deployment_dir: str | None = None,
    json_: bool = False,
    emulated: bool = False,
) -> None:
    """Show the event's images: what they hold, whether they passed their test, what uses them."""
    with _release(config, deployment_dir, emulated=emulated) as release:
        from image_builder import view

        found = release.listing().as_json()
    if json_:
        print_json(found)
    else:
        view.show_images(found)


@task(
    name="prune-images",
    help={
        **LOOK,
        "keep": "how many of the newest images stay (default: image.keep of config.yml)",
        "yes": "do it; without this it is only said",
        "emulated": EMULATED["emulated"],
    },
)
@front_door
def prune_images(
    _: Context,
    config: str | None = None,
    deployment_dir: str | None = None,
    keep: str = "",
    yes: bool = False,
    json_: bool = False,
    emulated: bool = False,
) -> None:
    """Remove old images, their snapshots, and what Image Builder kept of them. Without --yes nothing is done."""
    with _release(config, deployment_dir, emulated=emulated) as release:
        from image_builder import view

        pruned = release.prune(number(keep, "--keep", int) if keep else None, really=yes)
    if json_:
        print_json(pruned.as_json())
    else:
        view.show_pruning(pruned.as_json())
    if pruned.failed:
        msg = ""
        raise Exit(msg, code=1)
