"""M3: Muon with momentum at several time scales and a second moment (Algorithm 1, Eq. 75).

References:
  Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from nl_jax.optim.bounded import bounded, check_choice, check_range
from nl_jax.optim.newton_schulz import newton_schulz

# Parts of a path that stand for no hidden matrix: tables of tokens, heads, and vectors, of which a stack has two axes.
_NOT_MATRICES = re.compile(r"(^|[._])(\w*embed\w*|(\w+_)?head|logits|bias|scale|b)($|[._])")


class M3State(NamedTuple):
    """State of ``scale_by_m3``; every tree is shaped as the parameters."""

    count: Int[Array, ""]  # type: ignore[assignment]  # steps taken
    fast: optax.Updates  # M1
    second_moment: optax.Updates  # V
    slow: tuple[optax.Updates, ...]  # M2 of each slow scale, the gradients of its unfinished period included
    slow_direction: tuple[optax.Updates, ...]  # O2 of each slow scale, from its last finished period


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
) -> optax.GradientTransformationExtraArgs:
    """The rule of ``m3``, for parameters that are all matrices [..., in, out]; arguments and errors are the same.

    Its update takes ``finite``: where false the state stays as it is.
    """
    periods = tuple(periods)
    if not all(isinstance(period, int) and period >= 1 for period in periods):
        raise ValueError(f"periods={periods} must be integers of at least 1")
    check_choice("accumulate", accumulate, ("ema", "sum"))
    check_choice("denominator", denominator, ("normalized", "printed"))
    for name, value in (("b1", b1), ("b2", b2), ("b3", b3)):
        check_range(name, value, 0.0, 1.0)
    ema = accumulate == "ema"

    def add(memory, updates, b, finite, decays=True):
        """``memory`` with one more gradient."""
        kept, weight = (jnp.where(decays & finite, b, 1.0), 1.0 - b) if ema else (1.0, b)
        weight = jnp.where(finite, weight, 0.0)
        return jax.tree.map(lambda m, g: (kept * m + weight * g).astype(m.dtype), memory, updates)

    # two functions that stay the same from call to call, so that `cond` is compiled once without jit too
    def orthogonalize(memory, last=None):
        del last
        return jax.tree.map(newton_schulz, memory)

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
            # It decays once a period, at the start, so the period's sum needs no buffer of its own.
            memory = add(memory, updates, b3, finite, decays=state.count % period == 0)
            slow.append(memory)
            due = finite & (count % period == 0)
            slow_directions.append(jax.lax.cond(due, orthogonalize, wait, memory, last))

        def divide(o, v):
            v = v / (1.0 - b2**count) if ema else v
            root = jnp.sqrt(v)
            if denominator == "printed":
                return (o / (root + eps)).astype(o.dtype)
            mean = jnp.sqrt(jnp.mean(v, axis=(-2, -1), keepdims=True)) + eps
            return (o * (mean / (root + mean))).astype(o.dtype)

        return jax.tree.map(divide, direction, second), M3State(
            count, fast, second, tuple(slow), tuple(slow_directions)
        )

    return optax.GradientTransformationExtraArgs(init, update)


def hidden_matrices(params: optax.Params) -> optax.Params:
    """True for parameters of two axes or more whose path names no embedding, head, bias or scale."""

    def is_matrix(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return jnp.ndim(leaf) >= 2 and not _NOT_MATRICES.search(name)

    return jax.tree_util.tree_map_with_path(is_matrix, params)


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
    matrices: optax.Params | Callable[[optax.Params], optax.Params] | None = None,
    adam_learning_rate: optax.ScalarOrSchedule | None = None,
    adam_b1: float = 0.9,
    adam_b2: float = 0.999,
) -> optax.GradientTransformationExtraArgs:
    r"""Multi-scale momentum Muon (Algorithm 1): a continuum memory of gradients, orthogonalised at every time scale.

    With :math:`NS` the Newton-Schulz iteration, at every step, and for the slow memory at the end of every period of
    :math:`C` steps,

    .. math::
      M^{(1)}_t &= \beta_1 M^{(1)}_{t-1} + (1 - \beta_1) g_t, \qquad
      V_t = \beta_2 V_{t-1} + (1 - \beta_2) g_t^2 \\
      M^{(2)} &\leftarrow \beta_3 M^{(2)} + (1 - \beta_3) \textstyle\sum_{i=t-C+1}^{t} g_i, \qquad
      O^{(2)} = NS(M^{(2)}) \\
      \Theta_t &= \Theta_{t-1} - \eta D_t \odot \big(NS(M^{(1)}_t) + \alpha O^{(2)}\big)

    where :math:`O^{(2)}` counts from the step after the period's end on, and its Newton-Schulz iteration runs at that
    end only. :math:`D_t = r_t / (\sqrt{\hat V_t} + r_t)`, with :math:`\hat V` the bias-corrected :math:`V` and
    :math:`r` the root of its mean over the matrix. Its entries are in (0, 1] and do not depend on the scale of the
    gradients, so learning rates are as for Muon. ``denominator="printed"`` is the paper's :math:`1 / (\sqrt{\hat V} +
    \epsilon)`, whose learning rate goes with the size of the gradients. ``accumulate="sum"`` is Algorithm 1 as printed,
    sums :math:`M \leftarrow M + \beta g` that forget nothing, no bias correction. With ``nesterov``, as in Muon, and
    not in Algorithm 1, :math:`M^{(1)}` counts the gradient once more before it is orthogonalised.

    Parameters that are no hidden matrices go to AdamW. Memory: 8 bytes per matrix parameter and 8 more for each slow
    scale (float32), so 16 by default; 8 for AdamW's.

    Args:
      learning_rate: η, or a schedule.
      periods: C of each slow memory; several make more than two time scales, none makes Muon with D.
      b1, b2, b3: decay of the fast memory per step, of the second moment per step, of slow memories per period; with
        ``accumulate="sum"`` the weights of the sums.
      alpha: α, the weight of each slow memory.
      accumulate: "ema" or "sum".
      denominator: "normalized" or "printed".
      nesterov: whether the direction counts the last gradient once more.
      eps: added to the denominators of M3 and AdamW.
      weight_decay: decoupled; times the learning rate is what all parameters lose per step.
      matrices: which parameters are matrices [..., in, out], as a tree of bool or a function that makes one; leading
        axes are stacked matrices, each orthogonalised on its own. Default: `hidden_matrices`, all of two axes or more,
        unless a part of the path is ``bias``, ``scale`` or ``b``, ends in ``head`` or contains ``embed``.
      adam_learning_rate: AdamW's; default ``learning_rate``.
      adam_b1, adam_b2: AdamW's.

    Returns:
      The corresponding ``optax.GradientTransformationExtraArgs``, `bounded`: steps with a NaN are left out and counted.

    Raises:
      ValueError: for a period below 1, a coefficient outside [0, 1], or an unknown ``accumulate`` or ``denominator``.

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
    rule = scale_by_m3(
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
    adam_learning_rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    adamw = optax.adamw(adam_learning_rate, b1=adam_b1, b2=adam_b2, eps=eps, weight_decay=weight_decay)
    steps = optax.chain(rule, optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(learning_rate))

    def labels(params):
        chosen = hidden_matrices if matrices is None else matrices
        return jax.tree.map(lambda m: "m3" if m else "adamw", chosen(params) if callable(chosen) else chosen)

    return bounded(optax.partition({"m3": steps, "adamw": adamw}, labels), keeps_itself=M3State)
