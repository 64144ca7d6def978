"""Clustering of points by event, as tracks of particles are."""

import numpy as np
import rampwf as rw
from sklearn.model_selection import ShuffleSplit

problem_title = "Clustering"
Predictions = rw.prediction_types.make_clustering()
workflow = rw.workflows.Clusterer()
score_types = [rw.score_types.ClusteringEfficiency(name="efficiency", precision=3)]


def get_cv(X, y):
    """Return two folds, of whole events."""
    events = np.unique(y[:, 0])
    for learn, check in ShuffleSplit(n_splits=2, test_size=0.3, random_state=11).split(events):
        yield tuple(np.flatnonzero(np.isin(y[:, 0], events[part])) for part in (learn, check))


def get_train_data(path="."):
    """Return points with the number of their event first, and (event, cluster) of each."""
    return _make(8, seed=1)


def get_test_data(path="."):
    """Return the same of other events."""
    return _make(4, seed=2)


def _make(count, seed):
    chance = np.random.RandomState(seed)
    event = np.repeat(np.arange(count), 30)
    cluster = np.tile(np.repeat(np.arange(3), 10), count)
    points = chance.normal(size=(len(event), 2)) + 6 * np.column_stack([cluster, cluster % 2])
    return np.column_stack([event, points]), np.column_stack([event, cluster])
