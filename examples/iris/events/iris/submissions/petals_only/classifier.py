import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis


class Classifier:
    """Looks at the petals alone."""

    def __init__(self):
        self.model = LinearDiscriminantAnalysis()

    def fit(self, X, y):
        self.model.fit(self._petals(X), y)

    def predict_proba(self, X):
        return self.model.predict_proba(self._petals(X))

    @staticmethod
    def _petals(X):
        return np.asarray(X)[:, 2:]
