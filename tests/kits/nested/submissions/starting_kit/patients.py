import numpy as np
from sklearn.linear_model import LinearRegression


class Model:
    def fit(self, X, y):
        self.model = LinearRegression().fit(self._table(X), y)
        return self

    def predict(self, X):
        return self.model.predict(self._table(X))

    @staticmethod
    def _table(X):
        doses = [[visit["dose"] for visit in sample["visits"]] for sample in X]
        return np.array([[len(each), sum(each), max(each)] for each in doses])
