"""What a tensor means is found from shapes alone, whatever numbers stand in its name."""

from functools import partial

from recsys_moe import models
from recsys_moe.meanings import Meaning, meanings
from recsys_moe.spec import Categorical, Column, FeatureSpec, Table, Task

SPEC = FeatureSpec(
    dataset="toy",
    columns=(Column(name="a", type="string"),),
    tables=(Table(name="a", num_codes=6, num_oov=1),),
    features=(Categorical(name="a", column="a", table="a"),),
    tasks=(Task(name="click", label="y"), Task(name="like.it", label="z")),
    train_rows=1,
)
SIZES = {"embedding_dim": 2, "tower_widths": [3], "dropout": 0.0, "embedding_dropout": 0.0}


def test_the_number_of_a_task_is_told_from_those_of_levels_and_layers() -> None:
    """With two tasks, three levels and three layers, a third of each has the number 2."""
    build = partial(
        models.ple,
        num_levels=3,
        num_task_experts=1,
        num_shared_experts=1,
        widths=[5, 4, 3],
        **SIZES,
    )

    found = meanings(build, SPEC)

    assert set(found) == set(build(SPEC).state_dict())
    for level in range(3):
        for layer in range(3):
            for number, task in enumerate(SPEC.task_names):
                name = f"mixture.levels.{level}.task_banks.{{}}.weights_EOI.{layer}"
                assert found[name.format(number)] == Meaning(
                    name=name.format("*"),
                    task=task,
                    reads_features=level == layer == 0,
                    depends_on_tasks=False,
                )
            shared = f"mixture.levels.{level}.shared_bank.weights_EOI.{layer}"
            assert (found[shared].name, found[shared].task) == (shared, None)
    of_all = {name for name, meaning in found.items() if meaning.depends_on_tasks}
    assert of_all == {
        f"mixture.levels.{level}.shared_gate.linear.{kind}"
        for level in (0, 1)
        for kind in ("weight", "bias")
    }
    assert not found["embeddings.weight_Vd"].reads_features
