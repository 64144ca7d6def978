"""From an event's config to the plan of its image: documents, base, and versions that say whether anything changed."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from image_builder import documents as component
from image_builder import fetch_data
from image_builder.document_checks import check
from image_builder.documents import Document
from image_builder.kit import FolderKit, GitKit, Kit, folder_kit, git_kit
from runner import supervise, watch
from runner.aws.tags import CONTENT, IMAGE
from runner.config import AwsSection, EventConfig
from runner.config_image import ImageSection
from runner.config_types import GIT_ADDRESS
from runner.errors import ConfigError, ImageError, RampCloudError

DISTRIBUTED = "2026.8.0"  # of a Dask cluster's machines: the dispatcher's own, see requirements/dask.txt
NOTHING = "-"  # the value of a parameter that means nothing here; AWS takes no empty ones
_CONTENT_DIGITS = 16
_UBUNTU = "ssm:/aws/service/canonical/ubuntu/server/{}/stable/current/{}/hvm/{}/ami-id"
_AMAZON = "ssm:/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-{}"
# Where AWS and Canonical publish the newest image of each base.
BASES = {
    "ubuntu-24.04": _UBUNTU.format("24.04", "amd64", "ebs-gp3"),
    "ubuntu-24.04-arm64": _UBUNTU.format("24.04", "arm64", "ebs-gp3"),
    "ubuntu-22.04": _UBUNTU.format("22.04", "amd64", "ebs-gp2"),
    "ubuntu-22.04-arm64": _UBUNTU.format("22.04", "arm64", "ebs-gp2"),
    "amazon-linux-2023": _AMAZON.format("x86_64"),
    "amazon-linux-2023-arm64": _AMAZON.format("arm64"),
}
# The key of config.yml that a parameter's value comes from.
_KEYS = {
    "user": "image.user",
    "kit_folder": "remote_ramp_kit_folder",
    "kit_address": "image.kit",
    "data_source": "image.data_source",
    "secret_name": "image.data_secret",
    "environment_files": "image.environment_file",
    "sandbox": "sandbox_dir",
}
_ENVIRONMENT_FILES = {"conda": ("environment.yml", "ami_environment.yml"), "pip": ("requirements.txt",)}


@dataclass(frozen=True, kw_only=True)
class ImagePlan:
    """What an image is made of and how. Equal ``content``: the images hold the same, wherever the plan was made.

    Attributes:
        documents: in the order of running.
        parent: "ami-…", or "ssm:/…" for the SSM parameter that leads to the newest AMI of a base.
        architecture: x86_64 or arm64.
        volume_gb: size of the root volume in GiB.
        root_device: its name in the base; None for a base that is an AMI id: EC2 tells.
        regions: that get the image; empty when config.yml names none and leaves the region to the stack.
        content: 16 hex digits.
        version: of the recipe, ``1.<n>.x``; n changes with the content, and with the bucket that the kit comes from.
            AWS puts the next number in place of the x, so that a content that comes back is no conflict.
        ami_name: with ``{{ imagebuilder:buildDate }}`` in it.
        ami_tags: ramp-cloud:image and ramp-cloud:content.
    """

    name: str
    user: str
    documents: tuple[Document, ...]
    parent: str
    architecture: str
    volume_gb: int
    root_device: str | None
    instance_type: str
    regions: tuple[str, ...]
    schedule: str | None
    gpu: bool
    kit: Kit
    content: str
    version: str
    ami_name: str
    ami_tags: dict[str, str]


def plan(config: EventConfig, *, bucket: str | None) -> ImagePlan:
    """Plan the image that config.yml's ``image`` section asks for.

    Args:
        bucket: where a kit given as a folder is put for Image Builder. None: whoever runs the documents brings its
            archive to ``documents.ARCHIVE``, or there is no stack yet.

    Raises:
        ConfigError: with all problems of config, kit and documents at once.
        ImageError: the kit's repository cannot be asked.
    """
    image, worker = config.image, config.worker
    if image is None or not isinstance(worker, AwsSection):
        msg = f"{config.path}: there is no section image:, so nothing says what its image is made of; add `image:`"
        raise ConfigError(msg)
    problems: list[str] = []
    kit, kit_error = _kit(image)
    if isinstance(kit, FolderKit):
        problems += _missing_in(kit.folder, image, sandbox=config.ramp.sandbox_dir)
    dask = config.infra is not None and config.infra.dask
    values = _values(image, worker, kit, bucket, sandbox=config.ramp.sandbox_dir, dask=dask)
    problems += _unfit(values)
    problems += _twice(image.documents)
    documents, contents = _documents(image, kit, values, problems)
    if kit is None or problems:
        raise _refused(config.path, problems, kit_error)
    content = _digest([contents, image.base, image.volume_gb])[:_CONTENT_DIGITS]
    # The recipe names the components' versions, so whatever changes one of them makes another recipe.
    recipe = _digest([content, [[document.name, document.version] for document in documents]])
    return ImagePlan(
        name=image.name,
        user=image.user,
        documents=tuple(documents),
        parent=BASES.get(image.base, image.base),
        architecture=_architecture(image),
        volume_gb=image.volume_gb,
        root_device=_root_device(image.base),
        instance_type=image.instance_type,
        regions=tuple(image.regions),
        schedule=image.schedule,
        gpu=image.gpu,
        kit=kit,
        content=content,
        version=recipe_version(recipe),
        ami_name=f"{image.name} {{{{ imagebuilder:buildDate }}}}",
        ami_tags={IMAGE: image.name, CONTENT: content},
    )


def recipe_version(content: str) -> str:
    """Return the version that is asked for of a recipe with a content: ``1.<n>.x``."""
    return component.version_of(content).rpartition(".")[0] + ".x"


def component_version(asked: str, there: Iterable[str], *, is_new: bool) -> str:
    """Return the version of a document's component: ``1.<n>.<count>``.

    n is that of its text, count says how often the text had changed. The newest one there is the one in use, so the
    same text keeps its version, and a text that comes back gets one that nobody had: AWS knows no ``x`` here, and may
    refuse a version that it has.

    Args:
        asked: version of the document.
        there: versions of the component that AWS has, without builds.
        is_new: those are of an image that left the stack, so none is in use.
    """
    family, _, _ = asked.rpartition(".")
    newest = max(there, key=lambda version: int(version.rpartition(".")[2]), default=None)
    if newest is None:
        return f"{family}.0"
    used, _, count = newest.rpartition(".")
    return f"{family}.{int(count) + (is_new or used != family)}"


def is_version(made: str, asked: str) -> bool:
    """Whether the version of a recipe in AWS is one that a plan's ``version`` stands for."""
    return made.rpartition(".")[0] == asked.rpartition(".")[0]


