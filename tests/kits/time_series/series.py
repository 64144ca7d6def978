"""What the kit's problem.py shares with nobody: its series, and how a forecaster is trained on it."""

import numpy as np
from rampwf.utils.importing import import_module_from_source


class Forecast:
    """Train on windows of a series up to a time, predict what follows each."""

    element_names = ("forecaster",)

    def __init__(self, length):
        self.length = length

    def train_submission(self, module_path, X, y, train_is=None):
        """Train on the windows with these indices, on all without."""
        module = import_module_from_source(f"{module_path}/forecaster.py", "forecaster", sanitize=True)
        chosen = slice(None) if train_is is None else train_is
        model = module.Forecaster()
        model.fit(X[chosen][:, -self.length :], y[chosen])
        return model

    def test_submission(self, trained_model, X):
        """Predict."""
        return trained_model.predict(X[:, -self.length :])


def make_series(count, start):
    """Return ``count`` windows of 12 values and the value after each."""
    series = np.cumsum(np.random.RandomState(6).normal(size=200)) + 5 * np.sin(np.arange(200) / 5)
    windows = np.lib.stride_tricks.sliding_window_view(series, 13)[start : start + count]
    return windows[:, :-1], windows[:, -1]
