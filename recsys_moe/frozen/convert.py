"""Fitted models of other libraries as ONNX graphs, each with its own library's answers beside it.

Shapes: N rows, M columns, P outputs, C classes.
"""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from recsys_moe.errors import RequestError
from recsys_moe.frozen.expert_file import ML_OPSET, OPSET

Rows = NDArray[np.float32]
Values = NDArray[np.float64]
_BOOSTER_OPSET = 15
"""The newest operator set that onnxmltools writes; its nodes mean the same in `OPSET`."""


@dataclass(frozen=True, slots=True)
class Converted:
    """A model as a graph with one input (N, M), and what it should compute.

    Attributes:
        graph: What the converter made, any number of outputs.
        output: The name of the one that counts.
        is_probability: Whether that is probabilities (N, C), C at least 2; else values (N, P).
        reference: The library's own answer to the same rows, (N, C) or (N, P).
    """

    graph: onnx.ModelProto
    output: str
    is_probability: bool
    reference: Callable[[Rows], Values]


def convert(model: Any, width: int, *, double: bool = False) -> Converted:
    """Convert a model of scikit-learn, LightGBM or XGBoost.

    Args:
        model: A fitted classifier or regressor, or a booster.
        width: M, how many columns it reads.
        double: Whether it computes in float64; trees compare float32 and ignore it.

    Raises:
        RequestError: A model of another kind, or one that its converter refuses, with the reason.
    """
    libraries = {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if "lightgbm" in libraries:
                return _lightgbm(model, width)
            if "xgboost" in libraries:
                return _xgboost(model, width)
            if "sklearn" in libraries:
                return _sklearn(model, width, double=double)
    except ImportError as error:
        wanted = "the extra `recsys-moe[experts]`"
        raise RequestError(kind_of(model), wanted=wanted, got=f"no {error.name}") from None
    except RequestError:
        raise
    except Exception as error:  # noqa: BLE001 (converters raise anything; the reason is passed on)
        lines = [line for line in str(error).splitlines() if line.strip()]
        got = f"{type(error).__name__}: {lines[0] if lines else 'no reason'}"
        raise RequestError(kind_of(model), wanted="a model with a converter", got=got) from None
    wanted = "a fitted model of scikit-learn, LightGBM or XGBoost"
    raise RequestError("model", wanted=wanted, got=kind_of(model))


def kind_of(model: Any) -> str:
    """Return a model's kind, `lightgbm.LGBMClassifier`."""
    return f"{type(model).__module__.partition('.')[0]}.{type(model).__name__}"


def _sklearn(model: Any, width: int, *, double: bool) -> Converted:
    import skl2onnx
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType
    from sklearn.base import is_classifier, is_regressor
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    if not (is_classifier(model) or is_regressor(model)):
        raise RequestError("model", wanted="a classifier or a regressor", got=kind_of(model))
    if is_classifier(model) and not hasattr(model, "predict_proba"):
        wanted = "a classifier with predict_proba (CalibratedClassifierCV gives it one)"
        raise RequestError("model", wanted=wanted, got=kind_of(model))
    # without CDist the distances of neighbours become a loop
    by_distance = (GaussianProcessRegressor, KNeighborsClassifier, KNeighborsRegressor)
    options: dict[Any, dict[str, Any]] = {kind: {"optim": "cdist"} for kind in by_distance}
    options[KNeighborsClassifier]["zipmap"] = False
    if is_classifier(model):
        options[id(model)] = {**options.get(type(model), {}), "zipmap": False}
    numbers = DoubleTensorType if double else FloatTensorType
    graph = skl2onnx.convert_sklearn(
        model,
        initial_types=[("x", numbers([None, width]))],
        target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET - 1},
        options=options,
    )
    answer = model.predict_proba if is_classifier(model) else model.predict
    return Converted(
        graph,
        graph.graph.output[-1 if is_classifier(model) else 0].name,
        bool(is_classifier(model)),
        lambda rows_NM: _columns(answer(rows_NM.astype(np.float64))),
    )


def _lightgbm(model: Any, width: int) -> Converted:
    import lightgbm
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    booster = model if isinstance(model, lightgbm.Booster) else model.booster_
    text = booster.model_to_string()
    objective = re.search(r"^objective=(\S+)", text, re.MULTILINE)
    is_probability = objective is not None and objective[1] in ("binary", "multiclass")
    graph = convert_lightgbm(
        lightgbm.Booster(model_str=with_float32_thresholds(text)),
        initial_types=[("x", FloatTensorType([None, width]))],
        target_opset=_BOOSTER_OPSET,
        zipmap=False,
    )
    return Converted(
        graph,
        graph.graph.output[-1].name,
        is_probability,
        lambda rows_NM: _columns(booster.predict(rows_NM), is_probability=is_probability),
    )


def with_float32_thresholds(text: str) -> str:
    """Round the thresholds of LightGBM's text down to float32.

    For a float32 x, `x <= t` holds exactly if x is at most the greatest float32 that is not above
    t. (Rounded to the nearest one, a row that equals it may take the other side.) Of a categorical
    split the threshold is a small whole number, which stays what it is.
    """

    def rounded(match: re.Match[str]) -> str:
        return "threshold=" + " ".join(repr(float32_below(float(t))) for t in match[1].split())

    unsized = re.sub(r"^tree_sizes=.*\n", "", text, flags=re.MULTILINE)  # lengths of the old text
    return re.sub(r"^threshold=(.*)$", rounded, unsized, flags=re.MULTILINE)


def float32_below(value: float) -> float:
    """Return the greatest float32 that is not above a number."""
    nearest = np.float32(value)
    below = np.nextafter(nearest, np.float32(-np.inf)) if float(nearest) > value else nearest
    return float(below)


def _xgboost(model: Any, width: int) -> Converted:
    import xgboost
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    booster = model if isinstance(model, xgboost.Booster) else model.get_booster()
    best = booster.attr("best_iteration")
    booster = booster[: int(best) + 1] if best is not None else booster.copy()
    booster.feature_names = None  # the converter wants no names but f0, f1, …
    graph = convert_xgboost(
        booster,
        initial_types=[("x", FloatTensorType([None, width]))],
        target_opset=_BOOSTER_OPSET,
    )
    is_probability = any("TreeEnsembleClassifier" in node.op_type for node in graph.graph.node)

    def answer(rows_NM: Rows) -> Values:
        values = booster.predict(xgboost.DMatrix(rows_NM))
        return _columns(values, is_probability=is_probability)

    return Converted(graph, graph.graph.output[-1].name, is_probability, answer)


def _columns(values: Any, *, is_probability: bool = False) -> Values:
    """Return answers as (N, P); the probability of one of two classes becomes that of both."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 1:
        array = array[:, None]
    return np.concatenate([1 - array, array], axis=1) if _single(array, is_probability) else array


def _single(array: Values, is_probability: bool) -> bool:
    return is_probability and array.shape[1] == 1
