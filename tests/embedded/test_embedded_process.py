"""Nothing of a server's group runs once its end is told."""

import os
import sys
import uuid
from contextlib import contextmanager

import pytest
from embedded_helpers import PATIENCE_SECONDS, is_group_alive, wait_until

from refrag.embedded.process import ServerProcess

# Starts a child that holds memory, which the kernel takes a while to free, and ends by itself when it is told to.
COMMAND = """
import os, sys, time
if os.fork() == 0:
    held = bytearray(os.urandom(1 << 20)) * 256
    open(sys.argv[1], "w").close()
    time.sleep(600)
while not os.path.exists(sys.argv[2]):
    time.sleep(0.01)
"""


@contextmanager
def running(tmp_path):
    """Yield a started server and the file that tells it to end; nothing of it is left afterwards."""
    prefix, ready, leave = f"test_{uuid.uuid4().hex[:8]}", tmp_path / "ready", tmp_path / "leave"
    command = [sys.executable, "-c", COMMAND, str(ready), str(leave)]
    process = ServerProcess(command, os.environ, tmp_path / "log", prefix, tmp_path / "run")
    (tmp_path / "run").mkdir()
    process.start()
    try:
        assert wait_until(ready.exists)
        yield process, leave
    finally:
        process.kill()


def test_a_killed_server_leaves_no_process(tmp_path):
    with running(tmp_path) as (process, _):
        process.kill()
        assert not is_group_alive(process.process_id)


def test_a_server_that_ends_by_itself_leaves_no_process(tmp_path):
    with running(tmp_path) as (process, leave):
        leave.touch()
        assert process.wait(PATIENCE_SECONDS)
        assert process.exit_code == 0
        assert not is_group_alive(process.process_id)


def test_a_command_that_cannot_be_started_is_told_whatever_the_reason(tmp_path):
    (tmp_path / "run").mkdir()
    process = ServerProcess(
        [sys.executable], {"A": 1}, tmp_path / "log", f"test_{uuid.uuid4().hex[:8]}", tmp_path / "run"
    )
    with pytest.raises(TypeError):
        process.start()
    process.kill()
    assert process.exit_code is None
