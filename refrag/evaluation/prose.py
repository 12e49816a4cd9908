"""Log-perplexity of what follows a context, token by token, with the means of the first tokens and of all."""

import numpy as np
from tqdm import tqdm

from refrag.evaluation.cases import draw_prose
from refrag.evaluation.conditions import Condition, prose_conditions, prose_pairs
from refrag.evaluation.encoding import CaseSet
from refrag.evaluation.models import Models
from refrag.evaluation.options import Options, prose_source
from refrag.evaluation.prompts import build_prompts
from refrag.evaluation.reading import read
from refrag.evaluation.rows import Table, perplexity_difference, perplexity_row

# N windows, T target tokens

# A mean over many tokens hides what the first ones cost, and short answers live there.
FIRST_TOKENS = (16, 32, 128)


def tabulate_prose(models: Models, options: Options) -> Table:
    """The paper's Table 1: more compression, less of the context's worth; each rung against the next."""
    source, lengths = prose_source(options.prose), (options.context_tokens, options.continuation_tokens)
    tokenizer = models.checkpoint.decoder_tokenizer
    windows = draw_prose(source, tokenizer, *lengths, options.num_windows, options.seed)
    cases, config = CaseSet(models, windows, options.seed), models.checkpoint.config
    setting = config.trained_chunk_sizes, config.chunk_size, options.expand_fraction
    conditions = prose_conditions(*setting)
    means = {
        condition: window_means(target_losses(cases, condition))
        for condition in tqdm(conditions, desc="prose", disable=None)
    }
    table = Table(f"{lengths[1]} tokens after {lengths[0]} tokens of context; source: {source.path or source.kind}.")
    table.rows.extend(perplexity_row(cases.name_row(one), means[one], options.seed) for one in conditions)
    for one, other in prose_pairs(*setting):
        pair = (cases.name_row(one), means[one], cases.name_row(other), means[other])
        table.differences.append(perplexity_difference(*pair, options.seed))
    return table


def target_losses(cases: CaseSet, condition: Condition) -> np.ndarray:
    """Negative log-likelihood of each target token, NaN where nothing predicts it.  -> (N, T)"""
    readings = read(cases.models.decoder(condition.form), build_prompts(cases, condition), cases.models.bos_id)
    losses = np.full((len(readings), len(cases.cases[0].target_ids)), np.nan)
    for row, reading in zip(losses, readings, strict=True):
        row[len(row) - len(reading.losses) :] = reading.losses
    return losses


def window_means(losses: np.ndarray) -> dict[str, np.ndarray]:
    """Each window's mean over its first tokens and over all of them.  (N, T) -> (N,) each"""
    length = losses.shape[1]
    means = {str(count): np.nanmean(losses[:, :count], 1) for count in FIRST_TOKENS if count < length}
    return {**means, "all": np.nanmean(losses, 1)}
