"""One set of laws over every router, kind of expert and wiring in conf/, and their combinations."""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn

from export.core import export_core
from export.graph import open_graph
from export.manifest import CODES, CORE_FILE, NUMBERS
from recsys_moe.errors import RequestError
from recsys_moe.paths import CONF_DIR
from recsys_moe.spec import FeatureSpec

ROUTERS = sorted(path.stem for path in (CONF_DIR / "router").glob("*.yaml"))
EXPERTS = sorted(path.stem for path in (CONF_DIR / "experts").glob("*.yaml"))
WIRINGS = ("mmoe", "moe", "ple")
REFUSED = {("ple", "soft_moe"), ("ple", "union_budget")}
NOT_EXPORTED = {"expert_choice", "soft_moe"}
COMBINATIONS = [(w, r, e) for w in WIRINGS for r in ROUTERS for e in EXPERTS]


def usual(combination: tuple[str, str, str]) -> bool:
    """Each router in each wiring, and each kind of expert under a sparse gate in each wiring."""
    _, router, experts = combination
    return experts == "mlp" or router == "top_k"


def few(combination: tuple[str, str, str]) -> bool:
    """Each router once, each wiring once, each kind of expert once."""
    wiring, router, experts = combination
    if wiring == "mmoe":
        return experts == "mlp"
    return router == "top_k" and (wiring == "ple" or experts == "mlp")


@pytest.fixture(scope="module")
def spec(make_features: Callable[..., Path]) -> FeatureSpec:
    return FeatureSpec.load(make_features(rows=400) / "feature_spec.json")


@pytest.fixture(scope="module", autouse=True)
def _conf() -> Iterator[None]:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        yield


def build(spec: FeatureSpec, wiring: str, router: str, experts: str, *more: str) -> nn.Module:
    choice = [f"model={wiring}", f"router={router}", f"experts={experts}"]
    small = ["model.embedding_dim=3", "model.widths=[8,4]", "model.tower_widths=[4]"]
    cfg = compose("train", overrides=["features=f", "output=o", *choice, *small, *more])
    torch.manual_seed(0)
    return instantiate(cfg.model, _convert_="all")(spec)


