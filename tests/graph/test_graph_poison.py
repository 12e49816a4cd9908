"""Attacks on the store by callers of single models, and by whoever writes to a tier: answers and store stay right."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from inner_models import call, prepare
from redis_server import RedisServer, needs_redis
from store_server import REDIS_TIMEOUT_MS, Served, check_answers

from refrag_client import InvalidRequest, RefragError

pytestmark = pytest.mark.server

BYSTANDERS = 3


def forge_vectors(true, other):
    """Vectors of the attacker's own, with every proof that is to be had for the true ones."""
    return {**true, "chunk_vectors": true["chunk_vectors"][:, ::-1] * 2}


def forge_with_proof_of_others(true, other):
    """Vectors that the encoder did compute, of other chunks, with the proof of that."""
    count = len(true["chunk_vectors"])
    encoded = {name: np.resize(other[name], (count, *other[name].shape[1:])) for name in ENCODED}
    return {**true, **encoded}


def forge_vectors_alone(true, other):
    """Forge the vectors alone, under the true chunks' inputs."""
    forged = forge_with_proof_of_others(true, other)
    return {**forged, "encoder_ids": true["encoder_ids"], "encoder_mask": true["encoder_mask"]}


def swap_names(true, other):
    """True vectors under each other's digests."""
    return {**true, "chunk_digests": np.roll(true["chunk_digests"], 1, axis=0)}


def swap_names_and_proofs(true, other):
    return {**swap_names(true, other), "chunk_tags": np.roll(true["chunk_tags"], 1, axis=0)}


def send_no_proof(true, other):
    zeros = {name: np.zeros_like(true[name]) for name in ("chunk_tags", "vector_tags")}
    return {**forge_vectors(true, other), **zeros}


ENCODED = ("encoder_ids", "encoder_mask", "chunk_vectors", "vector_tags")
FORGERIES = [
    forge_vectors,
    forge_with_proof_of_others,
    forge_vectors_alone,
    swap_names,
    swap_names_and_proofs,
    send_no_proof,
]


def distinct(passages):
    return list(dict.fromkeys(passages))


def num_entries(served):
    [tier] = served.store.stats().tiers
    return tier.num_entries


def num_deleted(served, tier="disk"):
    return sum(page.num_deleted for page in served.store.verify(tier))


def test_forged_vectors_change_no_answer_and_do_not_enter_the_store(repository, tmp_path, contexts, expected):
    passages = distinct(passage for context in contexts[:BYSTANDERS] for passage in context.passages)
    with Served(repository, tmp_path, MEMORY_MIB=0) as served:
        true, other = prepare(served.server, passages), prepare(served.server, ["Something else, not asked for."])
        num_new = len(true["chunk_tags"])
        assert num_new > 1
        for number, forge in enumerate(FORGERIES, start=1):
            assert call(served.server, "expansion_policy", forge(true, other))["prompt_ids"].size
            served.wait_for_metric("refrag_store_unsigned", number * num_new)
        assert served.metric("refrag_store_written", model="expansion_policy") == 0

        cold = check_answers(served, contexts[:BYSTANDERS], expected[:BYSTANDERS])
        assert cold[0].num_stored_chunks == 0
        # What honest requests lacked is kept, as before.
        served.wait_for_metric("refrag_store_written", num_new, model="expansion_policy", kind="vectors")
        warm = check_answers(served, contexts[:BYSTANDERS], expected[:BYSTANDERS])
        assert all(figures.num_stored_chunks == figures.num_chunks > 0 for figures in warm)
        assert served.metric("refrag_store_unsigned") == len(FORGERIES) * num_new
        assert num_deleted(served) == 0


def test_a_client_that_takes_the_steps_one_by_one_and_honestly_fills_the_store(repository, tmp_path, contexts):
    passages = contexts[0].passages
    with Served(repository, tmp_path, MEMORY_MIB=0) as served:
        true = prepare(served.server, passages)
        call(served.server, "expansion_policy", true)
        served.wait_for_metric("refrag_store_written", len(true["chunk_tags"]), model="expansion_policy")
        assert not len(prepare(served.server, passages)["chunk_tags"])


