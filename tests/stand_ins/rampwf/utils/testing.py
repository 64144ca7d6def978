"""Reads problem.py as ramp-workflow does."""

import os
import runpy
import types


def assert_read_problem(ramp_kit_dir="."):
    """Return problem.py as a namespace."""
    return types.SimpleNamespace(**runpy.run_path(os.path.join(ramp_kit_dir, "problem.py")))
