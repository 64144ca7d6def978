"""A regressor: boosted trees."""

import numpy as np
import rampwf as rw
from sklearn.model_selection import ShuffleSplit

problem_title = "Regressor"
Predictions = rw.prediction_types.make_regression()
workflow = rw.workflows.Regressor()
score_types = [rw.score_types.RMSE(name="rmse"), rw.score_types.RelativeRMSE(name="rel_rmse")]


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
    X = chance.normal(size=(count, 5))
    return X, 10 + X @ np.arange(5.0) + 0.1 * chance.normal(size=count)
