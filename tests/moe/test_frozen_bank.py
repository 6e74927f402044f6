"""A frozen expert in a bank: it is computed, never trained, and travels with the checkpoint."""

import copy
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from recsys_moe.errors import RequestError
from recsys_moe.frozen.columns import raw_columns, slices_of
from recsys_moe.frozen.expert_file import METADATA, ExpertFile, parse_expert, read_expert
from recsys_moe.frozen.extras import copy_experts, frozen_extras
from recsys_moe.frozen.freeze import freeze, freeze_rule
from recsys_moe.moe.banks import MLPBank
from recsys_moe.moe.banks_frozen import FrozenBank, run_graph
from recsys_moe.moe.banks_hetero import HeteroBank
from recsys_moe.moe.block import MoEBlock
from recsys_moe.moe.router_base import Router
from recsys_moe.moe.router_softmax import SoftmaxRouter
from recsys_moe.moe.router_top_k import TopKRouter
from tests.moe.frozen_cases import FEATURES, FRESH, TRAIN, build_spec, fitted, score

SPEC = build_spec()
X = torch.from_numpy(FRESH)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> list[ExpertFile]:
    """Experts of one output, of three, and a line."""
    folder = tmp_path_factory.mktemp("experts")
    kinds = ("LightGBM", "XGBoost of three", "logistic regression")
    return [
        freeze(fitted(kind), SPEC, FEATURES, folder / f"{n}.onnx", rows=TRAIN, name=kind)
        for n, kind in enumerate(kinds)
    ]


def mixture(experts: list[ExpertFile], router: Callable[[int, int], Router]) -> MoEBlock:
    torch.manual_seed(0)
    banks = [MLPBank(2, 5, [8, 4]), *map(FrozenBank, experts)]
    return MoEBlock(router(5, 2 + len(experts)), HeteroBank(banks))


@pytest.mark.parametrize("how", ["dense", "split", "grouped", "capacity"])
def test_every_dispatch_gives_a_frozen_expert_its_rows(how: str, experts: list[ExpertFile]) -> None:
    block = mixture(experts, lambda width, count: TopKRouter(width, count, 2))
    routing = block.router(X)
    outs_NEO = block.bank(X)
    want_NO = (routing.dense().unsqueeze(-1) * outs_NEO).sum(1)

    block.dispatch, block.capacity_factor = how, 9.0

    torch.testing.assert_close(block(X)[0], want_NO, rtol=0, atol=1e-5)
    for number, expert in enumerate(experts):
        own_NP = FrozenBank(expert)(X).squeeze(1)
        projected_NO = block.bank.projections[1 + number](own_NP)
        torch.testing.assert_close(outs_NEO[:, 2 + number], projected_NO)


@pytest.mark.parametrize(
    "router", [SoftmaxRouter, lambda width, count: TopKRouter(width, count, 2)], ids=["all", "top"]
)
def test_a_step_trains_everything_but_what_is_frozen(
    router: Callable[[int, int], Router], experts: list[ExpertFile]
) -> None:
    block = mixture(experts, router)
    head = nn.Linear(4, 1)
    before = copy.deepcopy(block.state_dict())
    optimizer = torch.optim.Adam([*block.parameters(), *head.parameters()], lr=0.1)
    y_NO, _ = block(torch.from_numpy(TRAIN))
    target = torch.from_numpy(score(TRAIN)).float()
    nn.functional.mse_loss(head(y_NO).squeeze(1), target).backward()
    optimizer.step()

    changed = {name for name, value in block.state_dict().items() if not value.equal(before[name])}

    frozen = {f"bank.banks.{n}.{b}" for n in (1, 2, 3) for b in ("graph_U", "mean_P", "scale_P")}
    assert frozen <= before.keys()
    assert changed == before.keys() - frozen


def test_dropout_hides_whole_rows_from_training_alone(experts: list[ExpertFile]) -> None:
    torch.manual_seed(0)
    bank, plain_NP = FrozenBank(experts[1], dropout=0.3), FrozenBank(experts[1])(X).squeeze(1)
    some_NP = bank(X).squeeze(1)
    hidden_N = (some_NP == 0).all(1)
    assert 0.2 < hidden_N.float().mean() < 0.4
    assert some_NP[~hidden_N].equal(plain_NP[~hidden_N])
    assert bank.eval()(X).squeeze(1).equal(plain_NP)


def test_nothing_flows_back_through_it(experts: list[ExpertFile]) -> None:
    x_NM = X.clone().requires_grad_()
    assert not FrozenBank(experts[0])(x_NM).requires_grad


def test_a_checkpoint_has_all_of_it(experts: list[ExpertFile], tmp_path: Path) -> None:
    bank = FrozenBank(experts[2])
    torch.save(bank.state_dict(), tmp_path / "state.ckpt")
    other = FrozenBank(parse_expert(with_another_line(experts[2].content)))
    other(X)  # opens a session on what is about to be replaced
    assert not other(X).equal(bank(X))

    other.load_state_dict(torch.load(tmp_path / "state.ckpt", weights_only=True))

    assert other(X).equal(bank(X))
    assert other.digest == bank.digest


def with_another_line(content: bytes) -> bytes:
    """Return a logistic regression of as many bytes with its weights turned round."""
    model = onnx.load_from_string(content)
    (node,) = (node for node in model.graph.node if node.op_type == "LinearClassifier")
    (weights,) = (a for a in node.attribute if a.name == "coefficients")
    weights.floats[:] = [-value for value in weights.floats]
    return model.SerializeToString(deterministic=True)


