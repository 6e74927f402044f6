"""A bank is its experts: initialisation, numbering, surgery, slices."""

import pytest
import torch

from recsys_moe.errors import RequestError
from recsys_moe.moe.banks import Bank, LinearBank, MLPBank
from recsys_moe.moe.banks_gated import CrossBank, SwiGLUBank
from recsys_moe.moe.banks_hetero import HeteroBank
from recsys_moe.moe.grouped import segment_sum

KINDS = {
    "mlp": lambda e: MLPBank(e, 8, [16, 4]),
    "mlp without biases": lambda e: MLPBank(e, 8, [16, 4], bias=False),
    "swiglu": lambda e: SwiGLUBank(e, 8, 16, 4),
    "linear": lambda e: LinearBank(e, 8, 4),
    "cross": lambda e: CrossBank(e, 8, rank=2, num_layers=2),
}


def test_relu_experts_are_perceptrons_one_by_one() -> None:
    bank, x_ND = MLPBank(3, 8, [16, 4]), torch.randn(7, 8)

    for e in range(3):
        h = x_ND
        for weight_EOI, bias_EO in zip(bank.weights_EOI, bank.biases_EO, strict=True):
            h = torch.relu(h @ weight_EOI[e].T + bias_EO[e])
        torch.testing.assert_close(bank(x_ND)[:, e], h, rtol=0, atol=1e-6)


def test_dropout_is_of_training_alone() -> None:
    bank, x_ND = MLPBank(3, 8, [16, 4], dropout=0.5), torch.randn(7, 8)

    assert not torch.equal(bank(x_ND), bank(x_ND))
    bank.eval()
    assert torch.equal(bank(x_ND), bank(x_ND))


@pytest.mark.parametrize("kind", KINDS)
def test_the_three_ways_to_compute_agree(kind: str) -> None:
    torch.manual_seed(0)
    bank = KINDS[kind](3).double()
    x_ND = torch.randn(6, 8, dtype=torch.float64)

    want_NEO = bank(x_ND)

    batched_ENO = bank.batched(x_ND.expand(3, 6, 8))
    torch.testing.assert_close(batched_ENO.transpose(0, 1), want_NEO, rtol=0, atol=1e-12)
    counts_E = torch.tensor([2, 0, 4], dtype=torch.int32)
    grouped_NO = bank.grouped(x_ND, counts_E)
    want_NO = torch.cat([want_NEO[:2, 0], want_NEO[2:, 2]])
    torch.testing.assert_close(grouped_NO, want_NO, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_experts_can_be_added_and_taken_away(kind: str) -> None:
    bank, other, x_ND = KINDS[kind](3), KINDS[kind](2), torch.randn(5, 8)
    next(bank.parameters()).requires_grad_(False)

    both = bank.append(other)

    assert both.num_experts == 5
    want = torch.cat([bank(x_ND), other(x_ND)], dim=1)
    torch.testing.assert_close(both(x_ND), want, rtol=1e-6, atol=1e-6)
    assert [p.requires_grad for p in both.parameters()] == [
        p.requires_grad for p in bank.parameters()
    ]
    kept = both.keep([4, 0])
    assert kept.num_experts == 2
    torch.testing.assert_close(kept(x_ND), both(x_ND)[:, [4, 0]], rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        for parameter in both.parameters():
            parameter.zero_()
    assert bank(x_ND).abs().sum() > 0  # a new bank shares nothing with the old


@pytest.mark.parametrize("kind", KINDS)
def test_experts_of_their_own_rows_do_not_notice_new_ones(kind: str) -> None:
    bank, other, x_ND = KINDS[kind](3), KINDS[kind](2), torch.randn(5, 8)

    before = bank.grouped(x_ND, torch.tensor([2, 0, 3]))

    assert torch.equal(bank.append(other).grouped(x_ND, torch.tensor([2, 0, 3, 0, 0])), before)


def test_a_bank_takes_its_own_kind_only() -> None:
    bank = MLPBank(2, 8, [4])
    others: list[Bank] = [
        LinearBank(2, 8, 4),
        MLPBank(2, 8, [5]),
        MLPBank(2, 8, [4], activation="silu"),
        MLPBank(2, 8, [4], bias=False),
    ]
    for other in others:
        with pytest.raises(RequestError, match="append: wanted a bank of"):
            bank.append(other)


@pytest.mark.parametrize("indices", [[], [0, 0], [2], [-1]])
def test_only_experts_that_are_there_can_be_kept(indices: list[int]) -> None:
    with pytest.raises(RequestError, match="different experts from 0 to 1"):
        LinearBank(2, 8, 4).keep(indices)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLPBank(2, 8, [4], activation="tanh"), "relu, silu, gelu_tanh"),
        (lambda: MLPBank(2, 8, []), "at least 1"),
        (lambda: MLPBank(0, 8, [4]), r"bank\.num_experts"),
        (lambda: SwiGLUBank(2, 8, 0), "hidden_width"),
        (lambda: CrossBank(2, 8, rank=0), "rank"),
        (lambda: HeteroBank([]), "at least one"),
        (lambda: HeteroBank([LinearBank(1, 3, 4)], features=[[slice(0, 3)]]), "no bank reads all"),
        (lambda: HeteroBank([LinearBank(1, 3, 4), LinearBank(1, 4, 4)]), "bank 1"),
        (
            lambda: HeteroBank([LinearBank(1, 3, 4)], input_width=2, features=[[slice(0, 3)]]),
            "neighbouring columns within 2",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_named(build: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        build()


def test_a_mixed_bank_is_its_parts_side_by_side() -> None:
    first, second, x_ND = MLPBank(2, 8, [4]), SwiGLUBank(3, 8, 5, 4), torch.randn(6, 8)

    bank = HeteroBank([first, second])

    assert bank.num_experts == 5
    assert torch.equal(bank(x_ND), torch.cat([first(x_ND), second(x_ND)], dim=1))
    assert torch.equal(HeteroBank([first])(x_ND), first(x_ND))


def test_an_expert_of_a_modality_sees_its_columns_only() -> None:
    bank = HeteroBank([LinearBank(1, 3, 4), LinearBank(1, 8, 4)], features=[[slice(2, 5)], None])
    x_ND = torch.randn(6, 8, requires_grad=True)

    (grad_ND,) = torch.autograd.grad(bank(x_ND)[:, 0].sum(), [x_ND])

    assert (grad_ND[:, 2:5] != 0).all()
    assert (grad_ND[:, [0, 1, 5, 6, 7]] == 0).all()


def test_a_segment_sum_is_the_sum_of_each_experts_rows() -> None:
    rows_RO, ends_E = torch.randn(12, 8), torch.tensor([4, 4, 9], dtype=torch.int32)

    want = torch.stack([rows_RO[:4].sum(0), torch.zeros(8), rows_RO[4:9].sum(0)])

    torch.testing.assert_close(segment_sum(rows_RO, ends_E), want)


@pytest.mark.parametrize("kind", KINDS)
def test_every_expert_starts_as_nn_linear_does(kind: str) -> None:
    torch.manual_seed(0)
    for name, parameter in KINDS[kind](3).named_parameters():
        if parameter.dim() == 3:  # within 1 / sqrt(fan in), and filling it
            bound = parameter.shape[2] ** -0.5
            assert 0.8 * bound < parameter.abs().max() <= bound, name
            assert not torch.equal(parameter[0], parameter[1])
