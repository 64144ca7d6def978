"""Run by the kit's own Python: imports problem.py and writes down what it says. Needs nothing of ramp-cloud.

python kit_probe.py KIT_FOLDER ANSWER_FILE
"""

import json
import platform
import sys
from pathlib import Path


def main() -> None:
    """Write the kit's facts to the answer file."""
    from importlib.metadata import version

    from rampwf.utils.testing import assert_read_problem

    problem = assert_read_problem(sys.argv[1])
    scores = [
        {
            "name": str(score.name),
            "precision": int(score.precision),
            "lower_is_better": bool(score.is_lower_the_better),
        }
        for score in problem.score_types
    ]
    if not scores:
        msg = "problem.py: score_types is empty; name at least one score"
        raise ValueError(msg)
    facts = {
        "title": str(getattr(problem, "problem_title", "")),
        "scores": scores,
        "python": platform.python_version(),
        "ramp_workflow": version("ramp-workflow"),
    }
    Path(sys.argv[2]).write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
