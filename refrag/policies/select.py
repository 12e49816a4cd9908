"""Selects the chunks to expand for one request, by the policy that it names."""

from collections.abc import Sequence

from refrag.config import RefragConfig
from refrag.errors import CheckpointError, InvalidRequest, RefragError
from refrag.model.policy import ExpansionPolicy
from refrag.policies import POLICIES
from refrag.policies.base import Candidates, Policy, TrainedPolicy

NEEDS_ATTENTION = "needs the decoder's attention, which no decoder here shows; name another policy"


def select_chunks(name: str, candidates: Candidates, budget: int) -> list[int]:
    """Return the numbers of the chunks to expand, by the policy of that name, in ascending order.

    budget: how many it may expand, as `budget_of` has it. Raises InvalidRequest for a policy that is unknown or cannot
    be served with this checkpoint, and RefragError if the policy selects what it may not.
    """
    POLICIES.check(name)
    num_chunks = len(candidates)
    if budget in (0, num_chunks):  # There is nothing to choose, whatever the policy.
        return list(range(budget))
    policy = POLICIES.find(name)
    _refuse_unserved(name, policy, candidates.trained)
    return _checked(name, policy.select(candidates, budget), budget, num_chunks)


def open_trained_policy(config: RefragConfig, network: ExpansionPolicy | None) -> TrainedPolicy | None:
    """Return the checkpoint's trained policy, or None if it has none.

    Raises CheckpointError if the default policy in refrag.json needs a trained one and there is none, or is unknown.
    """
    try:
        default = POLICIES.find(config.policy)
    except InvalidRequest as error:
        raise CheckpointError(f"refrag.json names a default policy that nobody offers: {error}") from None
    trained = None if network is None else TrainedPolicy(network, config.policy_confidence)
    if default.needs == "attention":
        raise CheckpointError(f"the default policy {config.policy!r} in refrag.json {NEEDS_ATTENTION}")
    if default.is_trained and trained is None:
        raise CheckpointError(
            f"the checkpoint has no policy.safetensors, which its default policy {config.policy!r} needs; train one, "
            f"or set `policy` in refrag.json to one of {_untrained_names()}"
        )
    return trained


def _refuse_unserved(name: str, policy: Policy, trained: TrainedPolicy | None) -> None:
    if policy.is_trained and trained is None:
        raise InvalidRequest(
            f"policy {name!r} needs a trained network, which this checkpoint does not have; allowed: "
            f"{_untrained_names()}"
        )
    if policy.needs == "attention":
        raise InvalidRequest(f"policy {name!r} {NEEDS_ATTENTION}")


def _untrained_names() -> str:
    """Return the names of this package's own; to load all others for a message could fail for their sake."""
    own = [entry.name for entry in POLICIES.built_in]
    return ", ".join(name for name in own if not POLICIES.find(name).is_trained)


def _checked(name: str, numbers: Sequence[int], budget: int, num_chunks: int) -> list[int]:
    """Return the selected numbers in ascending order. A policy of another package may select what it must not."""
    chosen = sorted(set(numbers))
    if not len(chosen) == len(numbers) <= budget or not all(0 <= number < num_chunks for number in chosen):
        raise RefragError(
            f"policy {name!r} selected {list(numbers)}; allowed are up to {budget} different numbers below {num_chunks}"
        )
    return chosen