def rows(spec: FeatureSpec, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    codes = torch.randint(0, 4, (count, spec.num_slots), generator=generator, dtype=torch.int32)
    return codes, torch.randn(count, spec.num_numbers, generator=generator)


def cases(
    default: Callable[[tuple[str, str, str]], bool], without: Collection[str] = ()
) -> list[object]:
    return [
        pytest.param(*each, marks=[] if default(each) else pytest.mark.slow, id="-".join(each))
        for each in COMBINATIONS
        if each[:2] not in REFUSED and each[1] not in without
    ]


@pytest.mark.parametrize(("wiring", "router", "experts"), cases(usual))
def test_every_part_of_it_learns(wiring: str, router: str, experts: str, spec: FeatureSpec) -> None:
    levels = ["model.num_levels=2"] if wiring == "ple" else []
    model = build(spec, wiring, router, experts, *levels).train()
    codes, numbers = rows(spec, 256)
    gradients = {name: torch.zeros(()) for name, _ in model.named_parameters()}

    for _ in range(3):
        model.zero_grad()
        logits, gated = model.routed(codes, numbers)
        sum(logit.square().sum() for logit in logits.values()).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                assert parameter.grad.isfinite().all(), name
                gradients[name] = gradients[name] + parameter.grad.abs().sum()
            with torch.no_grad():
                parameter.add_(0.1 * torch.randn_like(parameter))

    assert [name for name, gradient in gradients.items() if not gradient > 0] == []
    layers = {layer.name: layer for layer in model.layers()}
    assert {(each.layer, each.gate) for each in gated} == {
        (layer.name, gate) for layer in layers.values() for gate in layer.gates
    }
    for each in gated:
        layer = layers[each.layer]
        hidden_E = ~torch.tensor(layer.visible[layer.gates.index(each.gate)])
        assert each.routing.num_experts == len(layer.experts) == len(layer.owners)
        assert not each.routing.dense()[:, hidden_E].any()


@pytest.mark.parametrize(("wiring", "router", "experts"), cases(few, NOT_EXPORTED))
def test_its_graph_is_the_model_row_by_row(
    wiring: str, router: str, experts: str, spec: FeatureSpec, tmp_path: Path
) -> None:
    model = build(spec, wiring, router, experts).eval()
    export_core(model, spec, tmp_path)
    session = open_graph(tmp_path / CORE_FILE)
    names = list(spec.logits)

    def scored(codes: torch.Tensor, numbers: torch.Tensor) -> np.ndarray:
        return np.stack(session.run(names, {CODES: codes.numpy(), NUMBERS: numbers.numpy()}))

    for count in (0, 1, 3, 64, 257):
        codes, numbers = rows(spec, count)
        with torch.no_grad():
            expected = torch.stack(list(model(codes, numbers).values())).numpy()
        np.testing.assert_allclose(scored(codes, numbers), expected, rtol=0, atol=1e-5)
    alone = [scored(codes[i : i + 1], numbers[i : i + 1]) for i in range(16)]
    np.testing.assert_allclose(
        np.concatenate(alone, axis=1), scored(codes, numbers)[:, :16], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(("wiring", "router"), sorted(REFUSED))
def test_what_a_wiring_cannot_have_is_refused_with_the_reason(
    wiring: str, router: str, spec: FeatureSpec
) -> None:
    with pytest.raises(RequestError, match=r"router.*wanted.*model=mmoe.*got"):
        build(spec, wiring, router, "mlp")


@pytest.mark.parametrize("wiring", WIRINGS)
def test_an_expert_left_out_has_no_weight_and_the_others_have_its(
    wiring: str, spec: FeatureSpec
) -> None:
    model = build(spec, wiring, "softmax", "mlp").eval()
    codes, numbers = rows(spec, 20)
    logits, before = model.routed(codes, numbers)
    layer = model.layers()[0]

    model.mixture.ablated = (layer.name, len(layer.experts) - 1)
    without, after = model.routed(codes, numbers)

    for old, new in zip(before, after, strict=True):
        dense_NE = new.routing.dense()
        assert not dense_NE[:, -1].any()
        torch.testing.assert_close(dense_NE.sum(-1), torch.ones(20))
        rest_NE = old.routing.dense()[:, :-1]
        torch.testing.assert_close(dense_NE[:, :-1], rest_NE / rest_NE.sum(-1, keepdim=True))
    assert all(not torch.equal(without[task], logits[task]) for task in logits)


def test_experts_of_a_group_read_its_features_alone(spec: FeatureSpec) -> None:
    name = spec.code_features[0].name
    group = f"+model.group_experts.first={{features:[{name}],num_experts:2}}"
    model = build(spec, "mmoe", "softmax", "mlp", group).eval()
    bank = model.mixture.bank
    x = torch.randn(4, bank.input_width)
    other = x.clone()
    other[:, 3:] = torch.randn(4, bank.input_width - 3)

    assert model.layers()[0].experts[-2:] == ("first/mlp 0", "first/mlp 1")
    assert torch.equal(bank(x)[:, -2:], bank(other)[:, -2:])
    assert not torch.equal(bank(x)[:, 0], bank(other)[:, 0])


def test_experts_of_a_group_have_names_of_their_own(spec: FeatureSpec) -> None:
    """Two kinds that are built alike count on, as they do in the pool."""
    kind = "{_target_: recsys_moe.expert_kinds.mlp, _partial_: true, activation: silu}"
    group = f"+model.group_experts.g={{features:[{spec.code_features[0].name}],num_experts:6}}"
    model = build(spec, "mmoe", "softmax", "mixed", f"+experts.kinds.silu={kind}", group)

    names = model.layers()[0].experts
    assert len(set(names)) == len(names)
    assert {"g/mlp 0", "g/mlp 1"} < set(names)


@pytest.mark.parametrize(
    ("group", "line"),
    [
        ("{features:[colour]}", r"group_experts.g.features.*'colour'"),
        ("{features:colour}", "group_experts.g: wanted features, a list"),
        ("[]", "group_experts.g: wanted features, a list"),
        ("{features:[]}", "group_experts.g: wanted at least one feature"),
    ],
)
def test_a_group_that_is_none_is_refused(spec: FeatureSpec, group: str, line: str) -> None:
    with pytest.raises(RequestError, match=line):
        build(spec, "mmoe", "softmax", "mlp", f"+model.group_experts.g={group}")
