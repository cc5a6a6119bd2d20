"""Rotary position embedding (Su et al., 2021) with any base, and the scalings of published long-context models."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

BASE = 10_000.0
SCALINGS = ("default", "linear", "llama3", "factors")


def rotary(
    x: Float[Array, "batch time heads head_dim"], start: int = 0, frequencies: Sequence[float] | None = None
) -> Float[Array, "batch time heads head_dim"]:
    """Rotates every pair of channels by an angle that grows with the position; channel i is paired with i + half.

    Args:
      x: of tokens that follow each other.
      start: position of the first; attention depends on differences of positions only.
      frequencies: radians a token for each pair, as `rotary_frequencies` gives them; None for base 10,000.
    """
    half = x.shape[-1] // 2
    rates = rotary_frequencies(half) if frequencies is None else np.asarray(frequencies)
    cos, sin = (table[start:, None] for table in _angles(start + x.shape[1], rates, x.dtype))
    return _turned(x, cos, sin)


def rotary_at(
    x: Float[Array, "batch 1 heads head_dim"],
    position: Int[Array, ""],
    frequencies: Sequence[float],
    *,
    positions: int,
) -> Float[Array, "batch 1 heads head_dim"]:
    """As `rotary`, for one token at a position below ``positions`` that is known when the program runs."""
    tables = _angles(positions, np.asarray(frequencies), x.dtype)
    cos, sin = (jax.lax.dynamic_slice_in_dim(table, position, 1)[:, None] for table in tables)
    return _turned(x, cos, sin)


def _turned(x: Array, cos: Array, sin: Array) -> Array:
    half = x.shape[-1] // 2
    first, second = x[..., :half].astype(cos.dtype), x[..., half:].astype(cos.dtype)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def rotary_frequencies(half: int, base: float = BASE, scaling: Mapping[str, Any] | None = None) -> np.ndarray:
    """Radians a token of each of the ``half`` pairs of channels, in float64.

    Args:
      half: half of the head size.
      base: the angle of pair i is ``base ** (-i / half)`` radians a token.
      scaling: the entry ``rope_scaling`` of a Hugging Face configuration, or None. Its ``rope_type`` is one of
        ``SCALINGS``: "linear" divides all frequencies by ``factor``, "llama3" divides the low ones only (Llama 3.1),
        and "factors" divides each by its own entry of ``factors``, as GGUF files have them.

    Raises:
      ValueError: for an unknown type of scaling, or one without a number that it needs.
    """
    frequencies = base ** (-np.arange(half) / half)
    scaling = dict(scaling or {})
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in SCALINGS:
        raise ValueError(f"rope_scaling: type {kind!r} is unknown; expected one of {', '.join(SCALINGS)}")
    try:
        if kind == "linear":
            return frequencies / scaling["factor"]
        if kind == "factors":
            return frequencies / np.asarray(scaling["factors"], float).reshape(half)
        if kind == "llama3":
            return _llama3(frequencies, scaling)
    except KeyError as error:
        raise ValueError(f"rope_scaling: type {kind!r} needs {error.args[0]!r}") from error
    return frequencies


def _llama3(frequencies: np.ndarray, scaling: Mapping[str, Any]) -> np.ndarray:
    """Divides the frequencies of long wavelengths by ``factor``, keeps short ones, and goes smoothly between them."""
    factor, low, high = (scaling[name] for name in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)  # within the original context
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - kept) * frequencies / factor + kept * frequencies


def _angles(
    length: int, frequencies: np.ndarray, dtype: Any
) -> tuple[Float[Array, "length half"], Float[Array, "length half"]]:
    """Cosine and sine of every position's angles, in float32 at least.

    A position is a multiple of ``size`` and a rest. Both have small tables, exact to the last digit however large the
    position is, and the angle-addition formulas join them.
    """
    size = int(np.ceil(np.sqrt(length)))
    coarse, fine = (np.arange(size)[:, None] * (step * frequencies) for step in (size, 1))
    wide = jnp.promote_types(dtype, jnp.float32)
    tables = [jnp.asarray(f(angles), wide) for angles in (coarse, fine) for f in (np.cos, np.sin)]
    # the barrier keeps XLA from folding the joined table into a constant of the program
    cos_coarse, sin_coarse, cos_fine, sin_fine = jax.lax.optimization_barrier(tables)
    cos_coarse, sin_coarse = cos_coarse[:, None], sin_coarse[:, None]
    cos = cos_coarse * cos_fine - sin_coarse * sin_fine
    sin = sin_coarse * cos_fine + cos_coarse * sin_fine
    half = len(frequencies)
    return cos.reshape(-1, half)[:length], sin.reshape(-1, half)[:length]