def test_a_key_of_another_server_signs_nothing_here(repository, tmp_path, contexts):
    with Served(repository, tmp_path / "a") as first, Served(repository, tmp_path / "b") as second:
        stranger = prepare(first.server, contexts[0].passages)
        call(second.server, "expansion_policy", stranger)
        second.wait_for_metric("refrag_store_unsigned", len(stranger["chunk_tags"]))
        assert second.metric("refrag_store_written", model="expansion_policy") == 0


NEW_TENSORS = re.compile(r'(name|key): "(chunk_tags|vector_tags|encoder_ids|encoder_mask|signature_output)"')


def test_a_repository_of_an_older_release_says_what_to_do(repository, tmp_path, contexts):
    older = shutil.copytree(repository, tmp_path / "older")
    for config in older.glob("*/config.pbtxt"):
        lines = [line for line in config.read_text().splitlines() if not NEW_TENSORS.search(line)]
        config.write_text("\n".join(lines).replace("},\n]", "}\n]"))
    with (
        Served(older, tmp_path / "store") as served,
        pytest.raises(RefragError, match=r"tensor encoder_ids is missing.*delete those of .* run the export again"),
    ):
        served.ask(contexts[0])


# Of a prepared request, what makes it contradict itself; and the tensor that the refusal names.
CONTRADICTIONS = {
    "chunk_vectors has shape": lambda true: {"chunk_vectors": true["chunk_vectors"][:, :-1]},
    "stored_vectors has shape": lambda true: {"stored_vectors": np.zeros((2, 3), np.float16)},
    "stored_vectors holds NaN": lambda true: {
        "stored_vectors": np.full((1, true["chunk_vectors"].shape[1]), np.nan, np.float16)
    },
    "chunk_vectors holds NaN": lambda true: {"chunk_vectors": true["chunk_vectors"] * np.float32(np.nan)},
    "chunk_vectors holds NaN or infinity": lambda true: {"chunk_vectors": true["chunk_vectors"] + np.float32(np.inf)},
    "vector_rows ranges from -1": lambda true: {"vector_rows": true["vector_rows"] - 1},
    "vector_rows ranges from 1000": lambda true: {"vector_rows": true["vector_rows"] + 1000},
    "vector_rows has shape": lambda true: {"vector_rows": true["vector_rows"][1:]},
    "chunk_digests has shape": lambda true: {"chunk_digests": true["chunk_digests"][1:]},
    "chunk_tags has": lambda true: {"chunk_tags": np.resize(true["chunk_tags"], (100, 4))},
    "vector_tags has shape": lambda true: {"vector_tags": true["vector_tags"][1:]},
    "encoder_ids has shape": lambda true: {"encoder_ids": true["encoder_ids"][1:]},
    "encoder_mask has shape": lambda true: {"encoder_mask": true["encoder_mask"][:, 1:]},
    "chunk_passages has": lambda true: {"chunk_passages": true["chunk_passages"][1:]},
    "chunk_passages ranges": lambda true: {"chunk_passages": -1 - true["chunk_passages"]},
    "chunk_passages ranges from .* to 4194304": lambda true: {
        "chunk_passages": np.full_like(true["chunk_passages"], 2**22)
    },
    "chunk_token_ids ranges": lambda true: {"chunk_token_ids": true["chunk_token_ids"] + 10**6},
    "question_ids ranges": lambda true: {"question_ids": true["question_ids"] - 10**6},
    "raised_budget is 1000; allowed is the budget, 0, to": lambda true: {"raised_budget": np.array([1000], np.int32)},
    "raised_budget is -1": lambda true: {"raised_budget": np.array([-1], np.int32)},
    "min_confidence is 2.0; allowed is 0": lambda true: {
        "raised_budget": np.array([1], np.int32),
        "min_confidence": np.array([2], np.float32),
    },
    "chunk_vectors .* of the question": lambda true: {
        name: np.resize(true[name], (8200, *true[name].shape[1:])) for name in ENCODED
    },
}


