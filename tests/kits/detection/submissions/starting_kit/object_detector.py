import numpy as np
from scipy import ndimage


class ObjectDetector:
    def fit(self, X, y):
        self.radius = float(np.mean([radius for discs in y for _, _, radius in discs]))
        return self

    def predict(self, X):
        found = np.empty(len(X), dtype=object)
        for number, image in enumerate(X):
            labels, count = ndimage.label(image)
            centres = ndimage.center_of_mass(image, labels, range(1, count + 1))
            found[number] = [(0.9, float(row), float(column), self.radius) for row, column in centres]
        return found
