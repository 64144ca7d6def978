from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline


def get_estimator():
    return make_pipeline(SimpleImputer(), RandomForestClassifier(n_estimators=20, random_state=3))
