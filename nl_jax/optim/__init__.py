"""Optax transformations: optimizers as memories of gradients."""

from nl_jax.optim.multi_frequency import multi_frequency

__all__ = ["multi_frequency"]
