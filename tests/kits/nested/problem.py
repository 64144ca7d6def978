"""Nested data: each sample is a mapping with a list of measurements, longer or shorter, and a workflow of the kit's."""

import numpy as np
import rampwf as rw
from rampwf.utils.importing import import_module_from_source
from sklearn.model_selection import ShuffleSplit

problem_title = "Nested data"


class Visits:
    """Give submissions lists of mappings; the kit's own way to train and to predict."""

    element_names = ("patients",)

    def train_submission(self, module_path, X, y, train_is=None):
        """Train on the samples with these indices, on all without."""
        module = import_module_from_source(f"{module_path}/patients.py", "patients", sanitize=True)
        chosen = range(len(X)) if train_is is None else train_is
        return module.Model().fit([X[i] for i in chosen], y[chosen])

    def test_submission(self, trained_model, X):
        """Predict."""
        return trained_model.predict(X)


class Samples(list):
    """A list that can be indexed by an array, as ramp-test does."""

    def __getitem__(self, index):
        """Return one sample, or many."""
        if isinstance(index, (int, np.integer, slice)):
            return super().__getitem__(index)
        return Samples(super(Samples, self).__getitem__(int(i)) for i in index)


Predictions = rw.prediction_types.make_regression()
workflow = Visits()
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
    samples, truth = Samples(), []
    for number in range(count):
        visits = [{"dose": float(dose)} for dose in chance.rand(chance.randint(1, 6))]
        samples.append({"name": f"p{number}", "visits": visits})
        truth.append(sum(visit["dose"] for visit in visits) + 0.1 * chance.normal())
    return samples, np.array(truth)
