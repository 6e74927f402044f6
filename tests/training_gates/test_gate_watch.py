"""What a run keeps of its gates, against sums done by hand; and that watching changes nothing."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from recsys_moe.errors import CollapseError
from recsys_moe.gate_watch import GateWatch, expert_outputs
from recsys_moe.moe.monitor_health import Health
from recsys_moe.optimizer import adamw
from recsys_moe.ranker import Ranker
from tests.training_gates.ranking import make_ranker, train_rows

MakeFeatures = Callable[..., Path]
PARTS = [slice(0, 64), slice(64, 100), slice(100, 164)]


@pytest.fixture(scope="module")
def features(make_features: MakeFeatures) -> Path:
    return make_features(rows=300)


def dense_weights(ranker: Ranker, features: Path, rows: slice) -> dict[str, Tensor]:
    """Return each gate's weights, (N, E), for some rows, in training mode without noise."""
    batch = train_rows(features, rows)
    with torch.no_grad():
        gated = ranker.model.routed(batch.codes, batch.numbers)[1]  # type: ignore[operator]
    return {f"{gate.layer}/{gate.gate}": gate.routing.dense() for gate in gated}


@pytest.mark.parametrize("router", ["softmax", "top_k", "top_p"])
def test_a_row_of_gates_csv_holds_the_mean_weights_of_its_interval(
    features: Path, tmp_path: Path, router: str
) -> None:
    ranker = make_ranker(features, tmp_path, f"router={router}", "model.num_levels=2")
    parts = [dense_weights(ranker, features, rows) for rows in PARTS]

    for step, of_interval in ((1, [0, 1]), (2, [2])):
        for number in of_interval:
            ranker.training_step(train_rows(features, PARTS[number]), 0)
        numbers = ranker.watch.log(step)
    ranker.watch.file.save()

    rows = list(csv.DictReader((tmp_path / "gates.csv").open()))
    assert [row["step"] for row in rows] == ["1", "2"]
    for row, of_interval in zip(rows, ([0, 1], [2]), strict=True):
        for gate in parts[0]:
            mean_E = torch.cat([parts[number][gate] for number in of_interval]).mean(0)
            found = [float(row[f"share/{gate}/{e}"]) for e in range(len(mean_E))]
            torch.testing.assert_close(torch.tensor(found), mean_E, atol=2e-6, rtol=0)
    gates = {"level 0/click", "level 0/conversion", "level 0/shared"}
    assert {*parts[0]} == gates | {"level 1/click", "level 1/conversion"}
    assert numbers["gates/level 0/dead_experts"] == 0
    assert {name.split("/")[1] for name in numbers} == {"level 0", "level 1"}


@pytest.mark.parametrize(
    ("model", "router"), [("mmoe", "top_k"), ("ple", "softmax"), ("ple", "switch")]
)
def test_outputs_are_those_of_the_banks_and_the_model_stays_as_it_is(
    features: Path, tmp_path: Path, model: str, router: str
) -> None:
    """Dropout is off while they are looked at, and no random number is drawn."""
    ranker = make_ranker(
        features, tmp_path, f"model={model}", f"router={router}", "model.dropout=0.5"
    )
    net, batch = ranker.model.train(), train_rows(features, slice(0, 20))
    random = torch.get_rng_state()

    (h_NEO,) = expert_outputs(net, batch)

    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in net.modules())
    mixture = net.mixture
    assert mixture.dispatch == "auto"  # type: ignore[union-attr]
    net.eval()
    with torch.no_grad():
        x_BD = net._input(batch.codes, batch.numbers)  # type: ignore[operator]
        banks = (
            [mixture.bank]  # type: ignore[union-attr]
            if model == "mmoe"
            else [*mixture.levels[0].task_banks, mixture.levels[0].shared_bank]  # type: ignore[union-attr,index]
        )
        expected = torch.cat([bank(x_BD) for bank in banks], dim=1)
    assert h_NEO is not None
    assert torch.equal(h_NEO, expected)
    assert h_NEO.shape[1] == len(net.layers()[0].experts)  # type: ignore[operator]


def test_experts_that_see_no_single_rows_have_no_outputs_to_compare(
    features: Path, tmp_path: Path
) -> None:
    ranker = make_ranker(features, tmp_path, "model=mmoe", "router=soft_moe")
    assert expert_outputs(ranker.model, train_rows(features, slice(0, 20))) == [None]


def test_nothing_of_the_watch_is_in_the_weights(features: Path, tmp_path: Path) -> None:
    ranker = make_ranker(features, tmp_path)
    model = {f"model.{name}" for name in ranker.model.state_dict()}
    assert {*ranker.state_dict()} == model


