"""Log-perplexity of the text after a context: token by token, and the means of the first tokens and of all."""

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
from tqdm import tqdm

from refrag.evaluation.case_set import CaseSet
from refrag.evaluation.cases import draw_prose
from refrag.evaluation.conditions import Condition, prose_conditions, prose_pairs
from refrag.evaluation.models import Models
from refrag.evaluation.options import Options, prose_source
from refrag.evaluation.prompts import build_prompts
from refrag.evaluation.reading import read
from refrag.evaluation.report import Row, Table
from refrag.evaluation.statistics import estimate_difference, estimate_mean

# N windows, T target tokens

# A mean over many tokens hides the loss of the first ones, which are all that a short answer has.
FIRST_TOKENS = (16, 32, 128)

# Number of first tokens, or "all" -> mean of each window over them (N,)
Means = Mapping[str, np.ndarray]


def tabulate_prose(models: Models, options: Options) -> Table:
    """Measure step by step how much of the context's worth compression loses, as the paper's Table 1 does."""
    source, lengths = prose_source(options.prose), (options.context_tokens, options.continuation_tokens)
    tokenizer = models.checkpoint.decoder_tokenizer
    windows = draw_prose(source, tokenizer, *lengths, options.num_windows, options.seed)
    cases, config = CaseSet(models, windows, options.seed), models.checkpoint.config
    setting = config.trained_chunk_sizes, config.chunk_size, options.expand_fraction
    conditions = prose_conditions(*setting)
    means = {condition: window_means(cases, condition) for condition in tqdm(conditions, desc="prose", disable=None)}
    table = Table(f"{lengths[1]} tokens after {lengths[0]} tokens of context; source: {source.path or source.kind}.")
    table.rows.extend(perplexity_row(cases.name_row(one), means[one], options.seed) for one in conditions)
    for one, other in prose_pairs(*setting):
        pair = (cases.name_row(one), means[one], cases.name_row(other), means[other])
        table.differences.append(perplexity_difference(*pair, options.seed))
    return table


def window_means(cases: CaseSet, condition: Condition) -> Means:
    """Return each window's mean over its first tokens and over all of them.  -> (N,) each"""
    losses = target_losses(cases, condition)
    means = {str(count): np.nanmean(losses[:, :count], 1) for count in FIRST_TOKENS if count < losses.shape[1]}
    return {**means, "all": np.nanmean(losses, 1)}


def target_losses(cases: CaseSet, condition: Condition) -> np.ndarray:
    """Return the negative log-likelihood of each target token, NaN where nothing predicts it.  -> (N, T)"""
    readings = read(cases.models.decoder(condition.form), build_prompts(cases, condition))
    losses = np.full((len(readings), len(cases.cases[0].target_ids)), np.nan)
    for row, reading in zip(losses, readings, strict=True):
        row[len(row) - len(reading.losses) :] = reading.losses
    return losses


def perplexity_row(name: str, means: Means, seed: int) -> Row:
    return {
        "name": name,
        "num_windows": len(means["all"]),
        "log_perplexity": {tokens: asdict(estimate_mean(values, seed)) for tokens, values in means.items()},
    }


def perplexity_difference(name: str, means: Means, other_name: str, others: Means, seed: int) -> Row:
    """Return the means of `name` minus those of `other_name`, over the same windows."""
    differences = {
        tokens: asdict(estimate_difference(values, others[tokens], seed)) for tokens, values in means.items()
    }
    return {"name": name, "against": other_name, "metric": "log_perplexity", "difference": differences}
