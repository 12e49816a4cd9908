"""Comparison of several runs' checkpoints: how well each reconstructs a text, and how well it continues one.

    refrag evaluate ablations --output ablations.json \\
        --reconstruction curriculum=runs/reconstruct/checkpoint none=runs/reconstruct_without_curriculum/checkpoint \\
        --continuation full=runs/continue/checkpoint scratch=runs/continue_without_reconstruction/checkpoint

These are the paper's Tables 11 and 12. Differences are taken over the same windows: of each run against the first run
of the table, and between chunk sizes of one run.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from refrag.data.sources import TextSource
from refrag.evaluation.case_set import CaseSet
from refrag.evaluation.cases import Case, draw_prose
from refrag.evaluation.conditions import Condition, compressed
from refrag.evaluation.models import Models, load_models
from refrag.evaluation.perplexity import Means, perplexity_difference, perplexity_row, window_means
from refrag.evaluation.report import Report, Table

SOURCES = {"prose": TextSource(kind="stdlib"), "world": TextSource(kind="world")}
NUM_CHUNKS = 16
CONTEXT_TOKENS, CONTINUATION_TOKENS = 256, 64

Measured = dict[Condition, Means]


def reconstruction_perplexity(
    models: Models, source: TextSource, num_windows: int, seed: int, num_chunks: int = NUM_CHUNKS
) -> Measured:
    """Measure the reconstruction of windows of `num_chunks` from their embeddings, from others' and from none."""
    size = models.checkpoint.config.chunk_size
    windows = draw_prose(source, models.checkpoint.decoder_tokenizer, num_chunks * size, 0, num_windows, seed)
    cases = [Case(window.passages, window.token_ids) for window in windows]
    return measure(CaseSet(models, cases, seed), [*_compressed_or_shuffled(size), Condition("none")])


def continuation_perplexity(models: Models, source: TextSource, num_windows: int, seed: int) -> Measured:
    """Measure the text after a context: compressed, with wrong embeddings, at other chunk sizes, left out, in full."""
    config, tokenizer = models.checkpoint.config, models.checkpoint.decoder_tokenizer
    cases = draw_prose(source, tokenizer, CONTEXT_TOKENS, CONTINUATION_TOKENS, num_windows, seed)
    others = [compressed(size) for size in config.trained_chunk_sizes if size != config.chunk_size]
    conditions = [*_compressed_or_shuffled(config.chunk_size), *others, Condition("none"), Condition("full")]
    return measure(CaseSet(models, cases, seed), conditions)


MEASURES = {"reconstruction": reconstruction_perplexity, "continuation": continuation_perplexity}


def measure(cases: CaseSet, conditions: Sequence[Condition]) -> Measured:
    """Return the windows' means under each condition."""
    return {one: window_means(cases, one) for one in conditions}


def tabulate_ablation(runs: Mapping[str, Path], task: str, source_name: str, num_windows: int, seed: int) -> Table:
    """Measure every run under every condition.

    The first condition of each run is compared with that of the first run, and each chunk size of a run with the next.
    """
    table = Table(f"{task} of {SOURCES[source_name].kind} text, {num_windows} held-out windows".capitalize() + ".")
    firsts: list[tuple[str, Means]] = []
    for run, directory in tqdm(runs.items(), desc=f"{task}, {source_name}", disable=None):
        models = load_models(directory)
        measured = MEASURES[task](models, SOURCES[source_name], num_windows, seed)
        named = {one: (f"{run}: {one.describe(models.plain_name)}", means) for one, means in measured.items()}
        table.rows.extend(perplexity_row(name, means, seed) for name, means in named.values())
        firsts.append(next(iter(named.values())))
        sizes = sorted(one.chunk_size for one in named if one == compressed(one.chunk_size))
        for size, larger in itertools.pairwise(sizes):
            pair = (*named[compressed(size)], *named[compressed(larger)])
            table.differences.append(perplexity_difference(*pair, seed))
    table.differences.extend(perplexity_difference(*other, *firsts[0], seed) for other in firsts[1:])
    return table


def compare_runs(report: Report, runs: Mapping[str, Mapping[str, Path]], num_windows: int, seed: int) -> None:
    """Add a table to the report for each source of text and each task that has runs.

    runs: task -> name -> folder of the checkpoint.
    """
    for task, checkpoints in runs.items():
        for source_name in SOURCES if checkpoints else ():
            make = functools.partial(tabulate_ablation, checkpoints, task, source_name, num_windows, seed)
            report.add(f"{task}, {source_name}", make)


def _compressed_or_shuffled(chunk_size: int) -> list[Condition]:
    return [compressed(chunk_size), compressed(chunk_size, embeddings="shuffled")]
