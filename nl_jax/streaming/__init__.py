"""Learning at test time: state that lives across calls."""

from nl_jax.streaming.stream import Fed, Stream

__all__ = ["Fed", "Stream"]
