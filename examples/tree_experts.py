"""Put boosted trees beside the networks of a mixture: fit and freeze one a task, then train.

    python examples/tree_experts.py FEATURES OUTPUT [OVERRIDE …]

FEATURES is what recsys-moe-features wrote, OUTPUT a new folder, the rest goes to recsys-moe-train.
"""

import subprocess
import sys
from pathlib import Path

from lightgbm import LGBMClassifier, early_stopping

from recsys_moe.frozen.columns import raw_columns, read_rows
from recsys_moe.frozen.freeze import freeze
from recsys_moe.spec import FeatureSpec

# small trees, many of them: as sure of the rows they were fitted on as of any others
TREES = {"n_estimators": 2000, "learning_rate": 0.05, "num_leaves": 7, "min_child_samples": 200}
MORE = {"reg_lambda": 20, "colsample_bytree": 0.3, "n_jobs": 1, "verbose": -1}

folder, output, overrides = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
spec = FeatureSpec.load(folder / "feature_spec.json")
features, files = list(raw_columns(spec)), []
for task in spec.task_names:
    rows, labels = read_rows(folder, "train", features, task)
    stop = {"eval_set": [read_rows(folder, "valid", features, task)]}
    model = LGBMClassifier(**TREES, **MORE).fit(
        rows, labels, **stop, callbacks=[early_stopping(50, verbose=False)]
    )
    files.append(str(output / f"lightgbm_{task}.onnx"))
    freeze(model, spec, features, Path(files[-1]), rows=rows, name=f"lightgbm_{task}")

places = [f"features={folder}", f"output={output / 'run'}"]
experts = f"model.frozen_experts=[{','.join(files)}]"
train = [sys.executable, "-m", "recsys_moe.train", *places, "model=mmoe", experts, *overrides]
sys.exit(subprocess.run(train, check=False).returncode)
