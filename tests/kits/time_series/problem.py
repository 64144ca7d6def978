"""A forecast of each next value of a series, by a workflow and helpers that the kit brings along."""

import sys
from pathlib import Path

import numpy as np
import rampwf as rw

sys.path.insert(0, str(Path(__file__).parent))
from series import Forecast, make_series

problem_title = "Time series"
Predictions = rw.prediction_types.make_regression()
workflow = Forecast(length=8)
score_types = [rw.score_types.RMSE(name="rmse")]


def get_cv(X, y):
    """Return two folds, each after what it learns from."""
    half = len(y) // 2
    return [(np.arange(half), np.arange(half, len(y))), (np.arange(half + 10), np.arange(half + 10, len(y)))]


def get_train_data(path="."):
    """Return windows of a series and the values that follow."""
    return make_series(80, start=0)


def get_test_data(path="."):
    """Return the same of later times."""
    return make_series(40, start=80)
