"""Spectra: a shape and a height for each, reduced by singular values, which needs linear algebra in threads."""

import numpy as np
import rampwf as rw
from sklearn.model_selection import ShuffleSplit

problem_title = "Spectra"
Predictions = rw.prediction_types.make_regression(label_names=["height", "place"])
workflow = rw.workflows.Regressor()
score_types = [rw.score_types.RMSE(name="rmse")]


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
    height, place = 1 + chance.rand(count), chance.rand(count)
    lengths = np.linspace(0, 1, 400)
    X = height[:, None] * np.exp(-(((lengths - place[:, None]) / 0.1) ** 2)) + 0.01 * chance.normal(size=(count, 400))
    return X, np.column_stack([height, place])
