"""Long work cut into pieces that take turns with each other and with short work, so that nobody holds the others up."""

import logging
import threading
from collections import deque
from collections.abc import Iterator
from types import TracebackType

log = logging.getLogger(__name__)

Job = Iterator[None]


class FairLock:
    """A lock that threads get in the order in which they asked for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_asked = self._num_served = 0

    @property
    def num_waiting(self) -> int:
        """Return the number of threads that have asked for the lock while another one has it."""
        return max(0, self._num_asked - self._num_served - 1)

    def __enter__(self) -> None:
        with self._changed:
            ticket = self._num_asked
            self._num_asked += 1
            self._changed.wait_for(lambda: self._num_served == ticket)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._changed:
            self._num_served += 1
            self._changed.notify_all()


class Turns:
    """A thread that does jobs piece by piece, one of each job in turn.

    Other threads do short work under `lock`; they wait for one piece at most. A job is an iterator, whose every step is
    a piece.
    """

    def __init__(self, name: str) -> None:
        self.lock = FairLock()
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Finish all jobs and end the thread; nothing may be submitted afterwards."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while job := self._next_job():
            if self._do_piece(job):
                with self._changed:
                    self._jobs.append(job)

    def _next_job(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._is_closed)
            return self._jobs.popleft() if self._jobs else None

    def _do_piece(self, job: Job) -> bool:
        """Do the job's next piece, and return whether another one may follow."""
        try:
            with self.lock:
                next(job)
        except StopIteration:
            return False
        except Exception:
            log.exception("a job failed")
            return False
        return True
