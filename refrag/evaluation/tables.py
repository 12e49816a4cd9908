"""The studies over questions: what is asked under which conditions, and which rows are compared in pairs."""

import itertools
from collections.abc import Callable, Sequence

from tqdm import tqdm

from refrag.data.tasks import TASKS, Task
from refrag.data.world.world import Phrasing
from refrag.evaluation.answers import Answers, answer
from refrag.evaluation.cases import Asking, draw_questions
from refrag.evaluation.conditions import (
    POLICIES,
    READS_QUESTION,
    Condition,
    answer_conditions,
    compressed,
    policy_settings,
    reference,
)
from refrag.evaluation.encoding import CaseSet
from refrag.evaluation.graphs import TORCH, tell_agreement, with_graph
from refrag.evaluation.lengths import tabulate_extrapolation, tabulate_passages
from refrag.evaluation.models import Models
from refrag.evaluation.options import Options
from refrag.evaluation.prose import tabulate_prose
from refrag.evaluation.rows import METRICS, Table, answer_difference, answer_row

NUM_PASSAGES = 10


def tabulate_answers(models: Models, options: Options) -> Table:
    """The main comparison: every way of compressing against the plain decoder."""
    config = models.checkpoint.config
    conditions = answer_conditions(config.trained_chunk_sizes, config.chunk_size, options.expand_fraction)
    answers = answer_all(draw_cases(models, options), conditions, "answers", with_texts=True)
    table = tabulate(f"{NUM_PASSAGES} passages from the strong retriever.", answers, options)
    compressed_answers = [one for one in answers if one.condition.form == "compressed"]
    task_groups: tuple[Sequence[Task] | None, ...] = (None, ["exact"])
    for one, tasks in itertools.product(compressed_answers, task_groups):
        other = answers[conditions.index(reference(one.condition))]
        table.differences.append(answer_difference(one, other, "exact_match", options.seed, tasks))
    return table


def tabulate_policies(models: Models, options: Options) -> Table:
    """Ways to choose the chunks at equal budget, each against the next."""
    cases, config = draw_cases(models, options), models.checkpoint.config
    policies = [policy for policy in POLICIES if policy not in READS_QUESTION or policy in models.policies]
    settings = policy_settings(config.trained_chunk_sizes, config.chunk_size, options.expand_fraction)
    conditions = [compressed(size, policy, fraction) for size, fraction in settings for policy in policies]
    answers = answer_all(cases, conditions, "policies")
    table = tabulate("As for the answers; every policy spends its whole budget.", answers, options)
    for (one, other), metric in itertools.product(itertools.pairwise(answers), METRICS):
        if _setting(one.condition) == _setting(other.condition):
            table.differences.append(answer_difference(one, other, metric, options.seed))
    return table


def tabulate_phrasing(models: Models, options: Options) -> Table:
    """Facts told and questions asked in sentences that were kept from training."""
    main = models.checkpoint.config.chunk_size
    conditions = [Condition("full"), compressed(main), compressed(main, "learned", options.expand_fraction)]
    answers = answer_all(draw_cases(models, options, Phrasing("heldout")), conditions, "phrasing", with_texts=True)
    about = f"{NUM_PASSAGES} passages from the strong retriever. "
    about += "Passages and questions, but for comparisons and summaries, in phrasing that was kept from training."
    return tabulate(about, answers, options)


def tabulate_graphs(models: Models, options: Options) -> Table:
    """All compressed, and with the learned policy, which reads the vectors too: by torch, then by each graph."""
    size = models.checkpoint.config.chunk_size
    conditions = [compressed(size), compressed(size, "learned", options.expand_fraction)]
    by_torch = draw_cases(models, options, label=TORCH)
    expected = answer_all(by_torch, conditions, TORCH)
    answers, differences, about = [*expected], [], [f"{NUM_PASSAGES} passages from the strong retriever."]
    for name, graph in models.graphs.items():
        by_graph = CaseSet(with_graph(models, graph), by_torch.cases, options.seed, name)
        found = answer_all(by_graph, conditions, name)
        answers += found
        about.append(tell_agreement(by_graph, by_torch, conditions[-1]))
        differences += [
            answer_difference(*pair, metric, options.seed)
            for pair, metric in itertools.product(zip(found, expected, strict=True), METRICS)
        ]
    table = tabulate(" ".join(about), answers, options)
    table.differences.extend(differences)
    return table


TABLES: dict[str, Callable[[Models, Options], Table]] = {
    "answers": tabulate_answers,
    "policies": tabulate_policies,
    "passages": tabulate_passages,
    "extrapolation": tabulate_extrapolation,
    "prose": tabulate_prose,
    "phrasing": tabulate_phrasing,
    "graphs": tabulate_graphs,
}


def draw_cases(models: Models, options: Options, phrasing: Phrasing | None = None, label: str = "") -> CaseSet:
    asking = Asking(TASKS, options.num_questions, NUM_PASSAGES, phrasing=phrasing or Phrasing())
    return CaseSet(models, draw_questions(models.checkpoint, asking, options.seed), options.seed, label)


def answer_all(cases: CaseSet, conditions: Sequence[Condition], title: str, with_texts: bool = False) -> list[Answers]:
    return [answer(cases, condition, with_texts) for condition in tqdm(conditions, desc=title, disable=None)]


def tabulate(about: str, answers: Sequence[Answers], options: Options) -> Table:
    return Table(about, [answer_row(one, options.seed) for one in answers])


def _setting(condition: Condition) -> tuple[int, float]:
    return condition.chunk_size, condition.expand_fraction
