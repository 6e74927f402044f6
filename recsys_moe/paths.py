"""Where the configuration lives: inside the library in a wheel, beside it in a checkout."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent

CONF_DIR = next(
    folder for folder in (_HERE / "conf", _HERE.parent / "conf") if (folder / "train.yaml").exists()
)
