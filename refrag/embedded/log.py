"""Takes from the server's log the few lines that say what went wrong.

The server runs with --log-format=ISO8601, whose messages are JSON strings on one line each:
`2026-01-31T12:00:00Z E 42 model_lifecycle.cc:642] "failed to load 'decoder' version 1: …"`.
Everything else in the log is tables, what models print, and what the threads of a crashed one did.
"""

import json
import re
from itertools import pairwise

_ENTRY = re.compile(r'^\S+Z (?P<level>[IWEF]) \d+ \S+\] (?P<message>".*")$', re.MULTILINE)
_PROTOBUF_ERROR = re.compile(r"^\[libprotobuf ERROR [^\]]*\] (.*)$", re.MULTILINE)
_CRASH = re.compile(r"^(terminate called .*|\s+what\(\): .*|Signal \(\d+\) received\.)$", re.MULTILINE)
_PYTHON_CRASH = re.compile(r"^Fatal Python error: .*$", re.MULTILINE)
# Of the thread that crashed, if Python knows it; its innermost frames come first, and three tell enough.
_CRASHED_THREAD = re.compile(r"^Current thread \S+ .*:((?:\n  .*){1,3})", re.MULTILINE)
# Empty lines, tables, and the frames of a crash, which tell nothing without symbols.
_NOISE = re.compile(r"\s*$|[+|]|\s*\d+# ")
_HARMLESS = (
    "CudaDriverHelper has not been initialized",
    # Of a machine without a GPU, where it means nothing.
    "unable to create stream",
    # Repeated, with the model's name, by the line that follows it.
    "ERROR: Failed to create instance",
)
_NUM_LAST_LINES = 5


def extract_errors(log: str) -> list[str]:
    """Return the messages of the server's errors and crash, or the log's last lines if it reported none."""
    messages = _PROTOBUF_ERROR.findall(log)
    messages += [_decode(entry["message"]) for entry in _ENTRY.finditer(log) if entry["level"] in "EF"]
    messages += _CRASH.findall(log)
    messages += _python_crashes(log)
    errors = [message.strip() for message in messages if not message.startswith(_HARMLESS)]
    return list(dict.fromkeys(errors)) or _last_lines(log)


def find_loading_models(log: str) -> list[str]:
    """Return the models whose loading has begun and not ended."""
    messages = "\n".join(_decode(entry["message"]) for entry in _ENTRY.finditer(log))
    begun = re.findall(r"^loading: (.+):\d+$", messages, re.MULTILINE)
    ended = re.findall(r"^(?:successfully loaded|failed to load) '(.+?)'", messages, re.MULTILINE)
    return [name for name in dict.fromkeys(begun) if name not in ended]


def _python_crashes(log: str) -> list[str]:
    """Return what each crashed process of a model wrote, with the place where it was."""
    crashes = []
    for start, end in pairwise([*(found.start() for found in _PYTHON_CRASH.finditer(log)), len(log)]):
        thread = _CRASHED_THREAD.search(log, start, end)
        frames = [line.strip() for line in thread[1].splitlines() if line] if thread else ["a thread unknown to Python"]
        crashes.append(f"{log[start:end].splitlines()[0]} in {', '.join(frames)}")
    return crashes


def _decode(message: str) -> str:
    try:
        return str(json.loads(message))
    except json.JSONDecodeError:
        return message.strip('"')


def _last_lines(log: str) -> list[str]:
    return [line for line in log.splitlines() if not _NOISE.match(line)][-_NUM_LAST_LINES:]
