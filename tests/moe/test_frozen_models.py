"""Frozen experts give their own library's answer."""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from lightgbm import LGBMClassifier
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.ensemble import RandomForestClassifier
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.neighbors import KNeighborsRegressor
from sklearn.svm import LinearSVC
from xgboost import XGBClassifier

from export.graph import IR_VERSION, ML_OPSET, OPSET
from recsys_moe.errors import RequestError
from recsys_moe.frozen import expert_file
from recsys_moe.frozen.convert import float32_below
from recsys_moe.frozen.expert_file import ExpertFile, read_expert
from recsys_moe.frozen.freeze import freeze, freeze_rule
from recsys_moe.moe.banks_frozen import FrozenBank
from tests.moe.frozen_cases import (
    BINARY,
    CLASSES,
    FEATURES,
    FRESH,
    TRAIN,
    TREES,
    VALUES,
    build_spec,
    fitted,
    score,
)

SPEC = build_spec()


def frozen(model: Any, folder: Path, name: str = "expert") -> ExpertFile:
    return freeze(model, SPEC, FEATURES, folder / "expert.onnx", rows=TRAIN, name=name)


def answer(expert: ExpertFile, rows_NM: NDArray[np.float32]) -> NDArray[np.float64]:
    values_N1P = FrozenBank(expert, standardize=False)(torch.from_numpy(rows_NM))
    return values_N1P.squeeze(1).double().numpy()


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("kind", BINARY)
def test_a_classifier_puts_out_its_log_odds(kind: str, tmp_path: Path) -> None:
    model = fitted(kind)
    odds_N1 = answer(frozen(model, tmp_path), FRESH)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted_N = model.predict_proba(FRESH)[:, 1]
    assert odds_N1.shape == (len(FRESH), 1)
    np.testing.assert_allclose(sigmoid(odds_N1[:, 0]), wanted_N, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", VALUES)
def test_a_regressor_puts_out_its_value(kind: str, tmp_path: Path) -> None:
    model = fitted(kind)
    wanted_N = np.asarray(model.predict(FRESH.astype(np.float64)), np.float64)
    values_N1 = answer(frozen(model, tmp_path), FRESH)
    np.testing.assert_allclose(values_N1[:, 0], wanted_N, rtol=0, atol=1e-5 * abs(wanted_N).max())


@pytest.mark.parametrize("kind", CLASSES)
def test_many_classes_put_out_the_logarithm_of_each(kind: str, tmp_path: Path) -> None:
    model = fitted(kind)
    values_N3 = answer(frozen(model, tmp_path), FRESH)
    wanted_N3 = model.predict_proba(FRESH.astype(np.float64))
    np.testing.assert_allclose(np.exp(values_N3), wanted_N3, rtol=0, atol=1e-5)


def test_boosters_are_models_too_up_to_their_best_round(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    labels, noise = score(TRAIN) > 0, rng.integers(0, 2, len(FRESH))
    early = XGBClassifier(n_estimators=40, early_stopping_rounds=3, n_jobs=1)
    early.fit(TRAIN, labels, eval_set=[(FRESH, noise)], verbose=False)
    assert early.best_iteration < 39

    for model, library in ((early, early), (fitted("LightGBM").booster_, fitted("LightGBM"))):
        odds_N1 = answer(frozen(model, tmp_path), FRESH)
        wanted_N = library.predict_proba(FRESH)[:, 1]
        np.testing.assert_allclose(sigmoid(odds_N1[:, 0]), wanted_N, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        LGBMClassifier(**{**TREES, "min_child_samples": 1}),
        RandomForestClassifier(5, random_state=0),
        XGBClassifier(n_estimators=10, n_jobs=1),
    ],
    ids=["LightGBM", "random forest", "XGBoost"],
)
def test_a_row_on_a_threshold_takes_the_side_that_the_library_takes(
    model: Any, tmp_path: Path
) -> None:
    # neighbouring float32 numbers: each threshold lies on one of them, or between two
    steps = np.arange(400)
    number = (np.float32(1.7) + steps.astype(np.float32) * np.spacing(np.float32(1.7))).astype("f4")
    x = TRAIN.copy()
    x[:, 4] = number
    labels = (steps // 7) % 2
    model.fit(x, labels)
    path = tmp_path / "expert.onnx"
    expert = freeze(model, SPEC, FEATURES, path, rows=TRAIN, name="edges")

    odds_N1 = answer(expert, x)

    wanted_N = model.predict_proba(x)[:, 1]
    np.testing.assert_allclose(sigmoid(odds_N1[:, 0]), wanted_N, rtol=0, atol=1e-5)
    assert len(np.unique(wanted_N)) > 5


def test_the_float32_below_changes_no_comparison() -> None:
    thresholds = np.random.default_rng(0).normal(size=200).tolist()
    for t in thresholds:
        near = np.float32(t)
        for x in (np.nextafter(near, np.float32(-9)), near, np.nextafter(near, np.float32(9))):
            assert (float(x) <= t) == (x <= np.float32(float32_below(t)))


@pytest.mark.parametrize("kind", ["LightGBM", "LightGBM of three", "Gaussian process"])
def test_outputs_enter_a_mixture_with_mean_0_and_spread_1(kind: str, tmp_path: Path) -> None:
    bank = FrozenBank(frozen(fitted(kind), tmp_path))
    values_NP = bank(torch.from_numpy(TRAIN)).squeeze(1)
    torch.testing.assert_close(
        values_NP.mean(0), torch.zeros(values_NP.shape[1]), atol=1e-4, rtol=0
    )
    deviations_P = values_NP.std(0, correction=0)
    torch.testing.assert_close(deviations_P, torch.ones(values_NP.shape[1]), atol=1e-4, rtol=0)


def test_a_rule_is_what_its_expression_says(tmp_path: Path) -> None:
    price = np.float32([-3.0, 0.1, 2.5, 19.0])
    numbers = np.c_[(price.astype(np.float64) - 1.5) * 0.4, np.zeros(4)].astype(np.float32)
    expert = freeze_rule(SPEC, "price", tmp_path / "rule.onnx", rows=numbers)
    np.testing.assert_allclose(answer(expert, numbers)[:, 0], price, rtol=1e-6)

    under_a_logarithm = freeze_rule(SPEC, "size", tmp_path / "size.onnx", rows=numbers[:, :1])
    np.testing.assert_array_equal(answer(under_a_logarithm, numbers[:, :1])[:, 0], numbers[:, 0])


def test_the_file_says_what_it_is_and_fits_into_an_artifact(tmp_path: Path) -> None:
    made = frozen(fitted("LightGBM"), tmp_path, "trees")
    read = read_expert(tmp_path / "expert.onnx")
    assert read == made
    assert (read.name, read.kind, read.features) == ("trees", "lightgbm.LGBMClassifier", FEATURES)
    versions = {i.domain: i.version for i in onnx.load_from_string(read.content).opset_import}
    assert versions == {"": OPSET, "ai.onnx.ml": ML_OPSET}
    mine = (expert_file.OPSET, expert_file.ML_OPSET, expert_file.IR_VERSION)
    assert mine == (OPSET, ML_OPSET, IR_VERSION)


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (object(), "model: wanted a fitted model of scikit-learn, LightGBM or XGBoost, got built"),
        (KMeans(2), "model: wanted a classifier or a regressor, got sklearn.KMeans"),
        (LinearSVC(), "wanted a classifier with predict_proba"),
        (GaussianProcessClassifier(), "expert: sklearn.GaussianProcessClassifier: wanted"),
        (KNeighborsRegressor(weights="distance"), "wanted a graph within 1e-05 of the library's"),
    ],
)
def test_what_cannot_be_frozen_is_refused_in_a_line(model: Any, line: str, tmp_path: Path) -> None:
    if hasattr(model, "fit"):
        model.fit(TRAIN[:100], (score(TRAIN) > 0).astype(int)[:100])
    with pytest.raises(RequestError, match=re.escape(line)) as caught:
        frozen(model, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "expert.onnx").exists()


