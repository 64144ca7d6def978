"""A classifier: a forest over numbers of which some are missing, in one estimator."""

import numpy as np
import rampwf as rw
from sklearn.model_selection import ShuffleSplit

problem_title = "Classifier"
Predictions = rw.prediction_types.make_multiclass(label_names=[0, 1, 2])
workflow = rw.workflows.Estimator()
score_types = [rw.score_types.BalancedAccuracy(name="bal_acc"), rw.score_types.NegativeLogLikelihood(name="nll")]


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
    X = chance.normal(size=(count, 6))
    y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.3)
    X[chance.rand(count, 6) < 0.1] = np.nan
    return X, y
