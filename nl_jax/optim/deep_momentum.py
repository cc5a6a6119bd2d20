"""Deep Momentum Gradient Descent: the momentum is an MLP that maps gradients to steps (Eq. 50, 52).

References:
  Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from nl_jax.optim.bounded import bounded, check_choice, check_integer, check_range

Layers = tuple[Array, ...]


class DeepMomentumState(NamedTuple):
    """State of ``scale_by_deep_momentum``."""

    change: optax.Updates  # for each parameter, the weights of its memory by layer, minus their initial values
    inner: optax.OptState


def reconstruction(answer: Float[Array, "rows size"], key: Float[Array, "rows size"]) -> Float[Array, ""]:
    """½ mean (answer - key)²: with this objective a small memory keeps the gradients that it sees again and again."""
    return 0.5 * jnp.mean(jnp.square(answer - key))


def _read(layers: Layers, keys: Float[Array, "... rows size"]) -> Float[Array, "... rows size"]:
    """The answers of memories to keys; SiLU is between their layers."""
    for w in layers[:-1]:
        keys = jax.nn.silu(keys @ w)
    return keys @ layers[-1]


def _objective_of_all(objective: Callable[[Array, Array], Array], answers: Iterable[Array], keys: Iterable[Array]):
    """The objective of the memories of all parameters, summed."""
    terms = (_objective_of(objective, answer, key) for answer, key in zip(answers, keys, strict=True))
    return sum(terms, start=jnp.zeros(()))


def _objective_of(objective: Callable[[Array, Array], Array], answers: Array, keys: Array) -> Float[Array, ""]:
    """The sum of the objective over the memories of a stack."""
    for _ in range(keys.ndim - 2):
        objective = jax.vmap(objective)
    return jnp.sum(objective(answers, keys))


def scale_by_deep_momentum(
    *,
    hidden: Sequence[int] = (32,),
    share: str = "rows",
    objective: Callable[[Array, Array], Array] | None = None,
    inner: optax.GradientTransformation | None = None,
    retention: float = 0.99,
    output: Callable[[Array], Array] | None = None,
    seed: int = 0,
) -> optax.GradientTransformation:
    """The rule of ``deep_momentum`` without its learning rate; arguments and errors are the same.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from nl_jax.optim import scale_by_deep_momentum
      >>> rule, w = scale_by_deep_momentum(hidden=(8,)), jnp.ones((4, 3))
      >>> update, state = jax.eval_shape(rule.update, w, rule.init(w))
      >>> update.shape, max(leaf.shape for leaf in jax.tree.leaves(state))  # the state is that of an MLP
      ((4, 3), (8, 4))
    """
    hidden = tuple(hidden)
    check_integer("hidden", hidden, 1)
    check_choice("share", share, ("rows", "parameter"))
    check_range("retention", retention, 0.0, 1.0)
    objective = reconstruction if objective is None else objective
    inner = optax.adam(0.01) if inner is None else inner

    def to_rows(g):
        return jnp.swapaxes(g, -1, -2) if share == "rows" and g.ndim >= 2 else g.reshape(1, -1)

    def from_rows(rows, shape):
        return jnp.swapaxes(rows, -1, -2) if share == "rows" and len(shape) >= 2 else rows.reshape(shape)

    def shapes(leaf):
        by_row = share == "rows" and leaf.ndim >= 2
        stack, size = (leaf.shape[:-2], leaf.shape[-2]) if by_row else ((), math.prod(leaf.shape))
        sizes = (size, *hidden, size)
        return [(*stack, a, b) for a, b in itertools.pairwise(sizes)]

    def initial(index, leaf) -> Layers:
        """Initial weights: random, but zero in the last layer, so the first answer is 0. Recomputed, not stored."""
        key = jax.random.fold_in(jax.random.key(seed), index)
        *first, last = shapes(leaf)
        keys = jax.random.split(key, len(first)) if first else ()
        layers = [jax.random.normal(k, s, leaf.dtype) / s[-2] ** 0.5 for k, s in zip(keys, first, strict=True)]
        return (*layers, jnp.zeros(last, leaf.dtype))

    def loss(memories, keys):
        return _objective_of_all(objective, map(_read, memories, keys), keys)

    def init(params):
        change = jax.tree.map(lambda p: tuple(jnp.zeros(s, p.dtype) for s in shapes(p)), params)
        leaves = jax.tree.leaves(params)
        weights = jax.tree.unflatten(jax.tree.structure(params), [initial(i, leaf) for i, leaf in enumerate(leaves)])
        return DeepMomentumState(change, inner.init(weights))

    def update(updates, state, params=None):
        del params
        leaves: list[Array] = jax.tree.leaves(updates)
        tree: Any = jax.tree.structure(updates)
        start = [initial(i, leaf) for i, leaf in enumerate(leaves)]
        change = tree.flatten_up_to(state.change)
        weights = jax.tree.map(jnp.add, start, change)
        rows = [to_rows(g) for g in leaves]
        sizes = [jnp.sqrt(jnp.mean(jnp.square(r), axis=(-2, -1), keepdims=True)) for r in rows]
        keys = [jnp.where(s > 0, r / jnp.where(s > 0, s, 1.0), 0.0) for r, s in zip(rows, sizes, strict=True)]

        gradients = jax.grad(loss)(weights, keys)
        steps, inner_state = inner.update(tree.unflatten(gradients), state.inner, tree.unflatten(weights))
        change = jax.tree.map(lambda d, s: (retention * d + s).astype(d.dtype), change, tree.flatten_up_to(steps))
        weights = jax.tree.map(jnp.add, start, change)

        answers = [_read(w, k) for w, k in zip(weights, keys, strict=True)]
        if output is None:
            answers = [a * size for a, size in zip(answers, sizes, strict=True)]
        answers = [from_rows(a, g.shape) for a, g in zip(answers, leaves, strict=True)]
        steps = answers if output is None else [output(a) for a in answers]
        return tree.unflatten(steps), DeepMomentumState(tree.unflatten(change), inner_state)

    return optax.GradientTransformation(init, update)


def deep_momentum(
    learning_rate: optax.ScalarOrSchedule,
    *,
    hidden: Sequence[int] = (32,),
    share: str = "rows",
    objective: Callable[[Array, Array], Array] | None = None,
    inner: optax.GradientTransformation | None = None,
    retention: float = 0.99,
    output: Callable[[Array], Array] | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum that is an MLP m from gradients to steps, trained during the optimization (Eq. 50, 52).

    With keys :math:`u = g / s`, where s is the root mean square of g over its matrix, m₀ the initial memory, and η₂ the
    inner optimizer's learning rate,

    .. math::
      m_t = m_0 + \alpha\, (m_{t-1} - m_0) - \eta_2 \nabla_m L^{(2)}(m_{t-1}; u_t), \qquad
      W_t = W_{t-1} - \eta\, s\, m_t(u_t)

    or :math:`W_t = W_{t-1} - \eta\, \sigma(m_t(u_t))` with a nonlinear ``output`` σ. The paper leaves the inner loss
    open and writes 1 for its target; by default the memory learns to reconstruct the key. Since it forgets and is
    small, its answer is large along directions that gradients take repeatedly, and small along those that occur once.
    The weights decay toward their initial values, since an MLP with all weights zero could not learn any more. The
    first answer is 0.

    With ``share="rows"`` every matrix [..., in, out] has its own memory, which reads its ``out`` rows of size ``in``.
    With ``share="parameter"`` every parameter has one memory, which reads it as a whole. Vectors and scalars are always
    read as a whole. Memory: 8 · hidden · in bytes per matrix (with one hidden layer), so 8 · hidden / out per
    parameter, or 8 · hidden per parameter with ``share="parameter"``; three times that with Adam's state.

    Args:
      learning_rate: η, or a schedule.
      hidden: sizes of the hidden layers, with SiLU; empty for a linear memory.
      share: "rows" or "parameter".
      objective: L²(answer, key), from two arrays [rows, size] to a scalar.
      inner: the transformation that trains the memory, including its learning rate. The default is
        ``optax.adam(0.01)``, whose bounded steps are stable for any curvature of the MLP.
      retention: α, in [0, 1].
      output: σ, applied to arrays with the parameter's shape, such as ``jnp.tanh``, or `newton_schulz` if all
        parameters are matrices.
      seed: seed of the initial memories, which are recomputed from it at each step.

    Returns:
      The corresponding ``optax.GradientTransformationExtraArgs``, `bounded`: steps with a NaN are skipped and counted.
      With ``optax.inject_hyperparams``, name seed and functions in ``static_args``.

    Raises:
      ValueError: for a hidden size below 1, an unknown ``share``, or a retention outside [0, 1].

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from nl_jax.optim import deep_momentum
      >>> w, tx = jnp.ones((4, 3)), deep_momentum(0.1, hidden=(8,))
      >>> state, update = tx.init(w), jax.jit(tx.update)
      >>> for _ in range(100):
      ...     updates, state = update(w, state)  # the gradient of ½ ‖w‖²
      ...     w = w + updates
      >>> print(bool(jnp.max(jnp.abs(w)) < 0.1))
      True
    """
    rule = scale_by_deep_momentum(
        hidden=hidden,
        share=share,
        objective=objective,
        inner=inner,
        retention=retention,
        output=output,
        seed=seed,
    )
    return bounded(optax.chain(rule, optax.scale_by_learning_rate(learning_rate)))
