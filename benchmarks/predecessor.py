"""One event of ramp-engine 0.10.1 on this machine, for compare.py, which runs this by the predecessor's own Python.

    python predecessor.py FOLDER DATABASE WORKERS

FOLDER holds ``kit`` and ``submissions``; DATABASE is a folder with a PostgreSQL server's socket and an empty database
``ramp``. Prints one line of JSON: seconds from the start of the dispatcher to its end, its CPU seconds, its peak memory
in MB, and the bagged scores of each submission.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

EVENT, USER = "iris_bench", "bench"


def fill(session, config, kit, submissions):
    """Make a user, the problem, the event and its submissions."""
    from ramp_database.tools import database, event, submission, team, user

    database.add_extension(session, "py")
    database.add_submission_file_type(session, "code", is_editable=True, max_size=10**5)
    database.add_submission_file_type_extension(session, "code", "py")
    user.add_user(session, USER, "bench", "Bench", "Bench", "bench@example.org", access_level="admin")
    user.approve_user(session, USER)
    event.add_problem(session, "iris", str(kit), str(kit))
    event.add_event(session, "iris", EVENT, "Bench", "starting_kit", config["ramp"]["submissions_dir"], force=False)
    team.sign_up_team(session, EVENT, USER)
    for folder in sorted(submissions.iterdir()):
        submission.add_submission(session, EVENT, USER, folder.name, str(folder))
    session.commit()


def adapt_to_numpy():
    """Have numbers of NumPy 2 written into SQL as numbers; no score of ramp-engine gets into its database otherwise."""
    import numpy
    from psycopg2.extensions import AsIs, register_adapter

    for kind in (numpy.float64, numpy.float32, numpy.int64):
        register_adapter(kind, lambda number: AsIs(repr(number.item())))


def main():
    """Run the event."""
    adapt_to_numpy()
    folder, database, workers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    os.chdir(folder)  # ramp-engine writes its logs into the folder where it is imported
    from ramp_database.model import Model
    from ramp_database.tools.submission import get_bagged_scores, get_submission_by_name
    from ramp_database.utils import session_scope, setup_db
    from ramp_engine.dispatcher import Dispatcher
    from ramp_engine.local import CondaEnvWorker

    connection = {"drivername": "postgresql", "username": "postgres", "database": "ramp", "query": {"host": database}}
    kit = folder / "kit"
    event = {
        "ramp": {
            "problem_name": "iris",
            "event_name": EVENT,
            "event_title": "Bench",
            "event_is_public": True,
            "sandbox_dir": "starting_kit",
            "kit_dir": str(kit),
            "data_dir": str(kit),
            "submissions_dir": str(folder / "engine" / "submissions"),
            "predictions_dir": str(folder / "engine" / "predictions"),
            "logs_dir": str(folder / "engine" / "logs"),
        },
        "worker": {"worker_type": "conda", "conda_env": "base"},
    }
    Path(event["ramp"]["submissions_dir"]).mkdir(parents=True)
    engine, _ = setup_db(connection)
    Model.metadata.create_all(engine)
    with session_scope(connection) as session:
        fill(session, event, kit, folder / "submissions")
    began = time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_SELF)
    dispatcher = Dispatcher(
        config={"sqlalchemy": connection},
        event_config=event,
        worker=CondaEnvWorker,
        n_workers=workers,
        hunger_policy="exit",
        time_between_collection=1,
    )
    dispatcher.launch()
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    with session_scope(connection) as session:
        names = [path.name for path in sorted((folder / "submissions").iterdir())]
        found = {name: get_submission_by_name(session, EVENT, USER, name) for name in names}
        scores = {
            name: get_bagged_scores(session, each.id).droplevel("n_bag").groupby(level=0).last().to_dict()
            for name, each in found.items()
            if each.state == "scored"
        }
    print(
        json.dumps(
            {
                "seconds": seconds,
                "cpu_seconds": after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime,
                "peak_memory_mb": after.ru_maxrss / 1000,
                "scores": scores,
            }
        )
    )


if __name__ == "__main__":
    main()
