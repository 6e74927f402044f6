"""A Ranker over a small features folder, as the train command builds it, without a trainer."""

from pathlib import Path
from types import SimpleNamespace

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from recsys_moe.batch import Batch
from recsys_moe.datamodule import Split
from recsys_moe.gate_watch import GateWatch
from recsys_moe.paths import CONF_DIR
from recsys_moe.ranker import Ranker
from recsys_moe.spec import FeatureSpec

SMALL = ["model.widths=[8,4]", "model.tower_widths=[4]", "model.dropout=0.0"]


def make_ranker(features: Path, output: Path, *overrides: str, micro_batches: int = 1) -> Ranker:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        given = [f"features={features}", f"output={output}", *SMALL, *overrides]
        cfg = compose("train", given)
    spec = FeatureSpec.load(features / "feature_spec.json")
    torch.manual_seed(3)
    model = instantiate(cfg.model, _convert_="all")(spec)
    ranker = Ranker(
        model,
        instantiate(cfg.loss)(spec),
        spec,
        instantiate(cfg.optimizer),
        instantiate(cfg.balance)(model),
        GateWatch(model, output),
        num_steps=10,
        log_every_steps=5,
    )
    ranker.trainer = SimpleNamespace(accumulate_grad_batches=micro_batches)  # type: ignore[assignment]
    ranker.on_fit_start()
    return ranker


def train_rows(features: Path, rows: slice) -> Batch:
    spec = FeatureSpec.load(features / "feature_spec.json")
    return Split(features, "train", spec).batch(rows)