def _kit(image: ImageSection) -> tuple[Kit | None, RampCloudError | None]:
    try:
        if re.fullmatch(GIT_ADDRESS, image.kit):
            return git_kit(image.kit, image.kit_ref), None
        return folder_kit(Path(image.kit)), None
    except (ConfigError, ImageError) as error:
        return None, error


def _documents(
    image: ImageSection, kit: Kit | None, values: Mapping[str, str], problems: list[str]
) -> tuple[list[Document], list[list[str]]]:
    """Return the documents, and what of them decides what the image holds: their texts but for where the kit lies."""
    documents, contents = [], []
    is_folder = not re.fullmatch(GIT_ADDRESS, image.kit)
    for name, path in component.paths_for(image, folder_kit=is_folder):
        try:
            raw = component.read(path)
        except ConfigError as error:
            problems.append(error.message)
            continue
        found = check(name, path, raw, values)
        problems += found
        if found or kit is None:
            continue
        is_brought = path == component.KIT_ARCHIVE and values["kit_archive"] == NOTHING
        whole = component.render(name, path, component.without(raw, "S3Download") if is_brought else raw, values)
        neutral = whole
        if path == component.KIT_ARCHIVE and not is_brought:
            elsewhere = {**values, "kit_archive": NOTHING}
            neutral = component.render(name, path, component.without(raw, "S3Download"), elsewhere)
        documents.append(whole)
        contents.append([name, neutral.text])
    return documents, contents


