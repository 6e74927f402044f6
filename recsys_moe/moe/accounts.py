"""What a model costs: parameters, those that one row uses, and arithmetic, by requested output.

A multiply-add counts as two FLOPs, as everywhere in the literature; only products count (those that
`torch.utils.flop_counter` counts, and the sums weighted by gates), not biases and activations.

What one row uses is the most that it can use: K experts a gate, an expert that several gates choose
counted once, and gates that differ as far as their experts allow.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from recsys_moe.errors import RequestError
from recsys_moe.moe.accounts_parts import Choice, Part, Piece, pieces_of
from recsys_moe.moe.accounts_union import largest_union
from recsys_moe.spec import FeatureSpec


@dataclass(frozen=True, slots=True)
class Account:
    """The cost of some tasks' outputs, without what only other tasks need.

    Attributes:
        tasks: The tasks asked for.
        embedding_parameters: The tables' numbers.
        network_parameters: All others.
        active_embedding_parameters: The tables' numbers that one row looks up, a row a code slot.
        active_network_parameters: The most of the others that one row is computed with.
        flops_per_row: Twice the multiply-adds of one row's forward pass, at most.
        dense_flops_per_row: The same where every expert is computed on every row.
        uncounted: Frozen experts whose arithmetic is not known: it is in neither number of FLOPs.
    """

    tasks: tuple[str, ...]
    embedding_parameters: int
    network_parameters: int
    active_embedding_parameters: int
    active_network_parameters: int
    flops_per_row: int
    dense_flops_per_row: int
    uncounted: tuple[str, ...] = ()

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
        model: One of this project's models, or a module that knows its own pieces
            (`accounts_parts.HasPieces`).
        tasks: Names of tasks; None for all.

    Raises:
        RequestError: A task that the model has not, or a module whose cost is not known.
    """
    return _account(pieces_of(model), tasks)


def accounts(model: nn.Module) -> list[Account]:
    """Return each task's account, then that of all tasks together."""
    pieces = pieces_of(model)
    tasks = _tasks_in_order(pieces)
    each = [_account(pieces, (task,)) for task in tasks]
    return each if len(tasks) == 1 else [*each, _account(pieces, tasks)]


def records(rows: Sequence[Account]) -> list[dict[str, Any]]:
    """Return accounts as plain values, for JSON."""
    return [
        {
            "tasks": list(row.tasks),
            "parameters": row.parameters,
            "active_parameters": row.active_parameters,
            **{name: value for name, value in asdict(row).items() if name != "tasks"},
            "uncounted": list(row.uncounted),
        }
        for row in rows
    ]


def output_records(
    model: nn.Module, spec: FeatureSpec, outputs: Sequence[str]
) -> list[dict[str, Any]]:
    """Return each output's account as plain values, then that of all outputs together.

    Args:
        model: The model of that spec.
        spec: The feature spec.
        outputs: Names as in an artifact; see `tasks_of`.

    Raises:
        RequestError: An output that the spec has not.
    """
    groups = [[output] for output in outputs]
    if len(groups) > 1:
        groups.append(list(outputs))
    pieces = pieces_of(model)
    rows = [_account(pieces, tasks_of(spec, group)) for group in groups]
    return [
        {"outputs": group} | {name: value for name, value in record.items() if name != "tasks"}
        for group, record in zip(groups, records(rows), strict=True)
    ]


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
    head = (
        "outputs",
        "embeddings",
        "network",
        "active embeddings",
        "active network",
        "FLOPs/row",
        "if dense",
    )
    body = [
        (
            " + ".join(row.tasks),
            f"{row.embedding_parameters:,}",
            f"{row.network_parameters:,}",
            f"{row.active_embedding_parameters:,}",
            f"{row.active_network_parameters:,}",
            f"{row.flops_per_row:,}{' + frozen' * bool(row.uncounted)}",
            f"{row.dense_flops_per_row:,}{' + frozen' * bool(row.uncounted)}",
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


def _account(pieces: Sequence[Piece], tasks: Sequence[str] | None) -> Account:
    known = _tasks_in_order(pieces)
    wanted = known if tasks is None else tuple(tasks)
    for task in wanted:
        if task not in known:
            raise RequestError("tasks", wanted=", ".join(known), got=repr(task), choices=known)
    used = [piece for piece in pieces if not piece.tasks.isdisjoint(wanted)]
    parts = [piece for piece in used if isinstance(piece, Part)]
    choices = [piece for piece in used if isinstance(piece, Choice)]
    experts = {expert.name: expert for choice in choices for expert in choice.experts}.values()
    tables = [part for part in parts if part.looked_up is not None]
    network = sum(part.parameters for part in parts if part.looked_up is None)
    return Account(
        tasks=wanted,
        embedding_parameters=sum(part.parameters for part in tables),
        network_parameters=network + sum(expert.parameters for expert in experts),
        active_embedding_parameters=sum(part.looked_up or 0 for part in tables),
        active_network_parameters=network + largest_union(choices, lambda e: e.parameters),
        flops_per_row=sum(part.flops for part in parts) + largest_union(choices, lambda e: e.flops),
        dense_flops_per_row=sum(part.dense_flops or part.flops for part in parts)
        + sum(expert.flops for expert in experts),
        uncounted=tuple(expert.name for expert in experts if not expert.counted),
    )


def _tasks_in_order(pieces: Iterable[Piece]) -> tuple[str, ...]:
    """Return the tasks as the pieces first name them one by one, towers in the model's order."""
    found = list(pieces)
    alone = [task for piece in found if len(piece.tasks) == 1 for task in piece.tasks]
    together = sorted(task for piece in found for task in piece.tasks)
    return tuple(dict.fromkeys([*alone, *together]))
