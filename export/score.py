"""Stage entry point: artifact + parquet -> predictions, on the CPU or a GPU, without torch.

In Python, `Scorer(ART).predict(frame)` does the same for one frame.
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from export.engines import DEVICES
from export.scorer import Scorer
from recsys_moe.command import output_folder, report_errors, run_command
from recsys_moe.paths import CONF_DIR

__all__ = ["Scorer", "main"]


def main() -> None:
    """Run the console command."""
    run_command(_main, "recsys-moe-score")


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="score")
@report_errors("recsys-moe-score")
def _main(cfg: DictConfig) -> None:
    """Raw columns in parquet in, probabilities in parquet out."""
    from export.job import Request, score_files

    request = Request(
        input=str(cfg.input),
        device=str(cfg.device),
        keys=_names(cfg, "keys"),
        outputs=_names(cfg, "outputs"),
        unique_keys=bool(cfg.unique_keys),
        batch_rows={device: int(cfg.batch_rows[device]) for device in DEVICES},
    )
    score_files(
        Path(cfg.artifact).absolute(),
        request,
        output_folder(cfg),
        max_quarantine_share=float(cfg.max_quarantine_share),
        overwrite=bool(cfg.overwrite),
    )


def _names(cfg: DictConfig, key: str) -> tuple[str, ...]:
    """Return a setting that is a list of names, or one name, as a tuple."""
    value = OmegaConf.to_container(cfg)[key]  # type: ignore[call-overload,index]
    return (value,) if isinstance(value, str) else tuple(str(name) for name in value or ())


if __name__ == "__main__":
    main()