def test_a_graph_that_differs_from_its_library_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fitted("linear regression")
    right = model.predict
    monkeypatch.setattr(model, "predict", lambda rows: right(rows) * 1.001)
    with pytest.raises(RequestError, match="within 1e-05 of the library's answer, got a gap of"):
        frozen(model, tmp_path)


@pytest.mark.parametrize(
    ("features", "rows", "line"),
    [
        (("city", "tags"), TRAIN, "got 'tags', a list or a table of more than 2^24 codes"),
        (("city", "prise"), TRAIN, "Did you mean 'price'"),
        ((), TRAIN, "wanted at least one, got none"),
        (("city",), TRAIN, "wanted at least one row of 1 columns, got shape [400, 5]"),
        (FEATURES, TRAIN[:0], "wanted at least one row of 5 columns, got shape [0, 5]"),
    ],
)
def test_features_and_rows_that_do_not_belong_together_are_named(
    features: tuple[str, ...], rows: NDArray[np.float32], line: str, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=re.escape(line)):
        freeze(fitted("LightGBM"), SPEC, features, tmp_path / "e.onnx", rows=rows, name="e")


def test_only_a_number_is_a_rule(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="rule: wanted the name of a numeric feature"):
        freeze_rule(SPEC, "city", tmp_path / "e.onnx", rows=TRAIN[:, :1])