def one_expert_only(ranker: Ranker) -> None:
    """Make every gate choose expert 1."""
    with torch.no_grad():
        for gate in ranker.model.mixture.gates:  # type: ignore[union-attr]
            gate.linear.weight.zero_()
            gate.linear.bias.copy_(torch.eye(8)[1] * 50)


def test_a_collapse_is_said_once_kept_in_words_and_raised_if_asked(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["model=mmoe", "router=switch", "+router.bias=true", "balance=none"]
    ranker = make_ranker(features, tmp_path, *settings)
    one_expert_only(ranker)
    watch = ranker.watch = GateWatch(ranker.model, tmp_path, collapse_share=0.8)
    batch = train_rows(features, slice(0, 64))
    for epoch in range(2):
        ranker.training_step(batch, 0)
        numbers = watch.log(epoch)
        watch.close_epoch(epoch, batch)

    assert numbers["gates/experts/dead_experts"] == 7
    assert numbers["gates/experts/effective_experts"] == pytest.approx(1)
    said = capsys.readouterr().err.splitlines()
    dead = [line for line in said if "is dead" in line]
    assert len(dead) == 7
    assert "warning: experts: expert 0 is dead: 0 of 128 slots" in dead[0]
    assert dead[0].endswith("(0 is 'mlp 0')")
    with pytest.raises(CollapseError, match=r"wanted fewer than 80% of 8 experts dead, got 7"):
        watch.finish()
    report = json.loads((tmp_path / "health.json").read_text())
    (layer,) = report["layers"]
    assert report["epoch"] == 1
    assert layer["dead_experts"] == [0, 2, 3, 4, 5, 6, 7]
    assert layer["shares"]["click"] == [0, 1, 0, 0, 0, 0, 0, 0]
    assert [each["name"] for each in layer["anomalies"][:7]] == ["dead expert"] * 7


def test_a_state_carries_on_in_the_middle_of_an_interval(features: Path, tmp_path: Path) -> None:
    whole, first = make_ranker(features, tmp_path / "a"), make_ranker(features, tmp_path / "b")
    second = make_ranker(features, tmp_path / "c")
    batch = train_rows(features, PARTS[0])
    for ranker in (whole, first):
        ranker.watch.update(ranker.model.routed(batch.codes, batch.numbers)[1])  # type: ignore[operator]
        ranker.watch.log(0)
        ranker.watch.update(ranker.model.routed(batch.codes, batch.numbers)[1])  # type: ignore[operator]
    torch.save(first.watch.state_dict(), tmp_path / "state.pt")
    second.watch.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))

    for ranker in (whole, second):
        rest = train_rows(features, PARTS[1])
        ranker.watch.update(ranker.model.routed(rest.codes, rest.numbers)[1])  # type: ignore[operator]
        ranker.watch.log(1)
        ranker.watch.close_epoch(0, batch)

    assert whole.watch.state_dict()["report"] == second.watch.state_dict()["report"]
    assert whole.watch.file.rows[-1] == second.watch.file.rows[-1]


def test_two_intervals_add_up_to_one() -> None:
    def health(count: float, seen: float | None) -> Health:
        row = (count, 1.0)
        outputs = None if seen is None else (seen, seen)
        return Health(
            name="experts",
            tasks=("a",),
            owners=(None, None),
            visible=((True, True),),
            rows=(count + 1.0,),
            counts=(row,),
            mass=(row,),
            probs=(row,),
            zero_share=outputs,
            scale=outputs,
            similarity=None if outputs is None else (outputs, outputs),
        )

    both = health(3.0, 0.5) + health(4.0, None)
    assert (both.rows, both.counts, both.scale) == ((9.0,), ((7.0, 2.0),), (0.5, 0.5))
    assert (both + health(0.0, 0.7)).scale == (0.7, 0.7)


def test_a_module_names_what_has_no_decay(features: Path, tmp_path: Path) -> None:
    """The temperature of a cosine router would else be pulled to its floor plus one."""
    model = make_ranker(features, tmp_path, "router=cosine").model
    rates = {"lr": 1e-3, "table_lr": 1e-3, "weight_decay": 0.1, "table_weight_decay": 0.0}
    optimizer, _ = adamw(model, 10, warmup_share=0.1, **rates)
    decay = {
        id(parameter): group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    named = dict(model.named_parameters())
    assert {decay[id(p)] for n, p in named.items() if n.endswith("log_temperature")} == {0.0}
    assert {decay[id(p)] for n, p in named.items() if n.endswith("directions_ER")} == {0.1}
    assert len(decay) == len(named)
