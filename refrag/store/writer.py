"""Does work that no answer waits for, in one thread, in the order it was submitted."""

import logging
import queue
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

Work = Callable[[], object]


class BackgroundWriter:
    """A queue and the thread that empties it.

    It refuses more than `max_pending` pieces of work: a store that cannot keep up must not fill memory.
    """

    def __init__(self, max_pending: int) -> None:
        self._pending: queue.Queue[Work | None] = queue.Queue(max_pending)
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> bool:
        """Queue the work, or return False if the queue is full."""
        try:
            self._pending.put_nowait(work)
        except queue.Full:
            return False
        return True

    def wait(self) -> None:
        """Block until everything submitted is done."""
        self._pending.join()

    def close(self) -> None:
        """Finish what is queued and end the thread; nothing may be submitted afterwards."""
        self._pending.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            work = self._pending.get()
            try:
                if work is None:
                    return
                work()
            except Exception:
                log.exception("a background write to the store failed")
            finally:
                self._pending.task_done()
