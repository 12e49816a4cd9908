"""Chunk vectors, and passages' tokens, computed once and served from anywhere.

    request ─► Store.find ─► memory (LRU) ─► disk (LMDB) ─► shared (Redis)
               Store.put  ─► all of them

keys.py      encoder's fingerprint + hash of the chunk's tokens
values.py    FP16 vector, checksummed
tiers/       where values lie; each may fail at any time
tokens.py    passages' tokens, beside the vectors
lookup.py    a request's chunks: found, or to be encoded
store.py     the tiers as one store, which fails never
writer.py    puts that nobody waits for
"""
