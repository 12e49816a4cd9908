"""Puts the last turns of a conversation before its question, for training and evaluation alike."""

from refrag.data.questions.row import QuestionRow

# Turns that are put before a question unless somebody says otherwise: the last question and its answer.
QUESTION_TURNS = 2
USER = "user"


def with_last_turns(row: QuestionRow, num_turns: int = QUESTION_TURNS) -> str:
    """Return the question behind the last `num_turns` turns, a line for each with its role; alone without any."""
    last = row.history[max(0, len(row.history) - num_turns) :]
    if not last:
        return row.question
    return "\n".join([*(f"{role}: {text}" for role, text in last), f"{USER}: {row.question}"])
