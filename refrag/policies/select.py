"""Selects the chunks to expand for one request, by the policy that it names."""

from collections.abc import Sequence

import numpy as np

from refrag.config import RefragConfig
from refrag.errors import CheckpointError, InvalidRequest, RefragError
from refrag.model.policy import ExpansionPolicy
from refrag.policies import POLICIES
from refrag.policies.base import Candidates, Policy, Selection, TrainedPolicy
from refrag.request import Fallback


def select_chunks(name: str, candidates: Candidates, budget: int, fallback: Fallback | None = None) -> Selection:
    """Return the chunks to expand, by the policy of that name, in ascending order.

    Where there is nothing to choose, or the policy weighs nothing, all expanded chunks weigh the same.

    budget: how many it may expand, as `budget_of` has it. fallback: as `fallback_of` has it; a policy that weighs
    nothing has no confidence and never falls back.
    Raises InvalidRequest for a policy that is unknown or cannot be served with this checkpoint, and RefragError if the
    policy selects what it may not.
    """
    POLICIES.check(name)
    num_chunks = len(candidates)
    if not _is_choice(budget, num_chunks, fallback):
        return weigh_equally(range(budget), num_chunks)
    policy = POLICIES.find(name)
    _refuse_unserved(name, policy, candidates)
    # A budget of none holds no weight, so that it is raised to one chunk at least, if the policy weighs them.
    selected = policy.select(candidates, max(budget, 1))
    selection = _checked(name, selected, max(budget, 1), num_chunks)
    if fallback is None:
        return selection
    if isinstance(selected, Selection):
        return raise_budget(selection, fallback)
    return selection if budget else weigh_equally((), num_chunks)


def raise_budget(selection: Selection, fallback: Fallback) -> Selection:
    """Return the selection, with the heaviest other chunks if it holds less weight than `min_confidence` of all.

    As few are added as hold it, or as many as the raised budget allows. Where nothing weighs anything, no number of
    chunks is sure, and the raised budget is spent.
    """
    num_selected, num_chunks = len(selection.numbers), len(selection.weights)
    weights = selection.weights.astype(np.float64)
    others = np.setdiff1d(np.arange(num_chunks), selection.numbers)
    order = [*selection.numbers, *others[np.argsort(-weights[others], kind="stable")].tolist()]
    held = weights[order].cumsum()  # (C,)
    sure = int(np.searchsorted(held, fallback.min_confidence * held[-1])) + 1 if held[-1] else num_chunks
    return Selection(sorted(order[: max(num_selected, min(sure, fallback.budget))]), selection.weights)


def weigh_equally(numbers: Sequence[int], num_chunks: int) -> Selection:
    """Return the selection of these chunks, in ascending order, with all weight on them."""
    weights = np.zeros(num_chunks, np.float32)
    weights[list(numbers)] = 1
    return Selection(list(numbers), weights)


def is_chosen_by_decoder(name: str, budget: int, num_chunks: int, fallback: Fallback | None = None) -> bool:
    """Return whether only the decoder can choose the chunks, by its own attention.

    Raises InvalidRequest for a policy that is unknown.
    """
    POLICIES.check(name)
    return _is_choice(budget, num_chunks, fallback) and POLICIES.find(name).needs == "attention"


def open_trained_policy(config: RefragConfig, network: ExpansionPolicy | None) -> TrainedPolicy | None:
    """Return the checkpoint's trained policy, or None if it has none.

    Raises CheckpointError if the default policy in refrag.json needs a trained one and there is none, or is unknown.
    """
    try:
        default = POLICIES.find(config.policy)
    except InvalidRequest as error:
        raise CheckpointError(f"refrag.json names a default policy that nobody offers: {error}") from None
    trained = None if network is None else TrainedPolicy(network, config.policy_confidence)
    if default.is_trained and trained is None:
        raise CheckpointError(
            f"the checkpoint has no policy.safetensors, which its default policy {config.policy!r} needs; train one, "
            f"or set `policy` in refrag.json to one of {_untrained_names()}"
        )
    return trained


def _is_choice(budget: int, num_chunks: int, fallback: Fallback | None) -> bool:
    """Return whether there is anything to choose, whatever the policy."""
    return budget < num_chunks and (budget > 0 or fallback is not None)


def _refuse_unserved(name: str, policy: Policy, candidates: Candidates) -> None:
    if policy.is_trained and candidates.trained is None:
        raise InvalidRequest(
            f"policy {name!r} needs a trained network, which this checkpoint does not have; allowed: "
            f"{_untrained_names()}"
        )
    if policy.needs == "attention" and candidates.attention is None:
        raise InvalidRequest(f"policy {name!r} needs the decoder's attention, which was not read; name another policy")


def _untrained_names() -> str:
    """Return the names of this package's own; to load all others for a message could fail for their sake."""
    own = [entry.name for entry in POLICIES.built_in]
    return ", ".join(name for name in own if not POLICIES.find(name).is_trained)


def _checked(name: str, selected: Sequence[int] | Selection, budget: int, num_chunks: int) -> Selection:
    """Return the selection in ascending order. A policy of another package may select what it must not."""
    numbers = selected.numbers if isinstance(selected, Selection) else selected
    chosen = sorted(set(numbers))
    if not len(chosen) == len(numbers) <= budget or not all(0 <= number < num_chunks for number in chosen):
        raise RefragError(
            f"policy {name!r} selected {list(numbers)}; allowed are up to {budget} different numbers below {num_chunks}"
        )
    if not isinstance(selected, Selection):
        return weigh_equally(chosen, num_chunks)
    weights = np.asarray(selected.weights, np.float32)
    if weights.shape != (num_chunks,) or not np.isfinite(weights).all() or (weights < 0).any():
        raise RefragError(
            f"policy {name!r} weighed the chunks with shape {list(weights.shape)}, from {weights.min(initial=0)} to "
            f"{weights.max(initial=0)}; it must give each of the {num_chunks} a finite weight of 0 or more"
        )
    return Selection(chosen, weights)
