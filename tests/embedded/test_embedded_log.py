from refrag.embedded.log import extract_errors, find_loading_models

NOISE = """\
2026-01-31T12:00:00Z I 7 model_lifecycle.cc:472] "loading: decoder:1"
2026-01-31T12:00:00Z I 7 model_lifecycle.cc:472] "loading: encoder:1"
2026-01-31T12:00:00Z E 7 server.cc:241] "CudaDriverHelper has not been initialized."
+---------+--------+
| decoder | READY  |
"""
FAILURE = r"""
2026-01-31T12:00:02Z E 7 backend_model.cc:692] "ERROR: Failed to create instance: OSError: no \"weights\"\nhere"
2026-01-31T12:00:02Z E 7 model_lifecycle.cc:642] "failed to load 'decoder' version 1: OSError: no \"weights\"\nhere"
error: creating server: Internal - failed to load all models
"""


def test_only_the_failed_models_message_is_kept():
    errors = extract_errors(NOISE + FAILURE)
    assert errors == ["failed to load 'decoder' version 1: OSError: no \"weights\"\nhere"]


def test_a_config_that_does_not_parse_shows_where():
    line = '[libprotobuf ERROR /build/text_format.cc:337] Error parsing text-format: 1:7: no field named "bakend".'
    assert extract_errors(NOISE + line) == ['Error parsing text-format: 1:7: no field named "bakend".']


def test_a_crash_is_told_by_its_cause_and_not_by_its_frames():
    cause = "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n"
    frames = "Signal (6) received.\n 0# 0x000055CF in tritonserver\n 1# 0x00007FD8 in libc.so.6\n"
    errors = extract_errors(NOISE + cause + frames)
    assert errors == [
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "what():  std::bad_alloc",
        "Signal (6) received.",
    ]


PYTHON_CRASH = """\
Fatal Python error: Segmentation fault

Thread 0x00007f01 (most recent call first):
  File "threading.py", line 324 in wait

Current thread 0x00007f02 (most recent call first):
  File "numbers.py", line 1 in add
  File "engine.py", line 2 in step
  File "engine.py", line 3 in run
  File "threading.py", line 4 in _bootstrap

Extension modules: numpy.core._multiarray_umath (total: 1)
"""


def test_a_crash_of_a_models_process_is_told_with_the_innermost_lines_of_its_thread():
    crash = (
        'Fatal Python error: Segmentation fault in File "numbers.py", line 1 in add, '
        'File "engine.py", line 2 in step, File "engine.py", line 3 in run'
    )
    assert extract_errors(NOISE + PYTHON_CRASH + FAILURE)[1:] == [crash]


def test_a_crash_outside_python_is_told_without_the_lines_of_another_crash():
    outside = "Fatal Python error: Aborted\n\nThread 0x00007f01 (most recent call first):\n  <no Python frame>\n"
    first, second = extract_errors(NOISE + outside + PYTHON_CRASH)
    assert first == "Fatal Python error: Aborted in a thread unknown to Python"
    assert second.startswith('Fatal Python error: Segmentation fault in File "numbers.py"')


def test_without_errors_the_last_lines_speak():
    assert extract_errors(NOISE + "tritonserver: unrecognized option '--nope'")[-1].endswith("'--nope'")


def test_a_model_that_neither_loaded_nor_failed_is_still_loading():
    assert find_loading_models(NOISE) == ["decoder", "encoder"]
    assert find_loading_models(NOISE + FAILURE) == ["encoder"]
