"""Rows of a domain get an expert of their own, and no other row notices."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys_moe.checkpoint import load_model
from recsys_moe.datamodule import Split
from tests.surgery.conftest import refused, weights

GREEN = ["surgery.feature=color", "surgery.value=green"]


def codes(features: Path) -> torch.Tensor:
    return torch.from_numpy(np.load(features / "tensors" / "test" / "codes.npy"))


@pytest.mark.parametrize("model", ["mmoe top_k", "moe top_p", "ple 2"])
def test_only_rows_of_the_domain_move(model: str, theatre: Any, tmp_path: Path) -> None:
    run = theatre.run(model)
    after = theatre.cut(run, tmp_path / "run", "add_domain", *GREEN, "optimizer.lr=0.1")

    green_N = codes(theatre.features)[:, 0] == 4
    found = theatre.logits(after)
    for task, logits in theatre.logits(run).items():
        assert torch.equal(found[task][~green_N], logits[~green_N])
        assert (found[task] - logits)[green_N].abs().min() > 0
    new = weights(after)
    assert all(torch.equal(new[name], value) for name, value in weights(run).items())
    assert all(name.startswith("model.domains.0.") for name in new.keys() - weights(run).keys())


def test_it_is_the_gated_mean_of_mixture_and_expert(theatre: Any, tmp_path: Path) -> None:
    run = theatre.cut(theatre.run("mmoe"), tmp_path / "run", "add_domain", *GREEN, "optimizer.lr=1")
    model, spec = load_model(run)
    batch = Split(theatre.features, "test", spec).batch(slice(None))

    with torch.no_grad():
        x_BD = torch.cat([model.embeddings(batch.codes), batch.numbers], dim=1)
        mixed, (domain,) = model.mixture(x_BD), model.domains
        h_BH = domain.bank(x_BD)[:, 0]
        expected = []
        for task, y_BH in enumerate(mixed):
            gate = domain.gates[task]
            rows = [
                (1 - g) * y + g * h if code == 4 else y
                for y, h, g, code in zip(
                    y_BH, h_BH, gate(x_BD).sigmoid(), batch.codes[:, 0], strict=True
                )
            ]
            expected.append(model.towers[task](torch.stack(rows)))
        found = model(batch.codes, batch.numbers)

    for task, logits in zip(model.tasks, expected, strict=True):
        torch.testing.assert_close(found[task], logits, rtol=0, atol=1e-5)


def test_a_new_value_trains_its_row_alone(theatre: Any, tmp_path: Path) -> None:
    """With decay of the tables, which must not reach the rows that were there."""
    run, features = theatre.run("mmoe"), theatre.grown(tmp_path / "features", "violet")
    after = theatre.cut(
        run,
        tmp_path / "run",
        "add_domain",
        "surgery.feature=color",
        "surgery.value=violet",
        "optimizer=adamw",
        "optimizer.table_weight_decay=0.5",
        "optimizer.table_lr=0.1",
        features=features,
    )
    still = theatre.cut(
        run,
        tmp_path / "still",
        "add_domain",
        "surgery.feature=color",
        "surgery.value=violet",
        "surgery.train=none",
        features=features,
    )

    name = "model.embeddings.weight_Vd"
    old_Vd, start_Vd, new_Vd = (weights(each)[name] for each in (run, still, after))
    assert torch.equal(torch.cat([new_Vd[:8], new_Vd[9:]]), old_Vd)
    assert (new_Vd[8] - start_Vd[8]).abs().min() > 0
    violet_N = codes(features)[:, 0] == 8
    found = theatre.logits(after, features)
    for task, logits in theatre.logits(run).items():
        assert torch.equal(found[task][~violet_N], logits[~violet_N])


def test_wrong_domains_are_refused(
    theatre: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = theatre.run("mmoe")

    def line(*arguments: str, model: Path = run) -> str:
        return refused(
            capsys, lambda: theatre.cut(model, tmp_path / "new", "add_domain", *arguments)
        )

    assert "surgery.feature: wanted surgery.feature=…, got nothing" in line("surgery.value=red")
    assert "Did you mean 'green'?" in line("surgery.feature=color", "surgery.value=gren")
    assert "Did you mean 'color'?" in line("surgery.feature=colour", "surgery.value=red")
    assert "wanted a feature with a vocabulary" in line("surgery.feature=tags", "surgery.value=red")
    assert (
        "wanted a run of a model with gates (mmoe, moe or ple), got one of shared_bottom"
        in line(*GREEN, model=theatre.run("shared_bottom"))
    )
    once = theatre.cut(run, tmp_path / "once", "add_domain", *GREEN, "surgery.train=none")
    assert "without an expert of its own" in line(*GREEN, model=once)
