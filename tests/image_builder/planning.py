"""A copy of the bundled event whose image can be planned and tried in a folder, and documents of a test's own."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from image_builder import documents
from image_builder.documents import Document
from image_builder.recipe import ImagePlan, plan
from runner.config import EventConfig, load_config

IRIS = Path(__file__).parents[2] / "examples" / "iris"


class IrisEvent:
    """The bundled event in a folder of a test; ``kit`` is its kit, keywords are keys of the image section."""

    def __init__(self, folder: Path, **image: Any) -> None:
        self.folder = folder
        self.kit = folder / "ramp-kits" / "iris"
        ignored = shutil.ignore_patterns("__pycache__", "training_output", "predictions", "logs")
        shutil.copytree(IRIS, folder, ignore=ignored)
        self.keys = yaml.safe_load((IRIS / "aws.yml").read_text())
        self.image = image

    def config(self, **keys: Any) -> EventConfig:
        """Return the config with keys of the event's own changed."""
        file = self.folder / "config.yml"
        file.write_text(yaml.safe_dump({**self.keys, **keys, "image": self.image}))
        return load_config(file)

    def plan(self, *, bucket: str | None = None, **image: Any) -> ImagePlan:
        """Return the plan, with keys of the image section added."""
        self.image |= image
        return plan(self.config(), bucket=bucket)


def document(name: str, scripts: dict[str, dict[str, Any]], **keys: Any) -> Document:
    """Return a rendered document: phase -> step -> a script, or a whole step but for its name."""
    phases = [{"name": phase, "steps": [_step(*item) for item in steps.items()]} for phase, steps in scripts.items()]
    content = {"name": name, "schemaVersion": 1.0, **keys, "phases": phases}
    return documents.render(name, Path(f"{name}.yaml"), content, {})


def _step(name: str, step: Any) -> dict[str, Any]:
    if isinstance(step, str):
        step = {"action": "ExecuteBash", "inputs": {"commands": [step]}}
    return {"name": name, **step}


def git(folder: Path, *words: str) -> str:
    """Run git in a folder, as somebody whose own settings do not matter, and return what it says."""
    who = {"GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_CONFIG_GLOBAL": os.devnull}
    who |= {"GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.org", "GIT_CONFIG_SYSTEM": os.devnull}
    said = subprocess.run(
        ["git", *words], cwd=folder, env={**os.environ, **who}, check=True, capture_output=True, text=True
    )
    return said.stdout.strip()


def bash(script: str, **keys: Any) -> dict[str, Any]:
    """Return a step with keys such as timeoutSeconds beside its script."""
    return {"action": "ExecuteBash", "inputs": {"commands": [script]}, **keys}
