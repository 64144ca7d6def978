"""Stands in for ramp-test: the same arguments, files and exit codes, but it runs the submission's main.py and no model.

main.py may set SCORE (a number, default 0.5); it becomes the score "acc" of both folds, exactly as written.
"""

import argparse
import os
import runpy
import sys
import traceback


def main():
    """Train, that is run main.py, and save scores as ramp-test does."""
    parser = argparse.ArgumentParser()
    for option in ("--submission", "--ramp-kit-dir", "--ramp-data-dir", "--ramp-submission-dir"):
        parser.add_argument(option, required=True)
    for flag in ("--save-output", "--ignore-warning"):
        parser.add_argument(flag, action="store_true", required=True)
    arguments = parser.parse_args()
    folder = os.path.join(arguments.ramp_submission_dir, arguments.submission)
    output = os.path.join(folder, "training_output")
    print(f"Training {folder} ...", flush=True)
    folds = [os.path.join(output, f"fold_{number}") for number in range(2)]
    for fold in folds:
        os.makedirs(fold)
    try:
        names = runpy.run_path(os.path.join(folder, "main.py"), init_globals={"OUTPUT": output, "FOLDER": folder})
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    score = names.get("SCORE", 0.5)
    for number, fold in enumerate(folds):
        write(
            os.path.join(fold, "scores.csv"),
            f"step,acc,time\ntrain,{score},0.5\nvalid,{score},0.25\ntest,{score},0.25\n",
        )
        write(os.path.join(fold, "y_pred_test.npz"), f"predictions of fold {number}")
    bags = "".join(f"{step},{bag},{score}\n" for step in ("valid", "test") for bag in range(2))
    write(os.path.join(output, "bagged_scores.csv"), "step,n_bag,acc\n" + bags)


def write(path, text):
    """Write a file unless main.py wrote one on purpose or removed the folder."""
    if os.path.isdir(os.path.dirname(path)) and not os.path.exists(path):
        with open(path, "w") as file:
            file.write(text)


if __name__ == "__main__":
    main()
