"""Nested Learning in JAX and Flax (Behrouz et al., arXiv 2512.24695)."""

from nl_jax.errors import InputError

__all__ = ["InputError"]
