"""A run folder -> the model it trained, rebuilt strictly and without executing code."""

import pickle
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from recsys_moe.command import building
from recsys_moe.errors import RequestError
from recsys_moe.files import SUCCESS
from recsys_moe.spec import FeatureSpec

ALLOWED_TARGETS = ("recsys_moe.", "torch.optim.", "pytorch_lightning.")
_PREFIX = "model."


def load_model(run: Path) -> tuple[nn.Module, FeatureSpec]:
    """Return the model of a finished run's best checkpoint, in eval mode, and its feature spec.

    Raises:
        RequestError: The run is not finished, its files do not belong together, or its
            configuration names a target outside the allowed packages.
    """
    if not (run / SUCCESS).exists() or not (run / "config.yaml").exists():
        state = "an unfinished run" if (run / "config.yaml").exists() else "no run"
        raise RequestError(f"run={run}", wanted="the folder of a finished run", got=state)
    spec = FeatureSpec.load(run / "feature_spec.json")
    cfg = load_config(run)
    with building(f"{run / 'config.yaml'}, model"):
        model: nn.Module = instantiate(cfg.model, _convert_="all")(spec)
    state = read_checkpoint(run / "best.ckpt")["state_dict"]
    weights = {name.removeprefix(_PREFIX): value for name, value in state.items()}
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise RequestError(
            str(run / "best.ckpt"), wanted="the weights of config.yaml's model", got=reason
        ) from None
    return model.eval(), spec


def load_config(run: Path) -> DictConfig:
    """Read a run's config.yaml and check every `_target_` in it; its files are found in the run."""
    path = run / "config.yaml"
    try:
        cfg = OmegaConf.load(path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RequestError(str(path), wanted="a readable YAML file", got=reason) from None
    if not isinstance(cfg, DictConfig) or "model" not in cfg:
        raise RequestError(str(path), wanted="a run's configuration", got="no model in it")
    check_targets(cfg)
    if frozen := cfg.model.get("frozen_experts"):
        cfg.model.frozen_experts = [str(run / path) for path in frozen]
    return cfg


def check_targets(cfg: DictConfig) -> None:
    """Refuse a configuration that would call anything but our own, torch's and Lightning's."""
    for path, target in _targets(OmegaConf.to_container(cfg, resolve=True), ""):
        if not str(target).startswith(ALLOWED_TARGETS):
            raise RequestError(
                f"{path}_target_",
                wanted=f"one under {', '.join(ALLOWED_TARGETS)}",
                got=f"{target!r}",
            )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read tensors and plain values; anything else in the file is refused."""
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RequestError(str(path), wanted="a checkpoint", got="no file") from None
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        LookupError,
        ValueError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RequestError(
            str(path), wanted="a checkpoint of tensors and plain values", got=reason
        ) from None
    return checkpoint


def _targets(node: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(node, dict):
        own = [(path, node["_target_"])] if "_target_" in node else []
        return own + [
            found for key, value in node.items() for found in _targets(value, f"{path}{key}.")
        ]
    if isinstance(node, list):
        return [found for i, value in enumerate(node) for found in _targets(value, f"{path}{i}.")]
    return []
