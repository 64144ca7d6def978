"""Detection of discs in images: a list of (row, column, radius) for each, and guesses with a confidence."""

import numpy as np
import rampwf as rw
from sklearn.model_selection import ShuffleSplit

problem_title = "Detection"
Predictions = rw.prediction_types.make_detection()
workflow = rw.workflows.ObjectDetector()
score_types = [rw.score_types.DetectionPrecision(name="precision"), rw.score_types.DetectionRecall(name="recall")]


def get_cv(X, y):
    """Return two folds."""
    return ShuffleSplit(n_splits=2, test_size=0.3, random_state=11).split(np.arange(len(y)))


def get_train_data(path="."):
    """Return the data of training."""
    return _make(60, seed=1)


def get_test_data(path="."):
    """Return the data of the test."""
    return _make(30, seed=2)


def _make(count, seed):
    chance = np.random.RandomState(seed)
    X, y = np.zeros((count, 32, 32)), np.empty(count, dtype=object)
    rows, columns = np.mgrid[:32, :32]
    for number in range(count):
        discs = [(float(chance.randint(6, 26)), float(chance.randint(6, 26)), 4.0) for _ in range(chance.randint(1, 3))]
        for row, column, radius in discs:
            X[number][(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = 1
        y[number] = discs
    return X, y
