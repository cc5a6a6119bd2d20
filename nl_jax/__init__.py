"""Nested Learning in JAX and Flax (Behrouz et al., arXiv 2512.24695)."""

from nl_jax._xla import disable_faulty_fusions
from nl_jax.errors import Diverged, InputError, StorageError
from nl_jax.levels import Level, Schedule

__version__ = "0.2.0"

disable_faulty_fusions()  # none of the imports above asks for devices

__all__ = ["Diverged", "InputError", "Level", "Schedule", "StorageError", "__version__"]
