"""Learning at test time, with a state that is kept across calls: streams of text, and sampling."""

from nl_jax.streaming.continual_learner import ContinualLearner
from nl_jax.streaming.stream import Fed, Stream

__all__ = ["ContinualLearner", "Fed", "Stream"]
