"""``worker_type: conda``: like local, in a conda environment that conda, mamba or micromamba made."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.conda import ask_conda, is_environment, pip_install
from runner.errors import KitError
from runner.workers.local import LocalWorker

_UNSET = "***unset***"  # what conda writes for a variable that was taken back
_NOT_ACTIVE = ("VIRTUAL_ENV", "PYTHONHOME")  # another environment's, which ramp-cloud itself may run in


class CondaWorker(LocalWorker):
    """Runs the environment's own ``bin/ramp-test``. Never ``conda run``, which leaves its child behind when killed."""

    @classmethod
    def prepare_event(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Ask conda once where the environment is; see the contract."""
        name = config["conda_env"]
        conda = ask_conda()
        prefix = conda.find(name)
        if prefix is None:
            raise KitError(conda.unknown(name))
        aside = conda.set_aside(prefix)
        if os.access(aside, os.F_OK):
            task = "update-env" if prefix == conda.root or is_environment(aside) else "create-env"
            msg = (
                f"the conda environment {name} is being built, or that was cut short; wait for it, or repeat "
                f"`./inv {task} --config …`"
            )
            raise KitError(msg)
        python = prefix / "bin" / "python"
        if not os.access(python, os.X_OK):
            msg = (
                f"the conda environment {name} has no Python ({python}); add python to its environment file and run "
                "`./inv update-env --config …`, or name another one in conda_env"
            )
            raise KitError(msg)
        if not os.access(python.with_name("ramp-test"), os.X_OK):
            msg = f"the conda environment {name} has no ramp-test; install it with `{pip_install(prefix)}`"
            raise KitError(msg)
        extra = {"python": str(python), "conda_prefix": str(prefix), "conda_name": conda.name_of(prefix)}
        return super().prepare_event({**config, **extra})

    @classmethod
    def kit_environment(cls, config: dict[str, Any]) -> dict[str, str]:
        """Return what an activated environment has, as far as a training can tell."""
        # etc/conda/activate.d is left out: it is shell code, which we would have to source for every submission, and it
        # serves compilers and prompts. What a kit needs it names under `variables:` of its environment file.
        prefix = config["conda_prefix"]
        kept = {name: value for name, value in super().kit_environment(config).items() if name not in _NOT_ACTIVE}
        active = {"CONDA_PREFIX": prefix, "CONDA_DEFAULT_ENV": config["conda_name"], "CONDA_SHLVL": "1"}
        # Packages in ~/.local would otherwise stand in for those of the environment.
        return {**kept, **_variables(Path(prefix)), **active, "PYTHONNOUSERSITE": "1"}


def _variables(prefix: Path) -> Mapping[str, str]:
    """Return the variables that `variables:` of an environment file set; conda keeps them in this file."""
    try:
        said = json.loads((prefix / "conda-meta" / "state").read_text())
        return {str(name): str(value) for name, value in said.get("env_vars", {}).items() if value != _UNSET}
    except (OSError, ValueError, AttributeError):
        return {}
