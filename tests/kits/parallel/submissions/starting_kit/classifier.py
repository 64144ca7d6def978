from concurrent.futures import ThreadPoolExecutor

import numpy as np
from joblib import parallel_config
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import cross_val_score


class Classifier:
    def fit(self, X, y):
        with parallel_config(backend="multiprocessing"):
            depths = [cross_val_score(self._forest(depth), X, y, n_jobs=2).mean() for depth in (2, 4)]
        self.parts = [
            self._forest(2 * (1 + int(np.argmax(depths)))).fit(X, y),
            LogisticRegressionCV(n_jobs=2).fit(X, y),
        ]

    def predict_proba(self, X):
        with ThreadPoolExecutor(2) as threads:
            return sum(threads.map(lambda part: part.predict_proba(X), self.parts)) / len(self.parts)

    @staticmethod
    def _forest(depth):
        return ExtraTreesClassifier(n_estimators=5, max_depth=depth, n_jobs=2, random_state=1)