def _values(
    image: ImageSection, worker: AwsSection, kit: Kit | None, bucket: str | None, *, sandbox: str, dask: bool
) -> dict[str, str]:
    """Return what documents may have a parameter for."""
    home = f"/home/{image.user}/"
    folder = worker.remote_ramp_kit_folder.rstrip("/")
    git = kit if isinstance(kit, GitKit) else None
    files = [image.environment_file] if image.environment_file else _ENVIRONMENT_FILES[image.environment]
    return {
        "user": image.user,
        # As it is seen from the home folder, so that the same document runs where the home is another folder.
        "kit_folder": f"~/{folder.removeprefix(home)}" if folder.startswith(home) else folder,
        "kit_address": git.address if git else NOTHING,
        "kit_version": kit.version if kit else NOTHING,
        "kit_archive": f"s3://{bucket}/{kit.key}" if bucket and isinstance(kit, FolderKit) else NOTHING,
        "sandbox": sandbox,
        "environment": image.environment,
        "environment_files": ":".join(files),
        "data": image.data,
        "data_source": image.data_source or NOTHING,
        "distributed": DISTRIBUTED if dask else NOTHING,
        "secret_name": image.data_secret or NOTHING,
        "fetch_data": component.packed(Path(fetch_data.__file__)),
        "programs": component.packed(Path(supervise.__file__), Path(watch.__file__)),
    }


def _unfit(values: Mapping[str, str]) -> Iterator[str]:
    """Yield what would break out of the single quotes that stand around a parameter in every script."""
    for name, value in values.items():
        if re.search(r"['\x00-\x1f\x7f]|\{\{|\}\}", value):
            yield (
                f"{_KEYS.get(name, name)}: {value!r} holds a quotation mark, a control character or double braces, "
                "which no script of an image can take; choose another name"
            )


def _twice(documents: Sequence[Path]) -> Iterator[str]:
    for place, path in enumerate(documents):
        for other in documents[:place]:
            if other.stem == path.stem:
                yield f"image.documents: {other} and {path} have one name; rename one"


def _missing_in(folder: Path, image: ImageSection, *, sandbox: str) -> Iterator[str]:
    wanted = ["problem.py", f"submissions/{sandbox}"]
    if image.data == "script" or (image.data == "osf" and image.data_source):
        wanted.append(image.data_source or "prepare_data.py")
    for name in wanted:
        if not (folder / name).exists():
            yield f"image.kit: {folder} has no {name}; add it, or correct the path"
    files = [image.environment_file] if image.environment_file else list(_ENVIRONMENT_FILES[image.environment])
    own = {path.stem for path in image.documents}
    if "environment" not in own and not any((folder / name).is_file() for name in files):
        yield (
            f"image.environment: {image.environment} needs {' or '.join(files)} in {folder}; add it, or set "
            "environment_file"
        )


def _refused(path: Path, problems: list[str], kit_error: RampCloudError | None) -> RampCloudError:
    if kit_error and not problems:
        return kit_error
    found = [*([kit_error.message] if kit_error else []), *problems]
    listed = "\n".join(f"  {problem}" for problem in found)
    plural = "problems" if len(found) > 1 else "problem"
    return ConfigError(f"{path}: the image cannot be planned, {len(found)} {plural}:\n{listed}")


def _architecture(image: ImageSection) -> str:
    if image.base.startswith("ami-"):  # the machine must fit the image, so its type tells
        return "arm64" if re.match(r"(a1|[a-z]+[0-9]+g[a-z]*)\.", image.instance_type) else "x86_64"
    return "arm64" if image.base.endswith("-arm64") else "x86_64"


def _root_device(base: str) -> str | None:
    if base.startswith("ami-"):
        return None
    return "/dev/xvda" if base.startswith("amazon-linux") else "/dev/sda1"


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
