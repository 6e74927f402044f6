"""Fitted models of every kind, small, on columns that look like codes and numbers."""

import warnings
from functools import cache
from typing import Any

import numpy as np
from lightgbm import LGBMClassifier, LGBMRegressor
from numpy.typing import NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR
from xgboost import XGBClassifier, XGBRegressor

from recsys_moe.spec import Categorical, Column, Crossed, FeatureSpec, Numeric, Table, Task

FEATURES = ("city", "both", "price", "size")
WIDTH = 5
"""price has a missing flag."""
TREES = {"n_estimators": 20, "num_leaves": 7, "min_child_samples": 5, "verbose": -1, "n_jobs": 1}

BINARY = {
    "logistic regression": LogisticRegression(max_iter=500),
    "scaled logistic regression": make_pipeline(StandardScaler(), LogisticRegression()),
    "random forest": RandomForestClassifier(12, max_depth=6, random_state=0),
    "support vectors": CalibratedClassifierCV(SVC(), cv=2),
    "neighbours": KNeighborsClassifier(7),
    "naive Bayes": GaussianNB(),
    "LightGBM": LGBMClassifier(**TREES),
    "LightGBM with categories": LGBMClassifier(**TREES, cat_smooth=1, min_data_per_group=5),
    "XGBoost": XGBClassifier(n_estimators=15, max_depth=3, n_jobs=1),
}
VALUES = {
    "linear regression": LinearRegression(),
    "random forest of values": RandomForestRegressor(12, max_depth=6, random_state=0),
    "support vectors of values": SVR(),
    "neighbours of values": KNeighborsRegressor(5),
    "Gaussian process": GaussianProcessRegressor(
        ConstantKernel() * RBF() + WhiteKernel(), normalize_y=True
    ),
    "LightGBM of values": LGBMRegressor(**TREES),
    "XGBoost of values": XGBRegressor(n_estimators=15, max_depth=3, n_jobs=1),
}
CLASSES = {
    "logistic regression of three": LogisticRegression(max_iter=500),
    "LightGBM of three": LGBMClassifier(**TREES),
    "XGBoost of three": XGBClassifier(n_estimators=10, max_depth=3, n_jobs=1),
}


def build_spec(*, buckets: int = 50) -> FeatureSpec:
    """Return a spec with two codes, a list, and two numbers of which one has a flag."""

    def numeric(name: str, transform: Any, *, flag: bool) -> Numeric:
        return Numeric(
            name=name,
            column="price",
            transform=transform,
            center=1.5,
            scale=0.4,
            clip=8.0,
            missing_flag=flag,
        )

    return FeatureSpec(
        dataset="toy",
        columns=(
            Column(name="city", type="string"),
            Column(name="tags", type="string", is_list=True),
            Column(name="price", type="float32"),
        ),
        tables=(Table(name="hash", num_codes=2 + buckets, num_oov=buckets),),
        features=(
            Categorical(name="city", column="city", table="hash"),
            Categorical(name="tags", column="tags", table="hash", max_len=3),
            Crossed(name="both", columns=("city", "price"), table="hash"),
            numeric("price", "identity", flag=True),
            numeric("size", "log1p", flag=False),
        ),
        tasks=(Task(name="click", label="click"),),
        train_rows=1,
    )


def rows(count: int, seed: int) -> NDArray[np.float32]:
    """Return rows of `FEATURES`."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(1, 9, (count, 2))
    numbers = rng.normal(size=(count, 2))
    missing = rng.random(count) < 0.2
    columns = np.c_[codes, np.where(missing, 0, numbers[:, 0]), missing, numbers[:, 1]]
    return columns.astype(np.float32)


TRAIN, FRESH = rows(400, 0), rows(257, 1)


def score(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return what labels come from, an interaction that no line has."""
    noise = np.random.default_rng(5).normal(size=len(x))
    return np.where(np.isin(x[:, 0], (2, 5, 7)), x[:, 4], -x[:, 4]) + x[:, 2] + 0.3 * noise


@cache
def fitted(kind: str) -> Any:
    """Return a model of a kind, fitted."""
    y = score(TRAIN)
    options = {"categorical_feature": [0, 1]} if kind == "LightGBM with categories" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind in VALUES:
            return VALUES[kind].fit(TRAIN, y)
        if kind in CLASSES:
            return CLASSES[kind].fit(TRAIN, np.digitize(y, [-0.5, 0.5]))
        return BINARY[kind].fit(TRAIN, (y > 0).astype(int), **options)
