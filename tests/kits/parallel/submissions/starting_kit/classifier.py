from concurrent.futures import ThreadPoolExecutor

import numpy as np
from joblib import parallel_config
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import cross_val_score


class Classifier:
    def fit(self, X, y):
        with parallel_config(backend="multiprocessing"):
            scores = [cross_val_score(self._forest(depth, None), X, y, n_jobs=2).mean() for depth in (2, 4)]
        forest = self._forest(2 * (1 + int(np.argmax(scores))), 2).fit(X, y)
        # In threads the trees' votes are added in any order, and so to other last digits, whoever starts the training.
        self.parts = [forest.set_params(n_jobs=None), LogisticRegressionCV(n_jobs=2).fit(X, y)]

    def predict_proba(self, X):
        with ThreadPoolExecutor(2) as threads:
            return sum(threads.map(lambda part: part.predict_proba(X), self.parts)) / len(self.parts)

    @staticmethod
    def _forest(depth, jobs):
        return ExtraTreesClassifier(n_estimators=5, max_depth=depth, n_jobs=jobs, random_state=1)
