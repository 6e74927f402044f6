"""What a feature spec says of its tasks: which products there are, and what it refuses."""

from pathlib import Path

import pytest

from recsys_moe.errors import SpecError
from recsys_moe.spec import Column, FeatureSpec, Task


def spec_of(*tasks: Task) -> FeatureSpec:
    return FeatureSpec(
        dataset="toy",
        columns=(Column(name="a", type="string"),),
        tables=(),
        features=(),
        tasks=tasks,
        train_rows=1,
    )


CLICK = Task(name="click", label="click", keep_rate=0.1)
SALE = Task(name="sale", label="sale", space="click")
WATCH = Task(
    name="watch",
    label="watch",
    space="click",
    kind="regression",
    transform="log1p",
    mean=3.25,
    scale=0.7,
)


def test_only_binary_tasks_are_in_products() -> None:
    spec = spec_of(CLICK, WATCH, SALE)

    assert dict(spec.outputs()) == {
        "click": ("click",),
        "sale": ("sale",),
        "click_and_sale": ("click", "sale"),
    }
    assert spec.predictions == ("p_click", "p_sale", "p_click_and_sale", "y_watch")
    assert spec.logits == ("logit_click", "logit_sale")


def test_a_saved_spec_is_the_same_spec(tmp_path: Path) -> None:
    spec = spec_of(CLICK, WATCH)
    spec.save(tmp_path / "spec.json")
    assert FeatureSpec.load(tmp_path / "spec.json") == spec


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ((CLICK, WATCH, Task(name="b", label="b", space="watch")), "task 'b', space.*'watch'"),
        (
            (
                CLICK,
                WATCH,
                Task(name="b", label="b", space="watch", kind="regression"),
            ),
            "task 'b', space.*'watch'",
        ),
        ((Task(name="a", label="a", keep_rate=0.0),), "keep_rate"),
        ((Task(name="a", label="a", keep_rate=1.5),), "keep_rate"),
        ((Task(name="a", label="a", kind="regression", keep_rate=0.5),), "keep_rate"),
        ((Task(name="a", label="a", kind="regression", scale=0.0),), "scale"),
        ((Task(name="a", label="a", kind="regression", mean=float("nan")),), "scale"),
    ],
)
def test_a_task_that_cannot_be_is_refused(tasks: tuple[Task, ...], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec_of(*tasks)