def test_copies_types_and_devices_change_no_value(experts: list[ExpertFile]) -> None:
    bank, rows = FrozenBank(experts[0]), X
    want = bank(rows)
    with torch.device("meta"):
        meta = FrozenBank(experts[0])
    meta.load_state_dict(bank.state_dict(), assign=True)
    for other in (copy.deepcopy(bank), meta, bank.keep([0])):
        assert other(rows).equal(want)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bank(rows).equal(want)
    with torch.inference_mode():
        assert bank(rows).equal(want)
    assert torch.compile(bank, fullgraph=True, backend="eager")(rows).equal(want)
    assert bank(rows[:0]).shape == (0, 1, 1)
    assert bank(rows[:1]).allclose(want[:1], atol=1e-6)
    torch.testing.assert_close(copy.deepcopy(bank).double()(rows.double()), want.double())


def test_torch_knows_its_operator(experts: list[ExpertFile]) -> None:
    graph_U = FrozenBank(experts[1]).get_buffer("graph_U")
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(run_graph, (X[:4], graph_U, 3), test_utils=tests)


def test_it_can_be_exported_as_it_is(experts: list[ExpertFile]) -> None:
    block = mixture(experts, SoftmaxRouter).eval()
    rows = torch.export.Dim("rows")
    program = torch.export.export(block, (X[:7],), dynamic_shapes={"x": {0: rows}})
    torch.testing.assert_close(program.module()(X)[0], block(X)[0])


def test_columns_are_found_by_the_names_of_features(experts: list[ExpertFile]) -> None:
    assert raw_columns(SPEC) == {
        "city": slice(0, 1),
        "both": slice(4, 5),
        "price": slice(5, 7),
        "size": slice(7, 8),
    }
    assert slices_of(SPEC, experts[0], after=10) == [
        slice(10, 11),
        slice(14, 15),
        slice(15, 17),
        slice(17, 18),
    ]


def test_another_meaning_of_a_feature_is_refused(experts: list[ExpertFile]) -> None:
    with pytest.raises(RequestError, match="expert 'LightGBM': wanted features that mean what"):
        slices_of(build_spec(buckets=51), experts[0])


def test_a_feature_that_it_does_not_read_may_mean_anything(tmp_path: Path) -> None:
    rule = freeze_rule(SPEC, "price", tmp_path / "rule.onnx", rows=TRAIN[:, 2:4])
    assert slices_of(build_spec(buckets=51), rule) == [slice(5, 7)]


def test_two_experts_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        freeze_rule(SPEC, "price", tmp_path / f"{name}.onnx", rows=TRAIN[:, 2:4])
    paths = [str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx")]
    with pytest.raises(RequestError, match=r"frozen_experts: wanted experts of different names"):
        frozen_extras(paths, SPEC, 10)


def test_a_run_keeps_its_experts_when_their_files_are_gone(tmp_path: Path) -> None:
    path, run = tmp_path / "rule.onnx", tmp_path / "run"
    rule = freeze_rule(SPEC, "price", path, rows=TRAIN[:, 2:4])
    names = copy_experts([str(path)], run)
    path.unlink()
    (extra,) = frozen_extras([str(run / name) for name in names], SPEC, 10)
    assert (extra.names, extra.columns) == (["price"], [slice(15, 17)])
    assert isinstance(extra.bank, FrozenBank)
    assert extra.bank.content == rule.content


def of_whole_numbers(content: bytes) -> bytes:
    """Return a model with an expert's metadata and other types."""
    said = onnx.load_from_string(content).metadata_props
    ends = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", 2]) for name in "xy"]
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    model.metadata_props.extend(said)
    return model.SerializeToString()


def divided_by_zero(content: bytes) -> bytes:
    """Return a rule's file whose values are infinite."""
    model = onnx.load_from_string(content)
    (scale,) = (t for t in model.graph.initializer if t.name == "scale")
    scale.CopyFrom(helper.make_tensor("scale", TensorProto.DOUBLE, [], [0.0]))
    return model.SerializeToString()


def without_metadata(content: bytes) -> bytes:
    model = onnx.load_from_string(content)
    del model.metadata_props[:]
    return model.SerializeToString()


def of_another_version(content: bytes) -> bytes:
    model = onnx.load_from_string(content)
    (prop,) = (p for p in model.metadata_props if p.key == METADATA)
    prop.value = prop.value.replace('"version": 1', '"version": 2')
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda content: b"no model", "wanted an ONNX model, got"),
        (lambda content: content[: len(content) // 2], "wanted an ONNX model, got"),
        (without_metadata, "wanted an expert that `freeze` wrote, got another ONNX model"),
        (of_another_version, "version: wanted 1, got 2"),
        (of_whole_numbers, "the second fixed and above 0, got tensor(int64) ['n', 2]"),
    ],
)
def test_a_file_that_is_no_expert_is_refused_in_a_line(
    damage: Callable[[bytes], bytes], line: str, experts: list[ExpertFile], tmp_path: Path
) -> None:
    path = tmp_path / "damaged.onnx"
    path.write_bytes(damage(experts[2].content))
    with pytest.raises(RequestError, match=re.escape(line)) as caught:
        read_expert(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(RequestError, match="wanted a frozen expert, got No such file"):
        read_expert(tmp_path / "nothing.onnx")


def test_a_value_that_is_not_finite_stops_there(tmp_path: Path) -> None:
    rows = np.ones((3, 2), np.float32)
    rule = freeze_rule(SPEC, "price", tmp_path / "rule.onnx", rows=rows)
    bank = FrozenBank(parse_expert(divided_by_zero(rule.content)))
    with pytest.raises(RequestError, match="got some that are not finite"):
        bank(torch.from_numpy(rows))
