"""Training set in, checkpoints out: the `recsys-moe-train` command."""

import os
import shutil
from pathlib import Path
from typing import Any

import hydra
import polars as pl
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from recsys_moe.command import building, output_folder, report_errors, run_command
from recsys_moe.errors import RequestError
from recsys_moe.files import (
    REQUEST,
    SUCCESS,
    claim,
    digest,
    finish,
    is_done,
    read_json,
    sha256_file,
    whole_file,
    write_json,
    write_text,
)
from recsys_moe.paths import CONF_DIR
from recsys_moe.progress import say
from recsys_moe.spec import FeatureSpec

PROGRAM = "recsys-moe-train"


def main() -> None:
    """Run the command."""
    run_command(_main, PROGRAM)


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
@report_errors(PROGRAM)
def _main(cfg: DictConfig) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded
    features, output = Path(cfg.features).absolute(), output_folder(cfg)
    if not (features / SUCCESS).exists():
        raise RequestError(
            f"features={cfg.features}",
            wanted="a finished features folder",
            got="an unfinished one" if (features / REQUEST).exists() else "none",
        )
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    places = {"features", "output", "overwrite", "init_from"}
    if _is_surgery(cfg):
        from recsys_moe.surgery.command import OF_THE_RUN, check_request

        check_request(cfg, HydraConfig.get().overrides.task)
        places |= {*OF_THE_RUN}
    plain = {key: settings[key] for key in settings.keys() - places}
    run = _checked_start(cfg, output)
    request = {
        "command": PROGRAM,
        "config": plain,
        "features": digest(read_json(features / REQUEST)),
        "feature_spec": sha256_file(features / "feature_spec.json"),
        "init_from": None if run is None else _digests(run),
        "frozen_experts": _expert_digests(settings["model"].get("frozen_experts") or []),
    }
    if is_done(output, request, overwrite=cfg.overwrite):
        say("train", f"{output} is finished, nothing to do")
        return
    _check(cfg, FeatureSpec.load(features / "feature_spec.json"))
    _check_router(cfg)
    _train(cfg, features, output, request, run)


def _is_surgery(cfg: DictConfig) -> bool:
    return str(cfg.surgery.get("_target_")) != "recsys_moe.surgery.kinds.none"


def _expert_digests(paths: list[str]) -> list[str]:
    for path in paths:
        if not Path(path).is_file():
            raise RequestError("model.frozen_experts", wanted="files", got=f"no file {path}")
    return [sha256_file(Path(path)) for path in paths]


def _digests(run: Path) -> dict[str, str]:
    return {name: sha256_file(run / name) for name in ("best.ckpt", "feature_spec.json")}


def _checked_start(cfg: DictConfig, output: Path) -> Path | None:
    """Return the folder of the run to start from, if one is named."""
    if cfg.init_from_optimizer is not False:
        raise RequestError(
            "init_from_optimizer",
            wanted="false (a run starts from weights; the optimiser's state stays behind)",
            got=repr(cfg.init_from_optimizer),
        )
    if cfg.init_from is None:
        return None
    run = Path(str(cfg.init_from)).absolute()
    if run == output:
        raise RequestError("init_from", wanted="another folder than output", got=str(run))
    if not (run / SUCCESS).exists() or not (run / "best.ckpt").exists():
        got = "an unfinished run" if (run / "config.yaml").exists() else "no run"
        what = f"init_from={cfg.init_from}"
        raise RequestError(what, wanted="the folder of a finished run", got=got)
    return run


