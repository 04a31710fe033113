"""Plans of a run, ZeRO stage by stage, and how evenly documents fall on lanes."""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from data.orders import DocumentOrder
from data.shards import Split
from lm.runs.run_config import RunConfig
from tools.cluster import Cluster
from tools.planning import DAY, HOUR, check_lanes, checkpoints, needed, sized, speed, traffic

GIB = 2**30
STAGES = (0, 1, 2, 3)
MOST_LANES = 10**9
"""Lanes of a plan, at most."""


def plan(config: RunConfig, vocabulary: int, cluster: Cluster, budget: float) -> dict[str, Any]:
    """All that is planned for one cluster; bytes, seconds and tokens.

    Of the stages that fit, the lowest is planned with: the higher ones move more.
    """
    check_lanes(config.training.lanes, cluster.ranks)
    stages = [stage_plan(config, vocabulary, cluster, stage) for stage in STAGES]
    possible = [stage for stage in stages if "refused" not in stage]
    fitting = [stage for stage in possible if stage["fits"]]
    chosen = fitting[0] if fitting else possible[-1]
    training = replace(
        config.training,
        zero=chosen["zero"],
        offload=config.training.offload and chosen["zero"] >= 2,
        micro_batches=chosen["micro_batches"],
    )
    config = replace(config, training=training)
    of = sized(config, vocabulary)
    step, saving = speed(config, vocabulary, cluster), checkpoints(config, vocabulary, cluster)
    seconds = budget / step.tokens_per_second / saving.goodput
    return {
        "gpus": cluster.ranks,
        "nodes": cluster.nodes,
        "parameters": of.parameters,
        "trained": of.trained,
        "stages": stages,
        "fits": bool(fitting),
        "zero": chosen["zero"],
        "micro_batches": chosen["micro_batches"],
        "moved_bytes": traffic(config, of, cluster.ranks),
        "step_seconds": step.seconds,
        "communication_seconds": step.communication,
        "tokens_per_second": step.tokens_per_second,
        "days": seconds / DAY,
        "gpu_hours": seconds / HOUR * cluster.ranks,
        "checkpoint": vars(saving),
    }


def stage_plan(config: RunConfig, vocabulary: int, cluster: Cluster, stage: int) -> dict[str, Any]:
    """Memory of a rank at a stage, read in as few micro-batches as fit; or why no such run is taken
    (`refused`).
    """
    offload = config.training.offload and stage >= 2
    lanes = config.training.lanes // cluster.ranks
    found: dict[str, Any] = {}
    for micro_batches in divisors(lanes):
        training = replace(
            config.training,
            zero=stage,  # type: ignore[arg-type]
            offload=offload,
            micro_batches=micro_batches,
        )
        try:
            planned = replace(config, training=training)
        except ValueError as error:
            if not found:
                return {"zero": stage, "fits": False, "refused": str(error)}
            break
        parts = needed(planned, vocabulary, cluster.ranks)
        fits = parts["total"] <= cluster.memory * GIB
        found = {"zero": stage, "fits": fits, "micro_batches": micro_batches, "bytes": parts}
        if fits:
            break
    return found


def divisors(number: int) -> list[int]:
    """All of them, in order."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def table(plans: list[dict[str, Any]]) -> list[str]:
    """Plans side by side, as Markdown."""
    rows: list[list[str]] = [["GPUs", *(str(plan["gpus"]) for plan in plans)]]
    rows += [
        [f"memory at ZeRO {stage}", *(_memory(plan["stages"][stage]) for plan in plans)]
        for stage in STAGES
    ]
    rows += [[name, *(show(plan) for plan in plans)] for name, show in ROWS.items()]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]


def refusals(plan: dict[str, Any]) -> list[str]:
    """Why some stages are not possible, a line a reason."""
    stages: dict[str, list[str]] = {}
    for stage in plan["stages"]:
        if "refused" in stage:
            stages.setdefault(stage["refused"], []).append(str(stage["zero"]))
    return [f"not possible at ZeRO {', '.join(those)}: {why}" for why, those in stages.items()]


def _memory(stage: dict[str, Any]) -> str:
    if "refused" in stage:
        return "not possible"
    size = f"{stage['bytes']['total'] / GIB:.1f} GiB"
    if not stage["fits"]:
        return f"{size}: too much"
    parts = stage["micro_batches"]
    return size if parts == 1 else f"{size} in {parts} micro-batches"


ROWS = {
    "stage planned with": lambda p: str(p["zero"]) if p["fits"] else "none fits",
    "moved a step and rank": lambda p: f"{p['moved_bytes'] / 1e9:.2f} GB",
    "step": lambda p: (
        f"{p['step_seconds']:.2f} s, of which {p['communication_seconds']:.3f} s communication"
    ),
    "tokens/s": lambda p: f"{p['tokens_per_second']:,.0f}",
    "to the budget": lambda p: f"{p['days']:.1f} days, {p['gpu_hours']:,.0f} GPU-hours",
    "checkpoint": lambda p: (
        f"{p['checkpoint']['bytes'] / 1e9:.1f} GB every "
        f"{p['checkpoint']['interval'] / 60:.1f} minutes"
    ),
    "goodput": lambda p: f"{p['checkpoint']['goodput']:.2%}",
}


def balance(split: Split, lanes: int, segment: int, seed: int = 0) -> dict[str, Any]:
    """How the documents of an epoch are dealt to lanes, in documents order.

    Returns:
        Documents; how often each is dealt at least and at most; tokens of the lane with the least,
        of the mean one and of that with the most; share of lanes within 5 % of the mean.
    """
    order = DocumentOrder(split, lanes, segment, seed, range(0), reset=False)
    dealt = order.deal(0)
    times = np.bincount(np.concatenate(dealt), minlength=len(order.ids))
    tokens = np.array([order.length[documents].sum() for documents in dealt])
    return {
        "documents": len(order.ids),
        "least_often": int(times.min()),
        "most_often": int(times.max()),
        "least_tokens": int(tokens.min()),
        "mean_tokens": float(tokens.mean()),
        "most_tokens": int(tokens.max()),
        "even_lanes": float(np.mean(np.abs(tokens / tokens.mean() - 1) <= 0.05)),
    }


def sentence(dealt: dict[str, Any]) -> str:
    """A balance in words."""
    mean = dealt["mean_tokens"]
    return (
        f"{dealt['documents']:,} documents, each read once an epoch; {dealt['even_lanes']:.0%} of "
        f"the lanes have the mean's tokens to 5 %, the shortest {dealt['least_tokens'] / mean:.0%} "
        f"of them, the longest {dealt['most_tokens'] / mean:.0%}"
    )
