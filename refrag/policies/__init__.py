"""Policies that choose which chunks to expand, by name: the value of a request's `policy`.

Each policy is one file, with one function, and one line here.
"""

from refrag.config import LEARNED_POLICY
from refrag.errors import InvalidRequest
from refrag.plugins import Table
from refrag.policies.base import Policy
from refrag.request import EXPAND_ALL, EXPAND_NOTHING

POLICIES: Table[Policy] = Table(
    kind="policy",
    group="refrag.policies",
    built_in={
        LEARNED_POLICY: "refrag.policies.learned:POLICY",
        "similarity": "refrag.policies.similarity:POLICY",
        "neighbourhood": "refrag.policies.neighbourhood:POLICY",
        "attention": "refrag.policies.attention:POLICY",
        "random": "refrag.policies.random:POLICY",
        EXPAND_NOTHING: "refrag.policies.fixed:NONE",
        EXPAND_ALL: "refrag.policies.fixed:ALL",
    },
    unknown=InvalidRequest,
)
