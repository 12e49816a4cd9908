"""Pieces of long jobs alternate, short work goes between them, and a job that fails ends alone."""

import threading
from itertools import count

from refrag.embedded.turns import FairLock, Turns


def job(name, num_pieces, done):
    for _ in range(num_pieces):
        done.append(name)
        yield


def test_every_job_has_a_piece_in_turn():
    turns, done = Turns("test"), []
    with turns.lock:
        turns.submit(job("a", 3, done))
        turns.submit(job("b", 1, done))
        turns.submit(job("c", 2, done))
    turns.close()
    assert done == ["a", "b", "c", "a", "c", "a"]


def test_short_work_waits_for_one_piece_at_most():
    turns, begun, may_end, num_pieces = Turns("test"), threading.Event(), threading.Event(), []

    def endless():
        for number in count():
            num_pieces.append(number)
            begun.set()
            if len(num_pieces) > 1 and may_end.is_set():
                return
            yield

    turns.submit(endless())
    begun.wait()
    for _ in range(100):
        with turns.lock:
            before = len(num_pieces)
        with turns.lock:
            assert len(num_pieces) <= before + 1
    may_end.set()
    turns.close()


def test_a_job_that_fails_ends_alone(caplog):
    turns, done = Turns("test"), []
    turns.submit(1 // number for number in (1, 0, 1))
    turns.submit(job("other", 3, done))
    turns.close()
    assert done == ["other"] * 3
    assert "a job failed" in caplog.text


def test_a_fair_lock_is_had_in_the_order_of_asking():
    lock, order, threads = FairLock(), [], []

    def take(number):
        with lock:
            order.append(number)

    with lock:
        for number in range(5):
            threads.append(threading.Thread(target=take, args=(number,)))
            threads[-1].start()
            while lock.num_waiting <= number:
                threads[-1].join(0.001)
    for thread in threads:
        thread.join()
    assert order == list(range(5))
