"""Tell three species of iris apart by four lengths of their flowers."""

from pathlib import Path

import numpy as np
import pandas as pd
import rampwf as rw
from sklearn.model_selection import StratifiedShuffleSplit

problem_title = "Iris classification"

SPECIES = ["setosa", "versicolor", "virginica"]
Predictions = rw.prediction_types.make_multiclass(label_names=SPECIES)
workflow = rw.workflows.Classifier()

# The first one is official: it ranks the leaderboard.
score_types = [
    rw.score_types.Accuracy(name="acc", precision=3),
    rw.score_types.NegativeLogLikelihood(name="nll", precision=3),
]


def get_cv(X, y):
    """Return the two folds that every submission is trained on."""
    folds = StratifiedShuffleSplit(n_splits=2, test_size=0.25, random_state=7)
    return folds.split(X, y)


def get_train_data(path="."):
    """Return measurements (105, 4) in cm and species (105,)."""
    return _read(path, "train.csv")


def get_test_data(path="."):
    """Return measurements (45, 4) in cm and species (45,), unseen in training."""
    return _read(path, "test.csv")


def _read(path, name):
    table = pd.read_csv(Path(path) / "data" / name)
    return table.drop(columns="species").to_numpy(dtype=np.float64), table["species"].to_numpy(dtype=object)
