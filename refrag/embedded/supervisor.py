"""Keeps a server running: a thread that watches one run after another, and starts the next when one fails."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from refrag.embedded.run import ServerRun
from refrag.embedded.settings import ServerSettings
from refrag.embedded.watch import Watch
from refrag.errors import SetupError

log = logging.getLogger(__name__)

RESTART_WINDOW_SECONDS = 600.0
# Between two attempts to start: what failed at once may need a moment.
_PAUSE_SECONDS = 0.5


class Supervisor:
    """The thread and the run that it watches.

    run: ready to serve. new_run: makes the next one. watch: makes the watch of a run.
    """

    def __init__(
        self,
        settings: ServerSettings,
        run: ServerRun,
        new_run: Callable[[], ServerRun],
        watch: Callable[[ServerRun], Watch],
    ) -> None:
        self._settings, self._new_run, self._make_watch = settings, new_run, watch
        self._run: ServerRun = run
        self._watch = watch(run)
        self._failures: deque[float] = deque()
        self._changing = threading.Lock()
        self._closing = threading.Event()
        # Why it has given up; None while the server runs, and after an ordinary end.
        self.failure: str | None = None
        self._thread = threading.Thread(target=self._supervise, name="server supervisor", daemon=True)
        self._thread.start()

    @property
    def run(self) -> ServerRun:
        return self._run

    def wait(self) -> None:
        """Return once the server has ended for good."""
        self._thread.join()

    def close(self) -> int:
        """End the server in order, and return how many answers that has cut."""
        with self._changing:
            self._closing.set()
            self._watch.close()
            run = self._run
        num_cut = run.end()
        self._thread.join()
        return num_cut

    def _supervise(self) -> None:
        try:
            self._watch_runs()
        except Exception as error:
            # Whoever waits for the server must not take this for an ordinary end.
            self.failure = f"the supervisor failed, and with it the server: {type(error).__name__}: {error}"
            log.exception("the supervisor failed")
            self._run.kill()

    def _watch_runs(self) -> None:
        while (finding := self._watch.wait()) is not None:
            self._watch.close()
            # At once: no request that waits for what is gone would ever end.
            self._run.kill()
            report = self._run.explain(finding)
            log.error("%s", report)
            if not self._restart(report):
                return

    def _restart(self, report: str) -> bool:
        """Return whether the next run is ready; if not, the server has been stopped or has given up."""
        began = time.monotonic()
        self._note_failure(report)
        while self.failure is None and not self._closing.is_set():
            try:
                self._start_next_run()
            except (SetupError, OSError) as error:
                # A stop ends a run that is starting, which is no failure.
                if not self._closing.is_set():
                    log.error("the server could not be started again: %s", error)
                    self._note_failure(str(error))
                    self._closing.wait(_PAUSE_SECONDS)
                continue
            log.warning("the server answers again after %.1f s", time.monotonic() - began)
            return True
        return False

    def _start_next_run(self) -> None:
        """Start a run and watch it; leave nothing of one that fails, or that a stop has overtaken."""
        run = self._new_run()
        try:
            with self._changing:
                self._refuse_if_closing()
                self._run = run
            run.start()
            with self._changing:
                self._refuse_if_closing()
                self._watch = self._make_watch(run)
        except BaseException:
            run.kill()
            raise

    def _refuse_if_closing(self) -> None:
        if self._closing.is_set():
            raise SetupError("the server has been stopped")

    def _note_failure(self, report: str) -> None:
        """Count a failure, and give up if it was one too many."""
        now = time.monotonic()
        self._failures.append(now)
        while self._failures[0] < now - RESTART_WINDOW_SECONDS:
            self._failures.popleft()
        if self._settings.on_failure == "exit":
            self.failure = report
        elif len(self._failures) > self._settings.max_restarts:
            times = f"{len(self._failures)} times within ten minutes"
            self.failure = f"{report}\nThe server has failed {times} and gives up"
