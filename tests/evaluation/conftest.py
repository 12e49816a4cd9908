"""Fixtures of the evaluation's tests: tiny models, and a few held-out questions over four passages each."""

import pytest

from refrag.data.tasks import TASKS
from refrag.evaluation.case_set import CaseSet
from refrag.evaluation.cases import Asking, draw_questions
from refrag.evaluation.models import Models
from refrag.model.policy import ExpansionPolicy


@pytest.fixture(scope="session")
def models(tiny_checkpoint) -> Models:
    encoder, config = tiny_checkpoint.encoder, tiny_checkpoint.config
    aware, blind = (
        ExpansionPolicy(encoder.width, 32, config.policy_num_heads, question_aware).eval()
        for question_aware in (True, False)
    )
    return Models(
        tiny_checkpoint, tiny_checkpoint.decoder, "plain decoder", {"learned unlabelled": aware, "blind": blind}
    )


@pytest.fixture(scope="session")
def cases(models) -> CaseSet:
    return CaseSet(models, draw_questions(models.checkpoint, Asking(TASKS, 8, 4), seed=1), seed=1)
