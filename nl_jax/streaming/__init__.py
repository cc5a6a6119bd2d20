"""Learning at test time, with a state that is kept across calls: streams of text, and sampling."""

from nl_jax.streaming.continual_learner import ContinualLearner
from nl_jax.streaming.own_questions import Shown, as_question, before_questions, document_levels, self_questions
from nl_jax.streaming.stream import Fed, Stream

__all__ = [
    "ContinualLearner",
    "Fed",
    "Shown",
    "Stream",
    "as_question",
    "before_questions",
    "document_levels",
    "self_questions",
]
