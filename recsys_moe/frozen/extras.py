"""The frozen experts of a model's configuration: banks beside its networks, and files of its run.

Shapes: D width of what gates read, S code slots, K number columns.
"""

from collections.abc import Sequence
from pathlib import Path

from recsys_moe.errors import RequestError
from recsys_moe.files import whole_file
from recsys_moe.frozen.columns import slices_of
from recsys_moe.frozen.expert_file import read_expert
from recsys_moe.moe.banks_frozen import FrozenBank
from recsys_moe.pools import Extra
from recsys_moe.spec import FeatureSpec

FOLDER = "frozen"
"""Where in a run's folder its experts' files lie."""


def frozen_extras(
    paths: Sequence[str], spec: FeatureSpec, width: int, *, dropout: float = 0.0
) -> list[Extra]:
    """Return a bank for each file, reading raw columns of [x | codes | numbers], D + S + K wide.

    Args:
        paths: Files that `freeze` wrote.
        spec: The features of the model.
        width: D, that of x.
        dropout: The share of the rows from which training hides each expert.

    Raises:
        RequestError: A file that is no frozen expert, one of other features, or two of one name.
    """
    experts = [read_expert(Path(path)) for path in paths]
    names = [expert.name for expert in experts]
    for path, name in zip(paths, names, strict=True):
        if names.count(name) > 1:
            wanted = "experts of different names"
            raise RequestError("model.frozen_experts", wanted=wanted, got=f"{name!r} in {path} too")
    return [
        Extra(
            FrozenBank(expert, dropout=dropout), slices_of(spec, expert, after=width), [expert.name]
        )
        for expert in experts
    ]


def copy_experts(paths: Sequence[str], run: Path) -> list[str]:
    """Copy experts' files into a run's folder, so that it can be moved, and return where they lie.

    Args:
        paths: Files that `freeze` wrote.
        run: The run's folder.

    Returns:
        The copies' paths within the run's folder, `frozen/0.onnx`, in the same order.
    """
    copies = []
    for number, path in enumerate(paths):
        copies.append(f"{FOLDER}/{number}.onnx")
        content = read_expert(Path(path)).content
        with whole_file(run / copies[-1]) as partial:
            partial.write_bytes(content)
    return copies
