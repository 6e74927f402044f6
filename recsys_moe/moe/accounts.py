"""What a model costs: parameters, those that one row uses, and arithmetic, by requested output.

A multiply-add counts as two FLOPs, as everywhere in the literature; only products count (those that
`torch.utils.flop_counter` counts, and the sums weighted by gates), not biases and activations.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from recsys_moe.errors import RequestError
from recsys_moe.moe.accounts_parts import Part, parts_of
from recsys_moe.spec import FeatureSpec


@dataclass(frozen=True, slots=True)
class Account:
    """The cost of some tasks' outputs, without what only other tasks need.

    Attributes:
        tasks: The tasks asked for.
        embedding_parameters: The tables' numbers.
        network_parameters: All others.
        active_embedding_parameters: The tables' numbers that one row looks up, a row a code slot.
        active_network_parameters: The others that one row is computed with: of an expert bank
            behind a sparse gate k / E (at most k, where the router adapts its number).
        flops_per_row: Twice the multiply-adds of one row's forward pass.
    """

    tasks: tuple[str, ...]
    embedding_parameters: int
    network_parameters: int
    active_embedding_parameters: int
    active_network_parameters: int
    flops_per_row: int

    @property
    def parameters(self) -> int:
        """All numbers that must be stored."""
        return self.embedding_parameters + self.network_parameters

    @property
    def active_parameters(self) -> int:
        """All numbers that one row uses."""
        return self.active_embedding_parameters + self.active_network_parameters


def account(model: nn.Module, tasks: Sequence[str] | None = None) -> Account:
    """Return what a model costs for some of its tasks.

    Args:
        model: One of this project's models, or a module that knows its own parts
            (`accounts_parts.HasParts`).
        tasks: Names of tasks; None for all.

    Raises:
        RequestError: A task that the model has not, or a module whose cost is not known.
    """
    parts = parts_of(model)
    known = _tasks_in_order(parts)
    wanted = known if tasks is None else tuple(tasks)
    for task in wanted:
        if task not in known:
            raise RequestError("tasks", wanted=", ".join(known), got=repr(task), choices=known)
    used = [part for part in parts if not part.tasks.isdisjoint(wanted)]
    tables = _sums(part for part in used if part.is_embedding)
    network = _sums(part for part in used if not part.is_embedding)
    return Account(
        tasks=wanted,
        embedding_parameters=tables[0],
        network_parameters=network[0],
        active_embedding_parameters=tables[1],
        active_network_parameters=network[1],
        flops_per_row=sum(part.flops for part in used),
    )


def accounts(model: nn.Module) -> list[Account]:
    """Return each task's account, then that of all tasks together."""
    tasks = _tasks_in_order(parts_of(model))
    each = [account(model, (task,)) for task in tasks]
    return each if len(tasks) == 1 else [*each, account(model, tasks)]


def tasks_of(spec: FeatureSpec, outputs: Iterable[str]) -> tuple[str, ...]:
    """Return the tasks that outputs need, in the spec's order.

    Args:
        spec: The feature spec.
        outputs: Names as in an artifact: `p_click`, `p_click_and_conversion`, `y_amount`,
            `logit_click`.

    Raises:
        RequestError: An output that the spec has not.
    """
    chains = {f"p_{name}": chain for name, chain in spec.outputs()}
    chains |= {f"y_{task.name}": (task.name,) for task in spec.regressions}
    chains |= {name: (name.removeprefix("logit_"),) for name in spec.logits}
    needed: set[str] = set()
    for output in outputs:
        if output not in chains:
            raise RequestError(
                "outputs", wanted=", ".join(chains), got=repr(output), choices=chains
            )
        needed.update(chains[output])
    return tuple(task for task in spec.task_names if task in needed)


def table(rows: Sequence[Account]) -> str:
    """Lay accounts out as a Markdown table, one line each; several tasks are joined by a plus."""
    head = ("outputs", "embeddings", "network", "active embeddings", "active network", "FLOPs/row")
    body = [
        (
            " + ".join(row.tasks),
            f"{row.embedding_parameters:,}",
            f"{row.network_parameters:,}",
            f"{row.active_embedding_parameters:,}",
            f"{row.active_network_parameters:,}",
            f"{row.flops_per_row:,}",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [_line(head, widths), f"| {' | '.join(rule)} |", *(_line(row, widths) for row in body)]
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = zip(cells, widths, strict=True)
    padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
    return f"| {' | '.join(padded)} |"


def _tasks_in_order(parts: Sequence[Part]) -> tuple[str, ...]:
    """Return the tasks as the parts first name them one by one, towers in the model's order."""
    alone = [task for part in parts if len(part.tasks) == 1 for task in part.tasks]
    together = sorted(task for part in parts for task in part.tasks)
    return tuple(dict.fromkeys([*alone, *together]))


def _sums(parts: Iterable[Part]) -> tuple[int, int]:
    """Return parameters and active parameters; parts of one name are one thing used again."""
    stored: dict[str, int] = {}
    active: dict[str, int] = {}
    for part in parts:
        stored[part.name] = part.parameters
        active[part.name] = active.get(part.name, 0) + part.active
    return sum(stored.values()), sum(min(used, stored[name]) for name, used in active.items())
