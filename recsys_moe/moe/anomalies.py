"""What is wrong with a bank of experts, said in words.

The three anomalies of HoME (Wang et al., 2024, arXiv 2408.05430, section 1) are found by name:

* *expert collapse*: "experts' output distributions are significantly different, and some experts
  have over 90% zero activations with ReLU", so that a gate cannot weigh them fairly. Here: more
  than `zero_share` (0.9, the paper's) of an expert's outputs are 0, or their root mean square is
  more than `scale_ratio` (10, ours) times above or below the median expert's.
* *expert degradation*: "some shared-experts are occupied by only one task". Here: one task has
  more than `occupancy` (0.9, ours) of the gate mass of a shared expert that several tasks see.
* *expert underfitting*: "some data-sparse prediction tasks tend to ignore their specific-experts
  and assign large weights to shared-experts". Here: a task gives its own experts less than
  `own_share` (0.1, ours) of their fair part of its gate mass, their number over those it sees.

Beside them: *dead expert*, less than 1 % of the fair load N k / E, and *similar experts*, outputs
whose cosine exceeds `similarity` (0.95, ours).
"""

import statistics
from dataclasses import dataclass

from recsys_moe.errors import CollapseError
from recsys_moe.moe.monitor_health import Health


@dataclass(frozen=True, slots=True)
class Anomaly:
    """One thing that is wrong, with its numbers."""

    name: str
    experts: tuple[int, ...]
    message: str


def find_anomalies(
    health: Health,
    *,
    zero_share: float = 0.9,
    scale_ratio: float = 10.0,
    occupancy: float = 0.9,
    own_share: float = 0.1,
    similarity: float = 0.95,
) -> list[Anomaly]:
    """Return what is wrong with a bank, nothing if all is well.

    Args:
        health: What a Monitor read.
        zero_share: An expert with a larger share of zeros has collapsed.
        scale_ratio: So has one whose outputs are this many times larger or smaller than most.
        occupancy: A shared expert with a larger share of one task's mass has degraded.
        own_share: A task that gives its own experts a smaller part of what is fair lets them
            underfit.
        similarity: Two experts whose outputs have a larger cosine are similar.
    """
    return [
        *_dead(health),
        *_collapsed(health, zero_share, scale_ratio),
        *_degraded(health, occupancy),
        *_underfitted(health, own_share),
        *_similar(health, similarity),
    ]


def fail_on_collapse(health: Health, *, dead_share: float = 0.5) -> None:
    """Refuse to go on where routing has collapsed.

    Args:
        health: What a Monitor read.
        dead_share: The share of dead experts from which on a bank counts as collapsed. Top-k
            routing that sends every row to the same experts leaves 1 - k / E of them dead.

    Raises:
        CollapseError: With the bank, the dead experts and the effective number of experts.
    """
    dead = health.dead()
    if sum(health.load) > 0 and len(dead) >= dead_share * health.num_experts:
        raise CollapseError(
            f"{health.name}: wanted fewer than {100 * dead_share:.3g}% of {health.num_experts} "
            f"experts dead, got {len(dead)} ({', '.join(map(str, dead))}), as if there were "
            f"{health.effective_experts:.2f} experts. A balance loss or a selection bias may help."
        )


def _dead(health: Health) -> list[Anomaly]:
    found = []
    for e in health.dead():
        load, fair = health.load[e], health.fair_load[e]
        message = (
            f"{health.name}: expert {e} is dead: {load:,.0f} of {sum(health.load):,.0f} slots, "
            f"{load / fair:.2%} of its fair share of {fair:,.0f}"
        )
        found.append(Anomaly("dead expert", (e,), message))
    return found


def _collapsed(health: Health, zero_share: float, scale_ratio: float) -> list[Anomaly]:
    if health.zero_share is None or health.scale is None:
        return []
    found, usual = [], statistics.median(health.scale)
    for e, (zeros, scale) in enumerate(zip(health.zero_share, health.scale, strict=True)):
        what = None
        if zeros > zero_share:
            what = f"{zeros:.1%} of its outputs are 0 (more than {zero_share:.0%})"
        elif scale * scale_ratio < usual or scale > scale_ratio * usual > 0:
            what = f"its outputs' scale is {scale:.3g}, the median expert's {usual:.3g}"
        if what is not None:
            message = f"{health.name}: expert collapse of expert {e}: {what}"
            found.append(Anomaly("expert collapse", (e,), message))
    return found


def _degraded(health: Health, most: float) -> list[Anomaly]:
    found, dead = [], health.dead()
    for e, (share, task) in enumerate(zip(health.occupancy, health.occupants, strict=True)):
        num_tasks = sum(row[e] for row in health.visible)
        if health.owners[e] is None and num_tasks > 1 and share > most and e not in dead:
            message = (
                f"{health.name}: expert degradation of shared expert {e}: task {task!r} has "
                f"{share:.1%} of its gate mass (more than {most:.0%}), {num_tasks} tasks see it"
            )
            found.append(Anomaly("expert degradation", (e,), message))
    return found


def _underfitted(health: Health, least: float) -> list[Anomaly]:
    found = []
    for task, shares, visible in zip(health.tasks, health.shares, health.visible, strict=True):
        own = tuple(e for e, owner in enumerate(health.owners) if owner == task)
        share, fair = sum(shares[e] for e in own), len(own) / max(sum(visible), 1)
        if sum(shares) > 0 and share < least * fair < least:
            message = (
                f"{health.name}: expert underfitting of task {task!r}: its own experts "
                f"{', '.join(map(str, own))} get {share:.2%} of its gate mass, their fair part is "
                f"{fair:.1%}; the shared ones get {1 - share:.2%}"
            )
            found.append(Anomaly("expert underfitting", own, message))
    return found


def _similar(health: Health, most: float) -> list[Anomaly]:
    return [
        Anomaly(
            "similar experts",
            (other, e),
            f"{health.name}: experts {other} and {e} are similar: their outputs' cosine is "
            f"{value:.3f} (more than {most})",
        )
        for e, row in enumerate(health.similarity or ())
        for other, value in enumerate(row[:e])
        if value > most
    ]
