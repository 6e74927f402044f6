"""What `recsys-moe-train` asks for with `surgery=…`, checked and turned into a plan."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from recsys_moe.checkpoint import load_config
from recsys_moe.command import building
from recsys_moe.errors import RequestError
from recsys_moe.spec import FeatureSpec
from recsys_moe.surgery.kinds import resolved
from recsys_moe.surgery.plan import Before, Plan

OF_THE_RUN = ("model", "router", "experts")
"""The settings that a surgery takes from the run that it starts from."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A surgery to do: the whole configuration that the new run is to have, and the plan."""

    config: DictConfig
    before: Before
    plan: Plan


def check_request(config: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse a surgery on nothing, and a model beside that of the run.

    Raises:
        RequestError: No `init_from`, or settings of the model on the command line.
    """
    kind = str(config.surgery.get("_target_")).rpartition(".")[2]
    if config.init_from is None:
        wanted = "init_from=…, a finished run"
        raise RequestError(f"surgery={kind}", wanted=wanted, got="none to start from")
    for override in overrides:
        found = re.match(r"[+~]*(\w+)", override)
        if found and found.group(1) in OF_THE_RUN:
            wanted = "the model as init_from has it, and nothing said of it"
            raise RequestError(f"surgery={kind}", wanted=wanted, got=override)


def operation(config: DictConfig, run: Path, features: Path, spec: FeatureSpec) -> Operation:
    """Return the surgery that a configuration asks for."""
    before = Before(run, FeatureSpec.load(run / "feature_spec.json"), features, spec)
    with building("surgery"):
        plan = resolved(before, instantiate(config.surgery, _convert_="all")(before))
    values: Any = OmegaConf.to_container(config, resolve=True)
    old: Any = OmegaConf.to_container(load_config(run), resolve=True)
    values |= {name: old[name] for name in OF_THE_RUN if name in old}
    model = OmegaConf.to_container(plan.model(before), resolve=True)
    return Operation(OmegaConf.create({**values, "model": model}), before, plan)
