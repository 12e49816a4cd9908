"""Searches a checkpoint's heads on some rows, and compares them with other policies on others."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from refrag.data.questions.row import QuestionRow
from refrag.errors import InvalidRequest
from refrag.evaluation.heads.find import find_heads, finds, finds_by_policy
from refrag.evaluation.heads.readings import OTHER_POLICIES, SHARES, Reader, Reading
from refrag.evaluation.statistics import estimate_share
from refrag.machine.environment import describe_environment
from refrag.model.attention_heads import AttentionHeads, digest_weights
from refrag.reporting import table

KIND = "heads"
FOUND, DEFAULT = "attention", "attention, all heads of the middle layers"
# What each half of the scores is worth by itself: share of the similarity by row.
PARTS = {"attention, without similarity": 0.0, "attention, similarity alone": 1.0}


def search(
    folder: Path, rows: Sequence[QuestionRow], num_held_out: int, num_passages: int, seed: int
) -> tuple[AttentionHeads, dict[str, Any]]:
    """Return the heads found on all rows but the last, and a report of how often they find the evidence on these.

    num_held_out: how many rows only judge. Raises InvalidRequest if that leaves too few.
    """
    if not 1 <= num_held_out < len(rows):
        raise InvalidRequest(f"num_held_out is {num_held_out} of {len(rows)} rows; it must be at least 1 and not all")
    reader = Reader(folder, num_passages, seed)
    teaching = list(reader.read(rows[:-num_held_out], is_compared=False))
    judging = list(reader.read(rows[-num_held_out:], is_compared=True))
    return learn(reader, teaching, judging)


def learn(
    reader: Reader, teaching: Sequence[Reading], judging: Sequence[Reading]
) -> tuple[AttentionHeads, dict[str, Any]]:
    """Return the heads found on the first readings, and a report of how often they find the evidence in the others."""
    if not judging:
        raise InvalidRequest("no held-out row has known evidence and enough chunks; raise num_held_out")
    decoder = reader.checkpoint.decoder
    found = find_heads(teaching, reader.heads, digest_weights(decoder))
    about = {"num_rows": len(teaching), "num_passages": reader.num_passages, "seed": reader.seed}
    provenance = {**_describe(), **about}
    recalls = _compare(judging, reader.heads, {FOUND: found, DEFAULT: AttentionHeads.default(decoder)})
    report = {"kind": KIND, **provenance, "num_held_out": len(judging), "scoring": asdict(found.scoring)}
    return replace(found, provenance=provenance), {**report, "heads": list(found.heads), "recall": recalls}


def render(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown."""
    return f"`{report['command']}` at {report['commit']} on {report['machine']}\n\n{render_recall(report)}"


def render_recall(report: Mapping[str, Any]) -> str:
    """Return what was judged, and how often each policy found the evidence."""
    lines = [
        [policy, *(_cell(by_share[f"{share:g}"]) for share in SHARES)] for policy, by_share in report["recall"].items()
    ]
    return (
        f"{len(report['heads'])} heads found on {report['num_rows']} rows. Share of {report['num_held_out']} other "
        "rows, in %, in which some of the evidence is among the expanded chunks:\n\n"
        + table(["policy", *(f"{share:.0%} of the chunks" for share in SHARES)], lines)
    )


def write(report: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(report, indent=2) + "\n")


def _compare(
    readings: Sequence[Reading], read: AttentionHeads, sets: Mapping[str, AttentionHeads]
) -> dict[str, dict[str, Any]]:
    """Return how often each set of heads, and each other policy, finds the evidence, by share of the chunks."""
    number_of = {head: number for number, head in enumerate(read.heads)}
    recalls: dict[str, dict[str, Any]] = {}
    parts = {
        name: replace(sets[FOUND], scoring=replace(sets[FOUND].scoring, similarity=share))
        for name, share in PARTS.items()
    }
    for name, heads in {**sets, **parts}.items():
        scoring = heads.scoring
        numbers = np.array([number_of[head] for head in heads.heads])
        recalls[name] = {f"{share:g}": _estimate(finds(readings, numbers, scoring, share)) for share in SHARES}
    for policy in OTHER_POLICIES:
        if (policy, SHARES[0]) in readings[0].picks:
            found = {f"{share:g}": _estimate(finds_by_policy(readings, policy, share)) for share in SHARES}
            recalls[policy] = found
    return recalls


def _estimate(found: np.ndarray) -> dict[str, float]:
    return asdict(estimate_share(found))


def _cell(estimate: Mapping[str, float]) -> str:
    value, low, high = (f"{100 * estimate[name]:.1f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _describe() -> dict[str, Any]:
    return {"command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]), **describe_environment()}
