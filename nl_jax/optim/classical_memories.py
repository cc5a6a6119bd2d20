r"""Momentum, Adam, AdaGrad, RMSProp and Muon as memories, for ``generalized_momentum`` (§4.2, App. B, Eq. 100-111).

Each function returns the arguments ``memories, read``: ``generalized_momentum(1e-3, *adam_memories())`` is Adam. With
default arguments the steps equal those of the optax optimizer with the same name, up to rounding. A decay out of its
range raises a ``ValueError``.

The adaptive ones share a structure: their last memory m solves the L2 regression of P on the gradients, where P is the
root of the second moment V (Eq. 101-111),

.. math::
  \min_m \sum_i w_i (m g_i - P)^2 + \lambda m^2 = V m^2 - 2 P M m + \lambda m^2 + \text{const},
  \qquad m = \frac{P M}{V + \lambda},

for which the only memories of the past are M, a memory of the gradients, and V, a memory of their squares.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from nl_jax.optim.bounded import check_range
from nl_jax.optim.generalized_momentum import GradientContext, Memory
from nl_jax.optim.newton_schulz import newton_schulz

Arguments = tuple[tuple[Memory, ...], Callable[[GradientContext], Array] | None]


def _square(x: Array) -> Array:
    return 0.5 * jnp.sum(jnp.square(x))


def average(decay: float, power: int = 1) -> Memory:
    """The exponential moving average of ``g**power`` with bias correction, for a decay in [0, 1).

    It minimises Σ decay^(t-i) ‖m - gᵢ‖². The online form is ½‖m - g‖² + ½ w ‖m - m_{t-1}‖² with
    w = Σ_{i<t} decay^(t-i).
    """
    check_range("decay", decay, 0.0, 1.0, below=True)
    return Memory(
        objective=lambda m, c: _square(m - c.gradient**power),
        retention=lambda m, last, c: decay * (1.0 - decay ** (c.step - 1)) / (1.0 - decay) * _square(m - last),
    )


def leaky_average(decay: float, power: int = 1) -> Memory:
    """The exponential moving average without bias correction, m ← decay · m + (1 - decay) g**power; decay in [0, 1].

    Its objective is L2 with fixed weights.
    """
    check_range("decay", decay, 0.0, 1.0)
    return Memory(
        objective=lambda m, c: (1.0 - decay) * _square(m - c.gradient**power),
        retention=lambda m, last, c: decay * _square(m - last),
    )


def total(decay: float = 1.0, power: int = 1, initial: float = 0.0) -> Memory:
    """The decayed sum m ← decay · m + g**power, with dot-product objective (Eq. 33), L2 retention; decay in [0, 1]."""
    check_range("decay", decay, 0.0, 1.0)
    return Memory(
        objective=lambda m, c: -jnp.sum(m * c.gradient**power),
        retention=lambda m, last, c: _square(m - decay * last),
        initial=initial,
    )


def regression(value: Callable[[GradientContext], Array], penalty: Callable[[GradientContext], Array]) -> Memory:
    """The memory m of the module's docstring, without a state; ``value`` returns P M and ``penalty`` V + λ."""
    return Memory(objective=lambda m, c: jnp.sum(0.5 * penalty(c) * jnp.square(m) - value(c) * m))


def momentum_memories(decay: float = 0.9) -> Arguments:
    """``optax.sgd(momentum=decay)``: -⟨m, g⟩ + ½‖m - decay m_{t-1}‖² (Eq. 33-34, 100).

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.optim import generalized_momentum, momentum_memories
      >>> tx = generalized_momentum(1.0, *momentum_memories(0.5))
      >>> update, state = tx.update(jnp.ones(2), tx.init(jnp.zeros(2)))
      >>> print(update, tx.update(jnp.ones(2), state)[0])
      [-1. -1.] [-1.5 -1.5]
    """
    return (total(decay),), None


def adam_memories(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Arguments:
    """``optax.adam``: M and V are averages, λ = eps P (Eq. 101-108).

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from nl_jax.optim import adam_memories, generalized_momentum
      >>> ours, theirs = generalized_momentum(0.1, *adam_memories()), optax.adam(0.1)
      >>> params, gradient = jnp.zeros(2), jnp.array([1.0, -3.0])
      >>> (a, _), (b, _) = (tx.update(gradient, tx.init(params), params) for tx in (ours, theirs))
      >>> bool(jnp.allclose(a, b, rtol=1e-4))
      True
    """
    m = regression(
        value=lambda c: jnp.sqrt(c.memories[1]) * c.memories[0],
        penalty=lambda c: c.memories[1] + eps * jnp.sqrt(c.memories[1]),
    )
    return (average(b1), average(b2, 2), m), None


def adagrad_memories(initial: float = 0.1, eps: float = 1e-7) -> Arguments:
    """``optax.adagrad``: V is the sum of squares plus eps, M the last gradient, λ = 0 (Eq. 109-111).

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from nl_jax.optim import adagrad_memories, generalized_momentum
      >>> ours, theirs = generalized_momentum(0.1, *adagrad_memories()), optax.adagrad(0.1)
      >>> params, gradient = jnp.zeros(2), jnp.array([1.0, -3.0])
      >>> (a, _), (b, _) = (tx.update(gradient, tx.init(params), params) for tx in (ours, theirs))
      >>> bool(jnp.allclose(a, b, rtol=1e-4))
      True
    """
    m = regression(
        value=lambda c: jnp.sqrt(c.memories[0] + eps) * c.gradient,
        penalty=lambda c: c.memories[0] + eps,
    )
    return (total(power=2, initial=initial), m), None


def rmsprop_memories(decay: float = 0.9, eps: float = 1e-8) -> Arguments:
    """``optax.rmsprop``: V is an average without bias correction plus eps, M the last gradient, λ = 0.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from nl_jax.optim import generalized_momentum, rmsprop_memories
      >>> ours, theirs = generalized_momentum(0.1, *rmsprop_memories()), optax.rmsprop(0.1)
      >>> params, gradient = jnp.zeros(2), jnp.array([1.0, -3.0])
      >>> (a, _), (b, _) = (tx.update(gradient, tx.init(params), params) for tx in (ours, theirs))
      >>> bool(jnp.allclose(a, b, rtol=1e-4))
      True
    """
    m = regression(
        value=lambda c: jnp.sqrt(c.memories[0] + eps) * c.gradient,
        penalty=lambda c: c.memories[0] + eps,
    )
    return (leaky_average(decay, 2), m), None


def muon_memories(decay: float = 0.95, nesterov: bool = True) -> Arguments:
    """``optax.contrib.muon`` for matrices [..., in, out]: a linear memory read through Newton-Schulz (Eq. 42, 52).

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.optim import generalized_momentum, muon_memories
      >>> tx = generalized_momentum(1.0, *muon_memories())
      >>> update, _ = tx.update(jnp.diag(jnp.array([1.0, 5.0])), tx.init(jnp.zeros((2, 2))))
      >>> size = -jnp.diag(update)  # both near 1, whatever the gradient's singular values are
      >>> bool((size > 0.6).all() and (size < 1.3).all())
      True
    """
    check_range("decay", decay, 0.0, 1.0, below=True)

    def read(c: GradientContext) -> Array:
        m = c.memories[0] / (1.0 - decay ** (c.step + 1 if nesterov else c.step))
        if nesterov:
            m = decay * m + (1.0 - decay) * c.gradient / (1.0 - decay**c.step)
        size_in, size_out = m.shape[-2:]
        return max(1.0, size_out / size_in) ** 0.5 * newton_schulz(m)

    return (leaky_average(decay),), read
