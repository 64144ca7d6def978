"""Submissions that train in processes and threads of their own."""

import numpy as np
import rampwf as rw
from sklearn.model_selection import ShuffleSplit

problem_title = "Parallel"
Predictions = rw.prediction_types.make_multiclass(label_names=[0, 1])
workflow = rw.workflows.Classifier()
score_types = [rw.score_types.Accuracy(name="acc", precision=4), rw.score_types.ROCAUC(name="auc")]


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
    X = np.random.RandomState(seed).normal(size=(count, 4))
    return X, (X.sum(axis=1) > 0).astype(int)
