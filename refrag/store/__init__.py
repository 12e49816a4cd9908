"""Keeps chunk vectors and passages' tokens, so that each is computed once and found from anywhere.

    request ─► Store.find ─► memory (LRU) ─► disk (LMDB) ─► shared (Redis)
               Store.put  ─► all of them

keys.py      key = encoder's fingerprint + hash of the chunk's tokens
values.py    a value as it is stored, with its checksum
forms.py     what a value must look like to be served
signing.py   proof that a vector comes from this server's encoder
tiers/       the places where values lie; each may fail at any time
tokens.py    passages' tokens, beside the vectors
lookup.py    splits a request's chunks into those found and those to encode
store.py     the tiers as one store, whose reads never fail
writer.py    writes that no request waits for
"""
