"""Takes from the server's log the few lines that say what went wrong.

The server runs with --log-format=ISO8601, whose messages are JSON strings on one line each:
`2026-01-31T12:00:00Z E 42 model_lifecycle.cc:642] "failed to load 'decoder' version 1: …"`.
Everything else in the log is tables and what models print.
"""

import json
import re

_ENTRY = re.compile(r'^\S+Z (?P<level>[IWEF]) \d+ \S+\] (?P<message>".*")$', re.MULTILINE)
_PROTOBUF_ERROR = re.compile(r"^\[libprotobuf ERROR [^\]]*\] (.*)$", re.MULTILINE)
_CRASH = re.compile(r"^(terminate called .*|\s+what\(\): .*|Signal \(\d+\) received\.)$", re.MULTILINE)
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
    errors = [message.strip() for message in messages if not message.startswith(_HARMLESS)]
    return list(dict.fromkeys(errors)) or _last_lines(log)


def find_loading_models(log: str) -> list[str]:
    """Return the models whose loading has begun and not ended."""
    messages = "\n".join(_decode(entry["message"]) for entry in _ENTRY.finditer(log))
    begun = re.findall(r"^loading: (.+):\d+$", messages, re.MULTILINE)
    ended = re.findall(r"^(?:successfully loaded|failed to load) '(.+?)'", messages, re.MULTILINE)
    return [name for name in dict.fromkeys(begun) if name not in ended]


def _decode(message: str) -> str:
    try:
        return str(json.loads(message))
    except json.JSONDecodeError:
        return message.strip('"')


def _last_lines(log: str) -> list[str]:
    return [line for line in log.splitlines() if not _NOISE.match(line)][-_NUM_LAST_LINES:]
