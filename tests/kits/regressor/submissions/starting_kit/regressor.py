from sklearn.ensemble import GradientBoostingRegressor


class Regressor(GradientBoostingRegressor):
    def __init__(self):
        super().__init__(n_estimators=20, subsample=0.7, random_state=5)
