"""From a request's options to the chunks that are expanded, by whichever policy it names."""

from collections.abc import Sequence

from refrag.config import RefragConfig
from refrag.errors import CheckpointError, InvalidRequest, RefragError
from refrag.model.policy import ExpansionPolicy
from refrag.policies import POLICIES
from refrag.policies.base import Candidates, Policy, TrainedPolicy
from refrag.policies.budget import budget_of
from refrag.request import ExpansionOptions


def select_chunks(options: ExpansionOptions, candidates: Candidates) -> list[int]:
    """Return the numbers of the chunks to expand, in ascending order.

    Raises InvalidRequest for a policy that is unknown or cannot be served with this checkpoint, and RefragError if the
    policy picks what it may not.
    """
    policy, num_chunks = POLICIES.find(options.policy), len(candidates)
    _refuse_unserved(options.policy, policy, candidates.trained)
    budget = budget_of(options, num_chunks)
    if budget == 0:
        return []
    if budget == num_chunks:
        return list(range(num_chunks))
    return _checked(options.policy, policy.select(candidates, budget), budget, num_chunks)


def open_trained_policy(config: RefragConfig, network: ExpansionPolicy | None) -> TrainedPolicy | None:
    """Return the checkpoint's trained policy, None where it has none.

    Raises CheckpointError if the checkpoint has none and its default policy needs one, or if its default is unknown.
    """
    try:
        default = POLICIES.find(config.policy)
    except InvalidRequest as error:
        raise CheckpointError(f"refrag.json names a default policy that nobody offers: {error}") from None
    if network is not None:
        return TrainedPolicy(network, config.policy_confidence)
    if default.is_trained:
        raise CheckpointError(
            f"the checkpoint has no policy.safetensors, which its default policy {config.policy!r} needs; train one, "
            f"or set `policy` in refrag.json to one of {', '.join(_untrained_names())}"
        )
    return None


def _refuse_unserved(name: str, policy: Policy, trained: TrainedPolicy | None) -> None:
    if policy.is_trained and trained is None:
        raise InvalidRequest(
            f"policy {name!r} needs a trained network, which this checkpoint does not have; allowed: "
            f"{', '.join(_untrained_names())}"
        )
    if policy.needs == "attention":
        raise InvalidRequest(f"policy {name!r} needs the decoder's attention, which no decoder here shows")


def _untrained_names() -> list[str]:
    return [name for name in POLICIES.names if not POLICIES.find(name).is_trained]


def _checked(name: str, picks: Sequence[int], budget: int, num_chunks: int) -> list[int]:
    """A policy may come from anywhere; what it picks is laid out by number, and paid for in slots."""
    chosen = sorted(set(picks))
    if not len(chosen) == len(picks) <= budget or not all(0 <= number < num_chunks for number in chosen):
        raise RefragError(
            f"policy {name!r} picked {list(picks)}; allowed are up to {budget} different numbers below {num_chunks}"
        )
    return chosen
