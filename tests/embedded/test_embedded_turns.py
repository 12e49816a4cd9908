"""Pieces of long jobs alternate, short work goes between them, and a job that fails ends alone."""

import threading

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
    turns, begun, may_end, order = Turns("test"), threading.Event(), threading.Event(), []

    def two_pieces():
        begun.set()
        may_end.wait(timeout=60)
        order.append("piece")
        yield
        order.append("piece")

    def short_work():
        with turns.lock:
            order.append("short work")

    turns.submit(two_pieces())
    assert begun.wait(timeout=60)
    thread = threading.Thread(target=short_work)
    thread.start()
    while not turns.lock.num_waiting:
        thread.join(0.001)
    may_end.set()
    turns.close()
    thread.join()
    assert order == ["piece", "short work", "piece"]


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
