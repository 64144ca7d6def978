class Classifier:
    """Would train for ever; the event's timeout ends it."""

    def fit(self, X, y):
        while True:
            y = y[::-1]

    def predict_proba(self, X):
        raise NotImplementedError
