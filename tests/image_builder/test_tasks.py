"""The tasks of images where they cannot do what is asked: one message, an exit code, and no call to AWS."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.test_tasks import invoke

KEYS = {
    "problem_name": "iris",
    "event_name": "iris",
    "worker_type": "aws",
    "ami_image_name": "iris",
    "region_name": "eu-west-1",
    "remote_ramp_kit_folder": "/home/ubuntu/ramp-kits/iris",
    "image": {},
}
LOCAL = {"problem_name": "iris", "event_name": "iris", "worker_type": "local"}
WITHOUT = {key: value for key, value in KEYS.items() if key != "image"}


@pytest.mark.parametrize(
    ("keys", "words", "code", "said"),
    [
        (LOCAL, ["build-image"], 2, "runs with worker_type local, which needs no image; give --config of one"),
        (WITHOUT, ["images"], 2, "config.yml: image: is missing; add the section"),
        (KEYS, ["build-image"], 1, "stack.json names no image_pipeline, so no build can be started; run `pulumi up`"),
        (KEYS, ["follow-build"], 1, "stack.json names no image_pipeline"),
        (KEYS, ["prune-images"], 2, "config.yml: image.keep: is not set; set it, or give --keep N"),
        (KEYS, ["prune-images", "--keep", "few"], 2, "--keep cannot be 'few'; give a number"),
        (KEYS, ["prune-images", "--keep=-1"], 2, "--keep cannot be -1; at least the newest image stays"),
        ({**KEYS, "image": {"keep": 3}}, ["prune-images", "--keep", "0"], 2, "--keep cannot be 0; at least the newest"),
        (KEYS, ["sweep", "--older-than", "soon"], 2, "--older-than cannot be 'soon'; give a number"),
        (KEYS, ["bake-image", "--local", "here"], 1, "image.kit: the kit cannot be read"),
        ({**KEYS, "image": {"documents": ["no.yaml"]}}, ["bake-image", "--local", "here"], 2, "no.yaml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_done_is_told(
    tmp_path: Path, keys: dict[str, Any], words: list[str], code: int, said: str
) -> None:
    config = tmp_path / "config.yml"
    config.write_text(yaml.safe_dump(keys))
    done = invoke(*words, "--config", str(config))

    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert (done.returncode, done.stdout) == (code, "")
    assert sorted(path.name for path in tmp_path.iterdir()) in (["config.yml"], ["config.yml", "ramp-cloud.db"])
