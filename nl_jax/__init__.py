"""Nested Learning in JAX and Flax (Behrouz et al., arXiv 2512.24695)."""

from nl_jax._xla import disable_faulty_fusions
from nl_jax.errors import InputError

disable_faulty_fusions()

__all__ = ["InputError"]
