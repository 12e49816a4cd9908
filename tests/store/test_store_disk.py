"""LMDB under everything that happens to files, and several processes at once."""

import fcntl
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_disk import needs_mount, small_disk
from store_helpers import FINGERPRINT, OTHER, digest

from refrag.store.tiers.disk import DiskTier
from refrag.store.tiers.tier import TierError

MIB = 2**20


def items(numbers, size=100, owner=FINGERPRINT):
    return {owner + digest(number): str(number).encode().ljust(size, b".") for number in numbers}


def keys(numbers):
    return list(items(numbers))


def data_file(folder):
    return next(folder.glob("*/data.mdb"))


@pytest.fixture
def tier(tmp_path):
    tier = DiskTier(tmp_path, 16 * MIB)
    yield tier
    tier.close()


def run_python(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], capture_output=True, text=True, check=True
    ).stdout


def test_what_was_put_is_got(tier):
    tier.put(items(range(50)))
    assert tier.get([*keys([7, 99]), *keys([3])]) == [items([7])[keys([7])[0]], None, items([3])[keys([3])[0]]]
    assert tier.usage().num_entries == 50


def test_what_is_put_again_takes_the_place_of_what_was(tier):
    tier.put(items([1]))
    tier.put({keys([1])[0]: b"other"})
    assert tier.get(keys([1])) == [b"other"]
    assert tier.usage().num_entries == 1


def test_what_was_deleted_is_gone(tier):
    tier.put(items(range(3)))
    tier.delete(keys([1, 5]))
    assert [value is None for value in tier.get(keys(range(3)))] == [False, True, False]
    assert tier.usage().num_entries == 2


def test_a_scan_tells_everything_once_in_pages(tier):
    stored = {**items(range(25)), **items(range(5), owner=OTHER)}
    tier.put(stored)
    found, cursor, num_pages = [], b"", 0
    while num_pages == 0 or cursor:
        page, cursor = tier.scan(cursor, 10)
        found, num_pages = found + page, num_pages + 1
    assert dict(found) == stored
    assert (len(found), num_pages) == (30, 3)


def test_the_oldest_go_when_the_limit_is_reached(tmp_path):
    tier = DiskTier(tmp_path, MIB)
    for start in range(0, 20_000, 500):
        tier.put(items(range(start, start + 500)))
        assert tier.usage().num_bytes <= 1.1 * MIB
    assert tier.get(keys([19_999]))[0] is not None
    assert tier.get(keys([0])) == [None]
    kept = [number for number, value in enumerate(tier.get(keys(range(20_000)))) if value]
    assert kept == list(range(20_000 - len(kept), 20_000))
    assert data_file(tmp_path).stat().st_blocks * 512 < 4 * MIB


def test_marks_of_live_fingerprints_run_out(tier):
    tier.mark_live(FINGERPRINT, now=100.0, seconds=10.0)
    tier.mark_live(OTHER, now=100.0, seconds=50.0)
    assert tier.live(now=105.0) == {FINGERPRINT, OTHER}
    assert tier.live(now=120.0) == {OTHER}


@pytest.mark.parametrize("size", [0, 100, 4096, 20_000])
def test_a_file_cut_off_under_our_feet_is_given_up(tmp_path, tier, size):
    tier.put(items(range(2000)))
    os.truncate(data_file(tmp_path), size)
    with pytest.raises(TierError, match="a new folder takes its place"):
        tier.get(keys([1999]))
    assert tier.get(keys([1999])) == [None]
    tier.put(items([1]))
    assert tier.get(keys([1])) == [items([1])[keys([1])[0]]]


def test_free_pages_at_the_end_of_the_file_are_no_damage(tmp_path, tier):
    """LMDB does not write them, so that its own file can end before the last page that it counts."""
    for fill in ("a", "b"):
        tier.put({key: fill.encode() * 400 for key in keys(range(200))})
    tier.delete(sorted(keys(range(200))))
    code = """
        import sys; from pathlib import Path
        from refrag.store.tiers.disk import DiskTier
        print(DiskTier(Path(sys.argv[1]), 32 * 2**20).usage().num_entries)
    """
    assert (tier.usage().num_entries, run_python(code, tmp_path)) == (0, "0\n")


@pytest.mark.parametrize("damage", ["cut", "garbage", "removed"])
def test_a_file_damaged_between_runs_is_given_up(tmp_path, damage):
    first = DiskTier(tmp_path, 16 * MIB)
    first.put(items(range(2000)))
    first.close()
    if damage == "cut":
        os.truncate(data_file(tmp_path), 20_000)
    elif damage == "garbage":
        data_file(tmp_path).write_bytes(b"no database" * 10_000)
    else:
        data_file(tmp_path).unlink()
    second = DiskTier(tmp_path, 16 * MIB)
    for _ in range(2):
        try:
            second.put(items([1]))
        except TierError:
            continue
    assert second.get(keys([1, 2])) == [items([1])[keys([1])[0]], None]
    second.close()


def test_others_follow_to_the_new_folder(tmp_path, tier):
    """A second process notices damage that the first has noticed, and both meet again."""
    tier.put(items(range(2000)))
    os.truncate(data_file(tmp_path), 20_000)
    code = """
        import sys; from pathlib import Path
        from refrag.store.tiers.disk import DiskTier
        from refrag.store.tiers.tier import TierError
        tier = DiskTier(Path(sys.argv[1]), 16 * 2**20)
        try: tier.get([b"key"])
        except TierError: pass
        tier.put({b"key": b"from the other"})
    """
    run_python(code, tmp_path)
    with pytest.raises(TierError):
        tier.get([b"key"])
    assert tier.get([b"key"]) == [b"from the other"]


