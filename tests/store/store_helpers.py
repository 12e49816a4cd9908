"""Vectors for the tests, and a tier that fails when it is told to."""

import hashlib

import numpy as np

from refrag.store.forms import VectorForm
from refrag.store.keys import EncoderIdentity
from refrag.store.tiers.tier import TierError, Usage

FINGERPRINT, OTHER = b"f" * 16, b"g" * 16
WIDTH = 24
FORM, ENCODER = VectorForm(WIDTH), EncoderIdentity(FINGERPRINT, WIDTH)


def digest(number):
    return hashlib.blake2b(str(number).encode(), digest_size=16).digest()


def vector(number):
    return np.random.default_rng(number).normal(size=WIDTH).astype(np.float16).tobytes()


def vectors(numbers):
    return {digest(number): vector(number) for number in numbers}


class FakeTier:
    """A dictionary, which can be made to fail."""

    name = "fake"

    def __init__(self):
        self.entries, self.live_marks = {}, {}
        self.fails, self.num_calls = False, 0

    def get(self, keys):
        self._call()
        return [self.entries.get(key) for key in keys]

    def put(self, items):
        self._call()
        self.entries.update(items)

    def delete(self, keys):
        self._call()
        for key in keys:
            self.entries.pop(key, None)

    def scan(self, cursor, count):
        self._call()
        keys = sorted(key for key in self.entries if key > cursor)[:count]
        return [(key, self.entries[key]) for key in keys], keys[-1] if len(keys) == count else b""

    def mark_live(self, fingerprint, now, seconds):
        self._call()
        self.live_marks[fingerprint] = now + seconds

    def live(self, now):
        self._call()
        return {fingerprint for fingerprint, until in self.live_marks.items() if until >= now}

    def usage(self):
        self._call()
        return Usage(len(self.entries), sum(map(len, self.entries.values())), None)

    def close(self):
        pass

    def _call(self):
        self.num_calls += 1
        if self.fails:
            raise TierError("told to fail")
