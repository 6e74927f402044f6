"""Which outputs an artifact has: all predictions of its spec, or some of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from recsys_moe.errors import RequestError
from recsys_moe.spec import FeatureSpec


def chosen_outputs(spec: FeatureSpec, outputs: Sequence[str]) -> tuple[str, ...]:
    """Return the predictions asked for, in the spec's order; none named, all.

    Raises:
        RequestError: A name twice, or one that the spec has not.
    """
    known = ", ".join(spec.predictions)
    for position, name in enumerate(outputs):
        if name not in spec.predictions:
            choices = spec.predictions
            raise RequestError(
                "outputs", wanted=f"some of {known}", got=repr(name), choices=choices
            )
        if name in outputs[:position]:
            raise RequestError("outputs", wanted="each name once", got=f"{name!r} twice")
    return tuple(name for name in spec.predictions if not outputs or name in outputs)


def logits_of(spec: FeatureSpec, outputs: Sequence[str]) -> tuple[str, ...]:
    """Return the logits that come with predictions: those of the tasks that they are made of."""
    tasks = {task for name, chain in spec.outputs() if f"p_{name}" in outputs for task in chain}
    return tuple(name for name in spec.logits if name.removeprefix("logit_") in tasks)


def metrics_of(evaluation: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
    """Return an `evaluation.json` without what is said of other outputs."""
    tasks = {
        name: values
        for name, values in evaluation.get("tasks", {}).items()
        if f"p_{name}" in outputs or f"y_{name}" in outputs
    }
    return {**evaluation, "tasks": tasks}