def test_a_damaged_file_that_cannot_be_replaced_is_an_error_of_the_tier(tmp_path, tier, monkeypatch):
    tier.put(items([1]))
    os.truncate(data_file(tmp_path), 20_000)

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("refrag.store.tiers.disk._write_current", fail)
    for _ in range(2):
        with pytest.raises(TierError, match="no new folder can be made: no space left"):
            tier.get(keys([1]))
    monkeypatch.undo()
    with pytest.raises(TierError, match="a new folder takes its place"):
        tier.get(keys([1]))
    assert tier.get(keys([1])) == [None]


@needs_mount
def test_a_full_disk_keeps_what_it_has_and_takes_up_again(tmp_path):
    with small_disk(tmp_path, 1024) as folder:
        tier = DiskTier(folder / "store", 16 * MIB)
        tier.put(items(range(100)))
        with pytest.raises(TierError, match=r"Input/output error|No space left"):
            tier.put(items(range(100, 20_000)))
        assert tier.get(keys([0, 99, 100])) == [*items([0, 99]).values(), None]
        tier.put(items([100]))
        assert tier.get(keys([100])) == list(items([100]).values())
        tier.close()


def test_threads_that_open_it_at_once_share_it(tmp_path):
    tier = DiskTier(tmp_path, 16 * MIB)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: tier.put(items([number])), range(64)))
    assert None not in tier.get(keys(range(64)))
    tier.close()


def test_damage_that_many_threads_notice_costs_one_folder(tmp_path, tier):
    tier.put(items(range(2000)))
    os.truncate(data_file(tmp_path), 20_000)
    outcomes = []

    def ask(number):
        try:
            outcomes.append(tier.put(items([number])))
        except TierError as error:
            outcomes.append(str(error))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert {folder.name for folder in tmp_path.iterdir() if folder.is_dir()} == {"000001"}
    assert all(outcome is None or "a new folder takes its place" in outcome for outcome in outcomes)
    assert tier.usage().num_entries == outcomes.count(None)


def test_a_lock_that_another_process_keeps_is_an_error_of_the_tier(tmp_path, monkeypatch):
    monkeypatch.setattr("refrag.store.tiers.disk.LOCK_SECONDS", 0.05)
    with (tmp_path / "LOCK").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TierError, match="another process has kept LOCK"):
            DiskTier(tmp_path, MIB).get(keys([1]))


def test_a_folder_that_cannot_be_written_is_an_error_of_the_tier(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(TierError, match="file"):
        DiskTier(blocker / "store", MIB).put(items([1]))


def test_processes_write_at_the_same_time(tmp_path, tier):
    code = """
        import sys; from pathlib import Path
        from refrag.store.tiers.disk import DiskTier
        tier = DiskTier(Path(sys.argv[1]), 64 * 2**20)
        for n in range(200):
            tier.put({f"{sys.argv[2]}-{n}".encode(): sys.argv[2].encode()})
    """
    arguments = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    writers = [subprocess.Popen([*arguments, name]) for name in "abc"]
    tier.put(items(range(100)))
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert tier.usage().num_entries == 700
    assert set(tier.get([f"{name}-{n}".encode() for name in "abc" for n in range(200)])) == {b"a", b"b", b"c"}


def test_a_killed_writer_loses_nothing_that_it_had_committed(tmp_path):
    code = """
        import sys; from pathlib import Path
        from refrag.store.tiers.disk import DiskTier
        tier = DiskTier(Path(sys.argv[1]), 64 * 2**20)
        for n in range(10**9):
            tier.put({f"{n}-{i}".encode(): b"value" for i in range(20)})
            print(n, flush=True)
    """
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    committed = [int(writer.stdout.readline()) for _ in range(30)]
    writer.send_signal(signal.SIGKILL)
    committed += [int(line) for line in writer.stdout.read().splitlines() if line.strip()]
    writer.wait()
    writer.stdout.close()
    reader = DiskTier(tmp_path, 64 * MIB)
    assert None not in reader.get([f"{n}-{i}".encode() for n in committed for i in range(20)])
    # And the next can write: the dead one's lock is not in its way.
    reader.put({b"next": b"value"})
    assert reader.get([b"next"]) == [b"value"]
    reader.close()


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["put", "delete", "get"]), st.lists(st.integers(0, 30), max_size=8), st.integers(0, 3)),
    max_size=20,
)


@settings(max_examples=40)
@given(operations=OPERATIONS)
def test_it_is_a_dictionary(tmp_path_factory, operations):
    tier, expected = DiskTier(tmp_path_factory.mktemp("disk"), 16 * MIB), {}
    for name, numbers, version in operations:
        changed = {key: value + bytes([version]) for key, value in items(numbers).items()}
        if name == "put":
            tier.put(changed)
            expected.update(changed)
        elif name == "delete":
            tier.delete(keys(numbers))
            expected = {key: value for key, value in expected.items() if key not in changed}
        assert tier.get(keys(numbers)) == [expected.get(key) for key in keys(numbers)]
    assert dict(tier.scan(b"", 1000)[0]) == expected
    tier.close()
