"""Small images, told apart by a network that is trained on them."""

import rampwf as rw
from sklearn.datasets import load_digits
from sklearn.model_selection import ShuffleSplit

problem_title = "Images"
Predictions = rw.prediction_types.make_multiclass(label_names=list(range(10)))
workflow = rw.workflows.Classifier()
score_types = [rw.score_types.Accuracy(name="acc", precision=4)]


def get_cv(X, y):
    """Return two folds."""
    return ShuffleSplit(n_splits=2, test_size=0.3, random_state=11).split(X)


def get_train_data(path="."):
    """Return images (300, 8, 8) and their digits (300,)."""
    digits = load_digits()
    return digits.images[:300], digits.target[:300]


def get_test_data(path="."):
    """Return images (100, 8, 8) and their digits (100,)."""
    digits = load_digits()
    return digits.images[300:400], digits.target[300:400]