def test_what_contradicts_itself_is_refused_by_the_tensors_name_and_nothing_is_stored(repository, tmp_path, contexts):
    with Served(repository, tmp_path, MEMORY_MIB=0) as served:
        true = prepare(served.server, contexts[0].passages)
        before = num_entries(served)
        for problem, change in CONTRADICTIONS.items():
            with pytest.raises(InvalidRequest, match=problem):
                call(served.server, "expansion_policy", {**true, **change(true)})
        assert num_entries(served) == before
        assert num_deleted(served) == 0


PLANT = """
import sys
import numpy as np
from pathlib import Path
from refrag.store.tiers.disk import DiskTier
from refrag.store.tiers.shared import SharedTier
from refrag.store.values import seal
place, owner, change = sys.argv[1], bytes.fromhex(sys.argv[2]), eval(sys.argv[3])
tier = SharedTier(place, 5.0) if place.startswith("redis:") else DiskTier(Path(place), 4096 * 2**20)
entries, cursor = [], None
while cursor is None or cursor:
    found, cursor = tier.scan(cursor or b"", 10**6)
    entries += found
ours = {key: value[8:] for key, value in entries if key.startswith(owner)}
tier.put({key: seal(key, change(value)) for key, value in ours.items()})
print(len(ours))
"""
# Values in the place of a vector, and then sealed with the checksum that is right for them.
IMPOSTORS = {
    "narrow": "lambda value: value[:-2]",
    "wide": "lambda value: value * 2",
    "one byte": "lambda value: b'x'",
    "NaN": "lambda value: np.full(len(value) // 2, np.nan, np.float16).tobytes()",
}


def plant(served, place, change):
    """Replace every vector in the tier, and return how many there were."""
    arguments = [str(place), served.store.stats().fingerprint, change]
    done = subprocess.run([sys.executable, "-c", PLANT, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout)


def check_that_impostors_go(served, place, tier, contexts, expected):
    passages = [passage for context in contexts for passage in context.passages]
    for change in IMPOSTORS.values():
        num_encoded = served.store.index(passages).num_encoded
        assert num_encoded > 0
        assert plant(served, place, change) == num_encoded
        told = served.metric("refrag_store_corrupted", tier=tier, model="preprocessing")
        figures = check_answers(served, contexts[:1], expected[:1])
        assert figures[0].num_stored_chunks == 0
        served.wait_for_metric("refrag_store_corrupted", told + 1, tier=tier, model="preprocessing")
        check_answers(served, contexts, expected)
        # Those that nobody asked for are still there.
        assert num_deleted(served, tier) <= num_encoded
        warm_after_indexing(served, passages, contexts, expected)
        assert plant(served, place, change) == num_encoded
        assert num_deleted(served, tier) == num_encoded


def warm_after_indexing(served, passages, contexts, expected):
    served.store.index(passages)
    warm = check_answers(served, contexts, expected)
    assert all(figures.num_stored_chunks == figures.num_chunks > 0 for figures in warm)
    assert num_deleted(served, served.store.stats().tiers[0].name) == 0


def test_vectors_that_cannot_be_this_encoders_are_not_served_from_disk(repository, tmp_path, contexts, expected):
    with Served(repository, tmp_path, MEMORY_MIB=0) as served:
        check_that_impostors_go(served, tmp_path, "disk", contexts[:BYSTANDERS], expected[:BYSTANDERS])


@needs_redis
def test_vectors_that_cannot_be_this_encoders_are_not_served_from_redis(repository, tmp_path, contexts, expected):
    redis = RedisServer(tmp_path)
    try:
        with Served(repository, "off", MEMORY_MIB=0, REDIS_URL=redis.url, REDIS_TIMEOUT_MS=REDIS_TIMEOUT_MS) as served:
            check_that_impostors_go(served, redis.url, "shared", contexts[:BYSTANDERS], expected[:BYSTANDERS])
    finally:
        redis.kill()
