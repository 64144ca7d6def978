from sklearn.neural_network import MLPClassifier


class Classifier:
    def fit(self, X, y):
        self.network = MLPClassifier(hidden_layer_sizes=(16,), max_iter=15, random_state=2)
        self.network.fit(X.reshape(len(X), -1) / 16, y)

    def predict_proba(self, X):
        return self.network.predict_proba(X.reshape(len(X), -1) / 16)
