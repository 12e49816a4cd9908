"""Conditions that the studies compare: the forms in which a context reaches the decoder."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

ContextForm = Literal["none", "truncated", "full", "gold", "compressed"]
# The name of a served policy, or of a selection that only `refrag.evaluation.prompts` has.
Selection = str
Embeddings = Literal["true", "shuffled", "zeroed"]

# From the best to the worst at equal budget; the paper's own policies are in the paper's order.
POLICIES: tuple[Selection, ...] = (
    "learned",
    "learned unlabelled",
    "blind",
    "perplexity",
    "random",
    "perplexity reversed",
)
# Policies learned from reward alone, beside the checkpoint's own -> whether they read the question
READS_QUESTION: dict[Selection, bool] = {"learned unlabelled": True, "blind": False}
# Command-line options that name the weights of these policies.
POLICY_OPTIONS: dict[Selection, str] = {"learned unlabelled": "--unlabelled-policy", "blind": "--blind-policy"}
# Policies that need neither a question nor training.
HEURISTICS: tuple[Selection, ...] = ("perplexity", "random", "perplexity reversed")
CONTROLS: tuple[Embeddings, ...] = ("shuffled", "zeroed")


@dataclass(frozen=True)
class Condition:
    """The form of the context in the prompt's slots.

    form: "none", "truncated", "full" and "gold" are read by the plain decoder, "compressed" by REFRAG's. "truncated" is
        the end of the context, in as many tokens as compression at this chunk size and fraction takes slots. Question
        sets keep its beginning instead, and alone have "gold", the passages with the evidence.
    selection: the name of a served policy, or of one to compare it with. "perplexity" expands the chunks that
        surprise the plain decoder most (the better one of the paper's two heuristics), "perplexity reversed" those that
        surprise it least, "oracle" those that hold the evidence. "learned" is the checkpoint's own policy, which may
        have had labels in fine-tuning; "learned unlabelled" reads the question too, "blind" does not, and both learned
        from reward alone.
        All spend the whole budget except "oracle", which stops when the evidence is expanded, and "learned as served",
        which stops at the checkpoint's policy_confidence.
    embeddings: "true", or a control. "shuffled": chunk embeddings of another context; "zeroed": zeros. Chunks are
        always selected with the true ones.
    """

    form: ContextForm
    chunk_size: int = 16
    selection: Selection = "none"
    expand_fraction: float = 0.0
    embeddings: Embeddings = "true"

    def describe(self, plain_name: str) -> str:
        """Return the row's name; `plain_name` is the name of the plain decoder in it."""
        if self.form == "none":
            return f"{plain_name}, no context"
        if self.form == "full":
            return f"{plain_name}, full context"
        chunks = f"k={self.chunk_size}"
        if self.expand_fraction > 0:
            chunks += f", {100 * self.expand_fraction:.0f}%"
        if self.form == "truncated":
            return f"{plain_name}, last tokens, in the slots of {chunks}"
        name = f"REFRAG {chunks}" if self.selection == "none" else f"REFRAG {chunks} {self.selection}"
        return name if self.embeddings == "true" else f"{name}, {self.embeddings} embeddings"


def compressed(
    chunk_size: int, selection: Selection = "none", expand_fraction: float = 0.0, embeddings: Embeddings = "true"
) -> Condition:
    return Condition("compressed", chunk_size, selection, expand_fraction, embeddings)


def answer_conditions(chunk_sizes: Sequence[int], main: int, fraction: float) -> list[Condition]:
    """Return the main table's conditions: the plain decoder's three, all compressed, ways to expand, controls."""
    return [
        Condition("none"),
        Condition("truncated", main, expand_fraction=fraction),
        Condition("full"),
        *map(compressed, chunk_sizes),
        *(compressed(main, selection, fraction) for selection in ("random", "learned", "learned as served", "oracle")),
        *(compressed(main, embeddings=control) for control in CONTROLS),
        *(compressed(main, "learned", fraction, control) for control in CONTROLS),
    ]


def reference(condition: Condition) -> Condition:
    """Return the condition to compare with: for a control the same one with true embeddings, else the full context."""
    return Condition("full") if condition.embeddings == "true" else replace(condition, embeddings="true")


def policy_settings(chunk_sizes: Sequence[int], main: int, fraction: float) -> list[tuple[int, float]]:
    """Return the chunk sizes and fractions to compare the policies at: every pair of them, the main ones first."""
    sizes = sorted(chunk_sizes, key=lambda size: size != main)
    return list(itertools.product(sizes, (fraction, fraction / 2, 2 * fraction)))


def prose_pairs(chunk_sizes: Sequence[int], main: int, fraction: float) -> list[tuple[Condition, Condition]]:
    """Return pairs of neighbours, from the best expected prediction to the worst, with the controls at the end."""
    ladder = [Condition("full"), *map(compressed, chunk_sizes), Condition("none")]
    policies = [compressed(main, selection, fraction) for selection in HEURISTICS]
    controls = [compressed(main, embeddings=control) for control in CONTROLS]
    pairs = [*itertools.pairwise(ladder), *itertools.pairwise(policies)]
    return [*pairs, *((compressed(main), control) for control in controls)]


def prose_conditions(chunk_sizes: Sequence[int], main: int, fraction: float) -> list[Condition]:
    """Return the conditions of all pairs, and the truncated context in the slots of the smallest chunks."""
    pairs = prose_pairs(chunk_sizes, main, fraction)
    compared = dict.fromkeys(condition for pair in pairs for condition in pair)
    return [*compared, Condition("truncated", min(chunk_sizes))]
