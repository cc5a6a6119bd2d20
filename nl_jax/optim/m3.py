"""M3: Muon with momentum at several time scales and a second moment (Algorithm 1, Eq. 75).

References:
  Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from nl_jax.optim.bounded import bounded, check_choice, check_integer, check_range
from nl_jax.optim.matrices import matrix_dimensions
from nl_jax.optim.newton_schulz import newton_schulz

PyTree = Any


class M3State(NamedTuple):
    """State of ``scale_by_m3``; every tree has the structure and shapes of the parameters."""

    count: Int[Array, ""]  # type: ignore[assignment]  # number of steps taken
    fast: optax.Updates  # M1
    second_moment: optax.Updates  # V
    slow: tuple[optax.Updates, ...]  # M2 of each slow scale, including the gradients of its unfinished period
    slow_direction: tuple[optax.Updates, ...]  # O2 of each slow scale, from its last complete period


def _divided(direction: Array, second_moment: Array, axes: tuple[int, ...] | None, eps: float) -> Array:
    """Divides a direction by the root of its second moment: as it is (axes=None), or relative to its mean over axes."""
    root = jnp.sqrt(second_moment)
    if axes is None:
        return (direction / (root + eps)).astype(direction.dtype)
    mean = jnp.sqrt(jnp.mean(second_moment, axis=axes, keepdims=True)) + eps
    return (direction * (mean / (root + mean))).astype(direction.dtype)


def scale_by_m3(
    *,
    periods: Sequence[int] = (16,),
    b1: float = 0.95,
    b2: float = 0.95,
    b3: float = 0.9,
    alpha: float = 0.2,
    accumulate: str = "ema",
    denominator: str = "normalized",
    nesterov: bool = True,
    eps: float = 1e-8,
    matrices: PyTree = True,
) -> optax.GradientTransformationExtraArgs:
    """The rule of ``m3`` for parameters that are all matrices, by default [..., in, out].

    Arguments and errors are the same, except that ``matrices`` must be a tree or a prefix of one, and must name the
    axes of every parameter. The update takes an extra argument ``finite``; if it is false, the state does not change.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from nl_jax.optim import scale_by_m3
      >>> w = jnp.ones((8, 8))
      >>> state = scale_by_m3(periods=(4, 16)).init(w)
      >>> round(sum(leaf.size for leaf in jax.tree.leaves(state)) / w.size)  # numbers that it keeps for each parameter
      6
    """
    periods = tuple(periods)
    check_integer("periods", periods, 1)
    check_choice("accumulate", accumulate, ("ema", "sum"))
    check_choice("denominator", denominator, ("normalized", "paper"))
    ema = accumulate == "ema"
    check_range("b1", b1, 0.0, 1.0)
    check_range("b2", b2, 0.0, 1.0, below=ema)  # with b2 = 1 the second moment stays zero, and cannot be divided by
    check_range("b3", b3, 0.0, 1.0)

    def add(memory, updates, b, finite, decays=True):
        """Adds one gradient to ``memory``."""
        kept, weight = (jnp.where(decays & finite, b, 1.0), 1.0 - b) if ema else (1.0, b)
        weight = jnp.where(finite, weight, 0.0)
        return jax.tree.map(lambda m, g: (kept * m + weight * g).astype(m.dtype), memory, updates)

    def dimensions(tree):
        return matrix_dimensions(tree, matrices)

    # two function objects that stay the same from call to call, so that `cond` is compiled once even without jit
    def orthogonalize(memory, last=None):
        del last
        return jax.tree.map(lambda m, axes: newton_schulz(m, dimensions=axes), memory, dimensions(memory))

    def wait(memory, last):
        del memory
        return last

    def init(params):
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
        slow, direction = (tuple(zeros() for _ in periods) for _ in range(2))
        return M3State(jnp.zeros((), jnp.int32), zeros(), zeros(), slow, direction)

    def update(updates, state, params=None, *, finite=True, **extra):
        del params, extra
        finite = jnp.asarray(finite)
        count = jnp.where(finite, optax.safe_increment(state.count), state.count)
        fast = add(state.fast, updates, b1, finite)
        second = add(state.second_moment, jax.tree.map(jnp.square, updates), b2, finite)
        direction = orthogonalize(add(fast, updates, b1, finite) if nesterov else fast)
        for slow_direction in state.slow_direction:
            direction = jax.tree.map(lambda o, s: o + alpha * s, direction, slow_direction)

        slow, slow_directions = [], []
        for period, memory, last in zip(periods, state.slow, state.slow_direction, strict=True):
            # The memory decays once per period, at its start, so that the sum of the period needs no separate buffer.
            memory = add(memory, updates, b3, finite, decays=state.count % period == 0)
            slow.append(memory)
            due = finite & (count % period == 0)
            slow_directions.append(jax.lax.cond(due, orthogonalize, wait, memory, last))

        def divide(o, v, axes):
            v = v / (1.0 - b2**count) if ema else v
            axes = None if denominator == "paper" else (*axes.reduction_axis, *axes.output_axis)
            return _divided(o, v, axes, eps)

        steps = jax.tree.map(divide, direction, second, dimensions(second))
        return steps, M3State(count, fast, second, tuple(slow), tuple(slow_directions))

    return optax.GradientTransformationExtraArgs(init, update)


def m3(
    learning_rate: optax.ScalarOrSchedule,
    *,
    periods: Sequence[int] = (16,),
    b1: float = 0.95,
    b2: float = 0.95,
    b3: float = 0.9,
    alpha: float = 0.2,
    accumulate: str = "ema",
    denominator: str = "normalized",
    nesterov: bool = True,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    matrices: PyTree | Callable[[optax.Params], PyTree] | None = None,
    adam_learning_rate: optax.ScalarOrSchedule | None = None,
    adam_b1: float = 0.9,
    adam_b2: float = 0.999,
) -> optax.GradientTransformationExtraArgs:
    r"""Multi-scale momentum Muon (Algorithm 1): a continuum memory of gradients, orthogonalised at every time scale.

    With :math:`NS` the Newton-Schulz iteration, the fast memory is updated at every step, and the slow memory at the
    end of every period of :math:`C` steps,

    .. math::
      M^{(1)}_t &= \beta_1 M^{(1)}_{t-1} + (1 - \beta_1) g_t, \qquad
      V_t = \beta_2 V_{t-1} + (1 - \beta_2) g_t^2 \\
      M^{(2)} &\leftarrow \beta_3 M^{(2)} + (1 - \beta_3) \textstyle\sum_{i=t-C+1}^{t} g_i, \qquad
      O^{(2)} = NS(M^{(2)}) \\
      \Theta_t &= \Theta_{t-1} - \eta D_t \odot \big(NS(M^{(1)}_t) + \alpha O^{(2)}\big)

    where a new :math:`O^{(2)}` is used from the step after the end of its period on, and its Newton-Schulz iteration
    runs only at that end. :math:`D_t = r_t / (\sqrt{\hat V_t} + r_t)`, where :math:`\hat V` is the bias-corrected
    :math:`V` and :math:`r` the root of its mean over the matrix. The entries of :math:`D_t` are in (0, 1] and do not
    depend on the scale of the gradients, so learning rates are as for Muon. ``denominator="paper"`` is the paper's
    :math:`1 / (\sqrt{\hat V} + \epsilon)`, whose learning rate has to scale with the gradients. ``accumulate="sum"`` is
    Algorithm 1 as printed: sums :math:`M \leftarrow M + \beta g` that forget nothing, without bias correction.
    ``nesterov`` adds the gradient to :math:`M^{(1)}` once more before orthogonalisation, as in Muon; Algorithm 1 does
    not.

    Parameters that are not hidden matrices are updated by AdamW. Memory: 8 bytes per matrix parameter and 8 more for
    each slow scale (float32), so 16 by default; 8 bytes per parameter of AdamW.

    Args:
      learning_rate: η, or a schedule.
      periods: C of each slow memory. Several periods give more than two time scales; none gives Muon with D.
      b1, b2, b3: decay of the fast memory per step, of the second moment per step, and of slow memories per period;
        with ``accumulate="sum"`` the weights β of the sums.
      alpha: α, the weight of each slow memory.
      accumulate: "ema" or "sum".
      denominator: "normalized" or "paper".
      nesterov: whether the direction includes the last gradient once more.
      eps: added to the denominators of M3 and AdamW.
      weight_decay: decoupled weight decay; all parameters shrink by this factor times the learning rate per step.
      matrices: which parameters are matrices, and by which axes: a tree with the structure of the parameters, a prefix
        of such a tree, or a function that makes it from the parameters. Its leaves are
        ``optax.contrib.MuonDimensionNumbers``, True for [..., in, out], or False or None for AdamW. Axes that are
        neither input nor output are stacks, in which each matrix is orthogonalised separately. The default knows this
        project's models and guesses for others (``nl_jax.optim.matrices``); embeddings, output heads, biases and scales
        go to AdamW. ``print(describe_matrices(params))`` shows the choice.
      adam_learning_rate: learning rate of AdamW; by default ``learning_rate``.
      adam_b1, adam_b2: decay rates of AdamW.

    Returns:
      The corresponding ``optax.GradientTransformationExtraArgs``, `bounded`: steps with a NaN are skipped and counted.

    Raises:
      ValueError: for a period below 1, a coefficient outside [0, 1] (b2 of an "ema", adam_b1 and adam_b2 must be below
        1), or an unknown ``accumulate`` or ``denominator``; from ``init``, for axes that a matrix does not have.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from nl_jax.optim import m3
      >>> loss = lambda params: jnp.sum((params["w"] - jnp.eye(3)) ** 2) + params["b"] ** 2
      >>> params = {"w": jnp.zeros((3, 3)), "b": jnp.ones(())}
      >>> tx = m3(0.1, periods=(4, 16))
      >>> state, update = tx.init(params), jax.jit(tx.update)
      >>> for _ in range(30):
      ...     updates, state = update(jax.grad(loss)(params), state, params)
      ...     params = jax.tree.map(jnp.add, params, updates)
      >>> print(bool(loss(params) < 0.1))
      True
    """
    check_range("adam_b1", adam_b1, 0.0, 1.0, below=True)
    check_range("adam_b2", adam_b2, 0.0, 1.0, below=True)
    rule = functools.partial(
        scale_by_m3,
        periods=periods,
        b1=b1,
        b2=b2,
        b3=b3,
        alpha=alpha,
        accumulate=accumulate,
        denominator=denominator,
        nesterov=nesterov,
        eps=eps,
    )
    rule()  # raises now for invalid arguments
    adam_learning_rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    adamw = optax.adamw(adam_learning_rate, b1=adam_b1, b2=adam_b2, eps=eps, weight_decay=weight_decay)
    after = (optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(learning_rate))

    @functools.cache  # so that a caller without jit compiles the rule's conditional once
    def parted(structure, dimensions):
        """The transformation for parameters with this structure, given the matrix axes of each leaf (None: AdamW)."""
        axes = structure.unflatten(optax.MaskedNode() if one is None else one for one in dimensions)
        labels = structure.unflatten("adamw" if one is None else "m3" for one in dimensions)
        return optax.partition({"m3": optax.chain(rule(matrices=axes), *after), "adamw": adamw}, lambda _: labels)

    def of(params):
        structure: Any = jax.tree.structure(params)
        return parted(structure, tuple(structure.flatten_up_to(matrix_dimensions(params, matrices))))

    def init(params):
        return of(params).init(params)

    def update(updates, state, params=None, **extra):
        return of(updates).update(updates, state, params, **extra)

    return bounded(optax.GradientTransformationExtraArgs(init, update), keeps_itself=M3State)
