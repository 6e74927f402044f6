"""What a surgery starts from, and what it will do: both without a tensor."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from recsys_moe.changes import UNCHANGED, Changes
from recsys_moe.checkpoint import load_config
from recsys_moe.errors import RequestError
from recsys_moe.modules.gated import Layer
from recsys_moe.modules.removed import numbers
from recsys_moe.spec import FeatureSpec

TRAIN = ("new", "gates", "all", "none")


@dataclass(frozen=True)
class Before:
    """A finished run, and the features that its model shall go on with.

    Attributes:
        run: The run's folder.
        spec: The run's feature spec.
        features: The folder of the features to go on with.
        new_spec: Their spec.
    """

    run: Path
    spec: FeatureSpec
    features: Path
    new_spec: FeatureSpec

    @cached_property
    def model(self) -> dict[str, Any]:
        """The configuration of the run's model."""
        values: Any = OmegaConf.to_container(load_config(self.run).model, resolve=True)
        return dict(values)

    @cached_property
    def changes(self) -> Changes:
        """What had become of the model by then."""
        build: partial[Any] = instantiate(OmegaConf.create(self.model), _convert_="all")
        found: Changes = build.keywords.get("changes", UNCHANGED)
        return found

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers of experts of the run's model, none where it has no gate."""
        with torch.device("meta"):
            model = instantiate(OmegaConf.create(self.model), _convert_="all")(self.spec)
        found: tuple[Layer, ...] = model.layers()
        return found

    def check_gates(self, kind: str) -> None:
        """Refuse a model without gates.

        Raises:
            RequestError: There are none.
        """
        if not self.layers:
            name = str(self.model["_target_"]).rpartition(".")[2]
            wanted = "a run of a model with gates (mmoe, moe or ple)"
            raise RequestError(f"surgery={kind}", wanted=wanted, got=f"one of {name}")

    def experts(self, layer: str | None, experts: Sequence[str | int]) -> tuple[Layer, list[int]]:
        """Return a layer and the numbers of experts in it that were named or numbered.

        Raises:
            RequestError: An unknown layer or expert, or no layer where there are several.
        """
        layers = {each.name: each for each in self.layers}
        if layer is None and len(layers) == 1:
            layer = next(iter(layers))
        if layer not in layers:
            wanted = " or ".join(layers)
            raise RequestError("surgery.layer", wanted=wanted, got=repr(layer), choices=layers)
        return layers[layer], numbers(layers[layer], experts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a surgery does.

    Attributes:
        kind: Its name.
        changes: What will have become of the model.
        train: What is trained then: `new` parameters, those of `gates`, `all` or `none`.
        removed: By layer the names of the experts that this surgery takes out.
        frozen: By layer the numbers of the experts that training leaves alone.
        from_task: The task whose own tensors a new task starts with.
        share: How much added experts start with.
    """

    kind: str
    changes: Changes
    train: str
    removed: Mapping[str, Sequence[str]] = field(default_factory=dict)
    frozen: Mapping[str, Sequence[int]] = field(default_factory=dict)
    from_task: str | None = None
    share: float | None = None

    def model(self, before: Before, *, changes: Changes | None = None) -> DictConfig:
        """Return the configuration of the model, with these changes or its own."""
        changes = self.changes if changes is None else changes
        model = {key: value for key, value in before.model.items() if key != "changes"}
        if changes != UNCHANGED and before.layers:
            values = asdict(changes)
            domains = [{"_target_": f"{_CHANGES}.Domain", **each} for each in values["domains"]]
            model["changes"] = {"_target_": f"{_CHANGES}.Changes", **values, "domains": domains}
        return OmegaConf.create(model)


def check_train(train: str, choices: Sequence[str]) -> str:
    """Return what shall be trained, if it is one of the choices."""
    if train not in choices:
        wanted = " or ".join(choices)
        raise RequestError("surgery.train", wanted=wanted, got=repr(train), choices=choices)
    return train


_CHANGES = "recsys_moe.changes"