def _check(cfg: DictConfig, spec: FeatureSpec) -> None:
    """Refuse numbers and names that no part below could use."""
    smallest = {
        "batch_size": 1,
        "max_epochs": 1,
        "patience": 0,
        "log_every_steps": 1,
        "seed": 0,
    }
    for name, least in smallest.items():
        value = cfg[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise RequestError(name, wanted=f"a whole number of at least {least}", got=repr(value))
    seconds = cfg.checkpoint_every_seconds
    if not isinstance(seconds, int | float) or not seconds >= 0:
        wanted = "a number of at least 0"
        raise RequestError("checkpoint_every_seconds", wanted=wanted, got=repr(seconds))
    _collapse_share(cfg.fail_on_collapse)
    from recsys_moe.predictions import monitored

    monitors = [
        f"valid/{metric}{output}"
        for metric, outputs in monitored(spec).items()
        for output in ("", *(f"/{name}" for name in outputs))
    ]
    for name, choices in (("monitor", monitors), ("mode", ["max", "min"])):
        if cfg[name] not in choices:
            wanted = " or ".join(choices)
            raise RequestError(name, wanted=wanted, got=repr(cfg[name]), choices=choices)


def _check_router(cfg: DictConfig) -> None:
    """Refuse a router that is asked for where the model has no gate."""
    asked = [o for o in HydraConfig.get().overrides.task if o.startswith(("router=", "router."))]
    if asked and "router" not in cfg.model:
        model = HydraConfig.get().runtime.choices["model"]
        raise RequestError(
            asked[0], wanted="a model with gates: mmoe, moe or ple", got=f"model={model}"
        )


def _num_steps(cfg: DictConfig, num_batches: int) -> int:
    """Return the optimiser's steps; an epoch's last one may have fewer batches."""
    together = cfg.trainer.get("accumulate_grad_batches", 1)
    if isinstance(together, bool) or not isinstance(together, int) or together < 1:
        what, wanted = "trainer.accumulate_grad_batches", "a whole number of at least 1"
        raise RequestError(what, wanted=wanted, got=repr(together))
    return int(cfg.max_epochs) * -(-num_batches // together)


def _collapse_share(setting: object) -> float | None:
    """Return the share of dead experts that ends a run, None for none."""
    if setting in ("never", False):
        return None
    if setting is True:
        return 0.5
    if isinstance(setting, int | float) and 0 < setting <= 1:
        return float(setting)
    wanted = "never, true (half of a layer's experts dead) or another share up to 1"
    raise RequestError("fail_on_collapse", wanted=wanted, got=repr(setting))


def _train(
    cfg: DictConfig, features: Path, output: Path, request: dict[str, Any], start: Path | None
) -> None:
    """Build everything, so that a wrong request leaves no trace, then claim the folder and fit."""
    import torch
    from pytorch_lightning import seed_everything

    from recsys_moe.checkpoint import check_targets
    from recsys_moe.datamodule import DataModule
    from recsys_moe.fit import check_device, finish_untrained, fit, make_trainer
    from recsys_moe.frozen.extras import copy_experts
    from recsys_moe.gate_watch import GateWatch
    from recsys_moe.models import num_parameters
    from recsys_moe.moe.accounts import accounts, records, table
    from recsys_moe.ranker import Ranker
    from recsys_moe.run_files import Checkpoints
    from recsys_moe.surgery.command import operation
    from recsys_moe.surgery.operate import Done, operate
    from recsys_moe.warm_start import WarmStart, warm_start

    check_targets(cfg)
    spec = FeatureSpec.load(features / "feature_spec.json")
    surgery = None
    if start is not None and _is_surgery(cfg):
        surgery = operation(cfg, start, features, spec)
        cfg = surgery.config
    check_device(cfg.trainer.accelerator, cfg.trainer.devices)
    seed_everything(cfg.seed, verbose=False)
    torch.set_float32_matmul_precision("high" if torch.cuda.is_available() else "medium")
    data = DataModule(features, spec, batch_size=cfg.batch_size, seed=cfg.seed)
    num_steps = _num_steps(cfg, len(data.train_loader))
    with building("model"):
        build_model = instantiate(cfg.model, _convert_="all")
        model = build_model(spec)
    known: WarmStart | Done | None = None
    if surgery is not None:
        known = operate(model, build_model, surgery.before, surgery.plan, data.valid)
    elif start is not None:
        known = warm_start(model, build_model, spec, features, start)
    with building("loss"):
        loss = instantiate(cfg.loss)(spec)
    with building("balance"):
        balance = instantiate(cfg.balance)(model)
    with building("optimizer"):
        make_optimizer = instantiate(cfg.optimizer)
        make_optimizer(model, num_steps)
    checkpoints = Checkpoints(
        output,
        monitor=cfg.monitor,
        mode=cfg.mode,
        patience=cfg.patience,
        every_seconds=cfg.checkpoint_every_seconds,
        batch_size=cfg.batch_size,
    )
    with building("trainer"):
        configured = instantiate(cfg.trainer)
        trainer = make_trainer(configured, output, checkpoints, max_epochs=cfg.max_epochs)
    claim(output, request, overwrite=cfg.overwrite)
    if cfg.model.get("frozen_experts"):
        cfg.model.frozen_experts = copy_experts(cfg.model.frozen_experts, output)
    write_text(output / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    _copy_features(features, output)
    watch = GateWatch(model, output, collapse_share=_collapse_share(cfg.fail_on_collapse))
    checkpoints.logs.append(watch.file)
    ranker = Ranker(
        model,
        loss,
        spec,
        make_optimizer,
        balance,
        watch,
        num_steps=num_steps,
        log_every_steps=cfg.log_every_steps,
    )
    if known is not None:
        write_json(output / "init.json", {"run": str(start), **known.to_dict()})
        for line in known.lines():
            say("train", line)
    say(
        "train",
        f"{spec.dataset}: {data.train.num_rows:,} train and {data.valid.num_rows:,} validation "
        f"rows, {num_parameters(model):,} parameters, {cfg.trainer.accelerator}",
    )
    costs = accounts(model)
    for line in table(costs).splitlines():
        say("train", line)
    write_json(output / "accounts.json", {"accounts": records(costs)})
    if surgery is not None and surgery.plan.train == "none":
        finish_untrained(ranker, data, trainer, checkpoints)
    else:
        fit(ranker, data, trainer, output)
    finish(output, {"parameters": num_parameters(model), cfg.monitor: checkpoints.best})
    say("train", f"best {cfg.monitor} {checkpoints.best:.5f}  {output}")


def _copy_features(features: Path, output: Path) -> None:
    """Keep with the run what export needs: spec, vocabularies and some real rows."""
    shutil.copyfile(features / "feature_spec.json", output / "feature_spec.json")
    if (features / "vocab").is_dir():
        shutil.copytree(features / "vocab", output / "vocab", dirs_exist_ok=True)
    rows = pl.scan_parquet(sorted((features / "prepared" / "valid").glob("*.parquet"))).head(1000)
    with whole_file(output / "sample.parquet") as partial:
        rows.collect().write_parquet(partial)


if __name__ == "__main__":
    main()
