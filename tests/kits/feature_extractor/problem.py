"""A feature extractor before a regressor, over a table of numbers, words and days."""

import numpy as np
import pandas as pd
import rampwf as rw
from sklearn.model_selection import ShuffleSplit

problem_title = "Feature extractor"
Predictions = rw.prediction_types.make_regression()
workflow = rw.workflows.FeatureExtractorRegressor()
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
    day = pd.to_datetime("2024-01-01") + pd.to_timedelta(chance.randint(0, 365, count), unit="D")
    table = pd.DataFrame({"day": day, "town": chance.choice(["Paris", "Orsay"], count), "load": chance.rand(count)})
    return table, (table["load"] * 3 + (table["town"] == "Paris") + table["day"].dt.dayofweek / 7).to_numpy()
