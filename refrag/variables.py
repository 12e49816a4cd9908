"""Environment variables of refrag, and the search for misspelt ones, which would be ignored without a word."""

import os
import re
from collections.abc import Mapping

from refrag.errors import SetupError
from refrag.spelling import nearest_name

PREFIX = "REFRAG_"
CACHE = "REFRAG_CACHE"
# The commit that a copy of the tree without its history is of (refrag/machine/environment.py).
COMMIT = "REFRAG_COMMIT"
# The key by which the models of one server know each other's work (refrag/store/signing.py).
GRAPH_KEY = "REFRAG_GRAPH_KEY"
# The file whose appearance tells the decoder that the server stops (refrag/serving/stopping.py).
STOP_FILE = "REFRAG_STOP_FILE"
# Ends the name of the file beside it, in which the decoder tells how many answers it has cut.
CUT_ANSWERS_SUFFIX = ".cut"
# Names of HTTP headers, separated by commas, that --http-header-forward-pattern makes parameters of each request.
FORWARDED_HEADERS = "REFRAG_FORWARDED_HEADERS"
KNOWN = (
    CACHE,
    COMMIT,
    GRAPH_KEY,
    STOP_FILE,
    FORWARDED_HEADERS,
    # Of `refrag openai`, which may run in the same environment.
    "REFRAG_API_KEYS",
    # One for each setting of the store; a test holds them to refrag/store/settings.py.
    "REFRAG_STORE_MEMORY_MIB",
    "REFRAG_STORE_DISK_PATH",
    "REFRAG_STORE_DISK_MIB",
    "REFRAG_STORE_REDIS_URL",
    "REFRAG_STORE_REDIS_TIMEOUT_MS",
    # And of collections, held to refrag/retrieval/settings.py.
    "REFRAG_COLLECTIONS_PATH",
    "REFRAG_COLLECTIONS_WRITABLE",
)
# Kubernetes sets such ones for each Service, and so for one that is named refrag.
OF_KUBERNETES = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?$")


def refuse_misspelt(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Raise SetupError for a variable that is nearly one of ours; return the names of others with our prefix."""
    unknown = sorted(name for name in environment if _is_unknown(name))
    meant = {name: near for name in unknown if (near := _nearest(name))}
    if meant:
        told = "; ".join(f"{name} is no variable of refrag; is {near} meant?" for name, near in meant.items())
        raise SetupError(f"the environment is wrong: {told}")
    return unknown


def _is_unknown(name: str) -> bool:
    return name.startswith(PREFIX) and name not in KNOWN and not OF_KUBERNETES.search(name)


def _nearest(name: str) -> str | None:
    # The prefix is left out, since it makes all names alike.
    found = nearest_name(name.removeprefix(PREFIX), [known.removeprefix(PREFIX) for known in KNOWN])
    return None if found is None else PREFIX + found
