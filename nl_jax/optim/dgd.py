"""Delta Gradient Descent: weights forget their old answer to an input while they learn a new one (Eq. 54-57).

References:
  Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from nl_jax.memory.objectives import Objective
from nl_jax.optim.bounded import bounded, check_choice

half_l2 = Objective(lambda answer, value: answer - value, linear=1.0, curvature=1.0)
"""L = ½‖answer - value‖² (Eq. 56)."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def delta_matmul(
    x: Float[Array, "... in"],
    kernel: Float[Array, "in out"],
    key_square: Float[Array, ""],
    objective: Objective = half_l2,
) -> Float[Array, "... out"]:
    r"""``x @ kernel``, whose backward pass gives the kernel the gradient of an inner objective (Eq. 56, 59).

    Let x be N samples (all leading axes), :math:`y = W x` their answers, and :math:`u = -\nabla_y L` their
    self-generated values, where the model's loss is the mean of the samples' losses L. Then the cotangent of the kernel
    is the gradient of :math:`\frac{1}{N} \sum \tilde L(W x; u)`. For the default, :math:`\tilde L = ½ \lVert W x - u
    \rVert^2`, this is the usual gradient plus :math:`\frac{1}{N} \sum W x x^\top`. The cotangent of x is the usual one.

    Args:
      x: inputs.
      kernel: weights.
      key_square: a zero whose cotangent carries the mean of ‖x‖² times the slope of the objective; `dgd` scales its
        step with it.
      objective: L̃. ``dot_product`` makes this a plain product; the robust objectives of ``nl_jax.memory`` limit the
        surprise.

    Returns:
      The product. It supports reverse-mode differentiation only. In a model mapped over samples by ``jax.vmap`` each
      sample has N = 1.
    """
    del key_square, objective
    return x @ kernel


def _forward(x, kernel, key_square, objective):
    y = x @ kernel
    return y, (x, kernel, key_square, y)


def _backward(objective, residuals, cotangent):
    x, kernel, key_square, y = residuals
    samples = max(1, math.prod(x.shape[:-1]))
    error = objective.gradient(y, -samples * cotangent) / samples
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    x_rows, error = x.reshape(-1, x.shape[-1]), error.reshape(-1, y.shape[-1]).astype(x.dtype)
    for_kernel = jnp.matmul(x_rows.T, error, preferred_element_type=wide)
    slope = objective.curvature if objective.linear is None else objective.linear
    square = slope * jnp.sum(jnp.square(x.astype(wide))) / samples
    return (
        (cotangent @ kernel.T).astype(x.dtype),
        for_kernel.astype(kernel.dtype),
        square.astype(key_square.dtype),
    )


delta_matmul.defvjp(_forward, _backward)


class KeySquare(nnx.Param):
    """A parameter that stays 0, whose gradient tells `dgd` the mean of ‖x‖² (see `delta_matmul`)."""


class DeltaDense(nnx.Module):
    """A dense layer whose weights `dgd` trains as an associative memory; a drop-in replacement for ``nnx.Linear``.

    With any other optimizer it is a dense layer with an activation penalty: ½‖W x‖² is added to each sample's loss.

    Args:
      in_features, out_features: sizes of x and y.
      use_bias: whether to add a bias, which is trained by gradient descent.
      dtype: dtype of the computation; by default that of x and the weights.
      kernel_init: initializer of the kernel [in, out].
      objective: see `delta_matmul`.
      rngs: random streams; ``params`` initialises the kernel.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from nl_jax.optim import DeltaDense
      >>> ones = nnx.initializers.ones
      >>> layer = DeltaDense(2, 2, use_bias=False, kernel_init=ones, rngs=nnx.Rngs(0))
      >>> flat = lambda layer: jnp.mean(0.0 * layer(jnp.array([[1.0, 0.0]])))
      >>> print(jax.grad(flat)(layer).kernel[...])  # W x xᵀ: the old answer to x, though the loss is flat
      [[1. 1.]
       [0. 0.]]
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        dtype: Any = None,
        kernel_init: nnx.Initializer = nnx.initializers.lecun_normal(),  # noqa: B008
        objective: Objective = half_l2,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (in_features, out_features)))
        self.bias = nnx.Param(jnp.zeros(out_features)) if use_bias else None
        self.key_square = KeySquare(jnp.zeros(()))
        self.dtype, self.objective = dtype, objective

    def __call__(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        """Returns W x + b for every sample; the leading axes are samples."""
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = nnx.nn.dtypes.promote_dtype((x, self.kernel[...], bias), dtype=self.dtype)
        y = delta_matmul(x, kernel, self.key_square[...], self.objective)
        return y if bias is None else y + bias


class DGDState(NamedTuple):
    """State of ``dgd``: nothing per parameter."""

    count: Int[Array, ""]  # type: ignore[assignment]  # number of steps taken


def dgd(learning_rate: optax.ScalarOrSchedule, *, form: str = "contractive") -> optax.GradientTransformationExtraArgs:
    r"""Delta Gradient Descent, for models with `DeltaDense` layers (Eq. 54-57; App. C).

    The weights W [out, in] of such a layer with input x take the proximal step on :math:`½ \lVert W x - u \rVert^2`
    with :math:`u = -\nabla_y L`,

    .. math::
      W \leftarrow W (I - \eta' x x^\top) - \eta' \nabla_y L \otimes x, \qquad \eta' = \frac{\eta}{1 + \eta \lVert x
      \rVert^2}

    which is exact for one sample and a contraction in W for every η > 0. For a batch, :math:`x x^\top`,
    :math:`\nabla_y L \otimes x` and :math:`\lVert x \rVert^2` are means over the samples (the loss must be a mean). For
    a layer that is used several times, they are sums over the uses. The layer itself adds :math:`W x x^\top` to the
    gradient, so do not rescale gradients leaf by leaf before this transformation. A common scale for all leaves, as in
    clipping by the global norm, only changes η.

    All other parameters are updated by gradient descent. Memory: none.

    Args:
      learning_rate: η, or a schedule.
      form: "contractive", or "paper" for the paper's :math:`\eta' = \eta / (1 + \eta)`, which is exact for ‖x‖ = 1.

    Returns:
      The corresponding ``optax.GradientTransformationExtraArgs``, `bounded`: steps with a NaN are skipped and counted.
      A ``kernel`` needs the ``key_square`` beside it, so both must be in the same group of ``optax.partition``.

    Raises:
      ValueError: for an unknown ``form``.

    Examples:
      >>> import jax, jax.numpy as jnp, optax
      >>> from flax import nnx
      >>> from nl_jax.optim import DeltaDense, dgd
      >>> layer = DeltaDense(4, 2, rngs=nnx.Rngs(0))
      >>> x, target = jax.random.normal(jax.random.key(0), (8, 4)), jnp.ones((8, 2))
      >>> loss = lambda layer: jnp.mean(jnp.sum((layer(x) - target) ** 2, -1))
      >>> tx = dgd(0.1)
      >>> state, first, gradient = tx.init(layer), loss(layer), jax.jit(jax.grad(loss))
      >>> for _ in range(20):
      ...     updates, state = tx.update(gradient(layer), state)
      ...     layer = optax.apply_updates(layer, updates)
      >>> print(bool(loss(layer) < 0.8 * first))
      True
    """
    check_choice("form", form, ("contractive", "paper"))

    def init(params):
        del params
        return DGDState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        del params
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        squares = {
            _layer(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
            if _name(path) == "key_square"
        }

        def step(path, g):
            if _name(path) == "key_square":
                return jnp.zeros_like(g)
            square = squares.get(_layer(path)) if _name(path) == "kernel" else None
            if square is None:
                return (-rate * g).astype(g.dtype)
            square = square[..., None, None] if form == "contractive" else 1.0
            return (-rate / (1.0 + rate * square) * g).astype(g.dtype)

        updates = jax.tree_util.tree_map_with_path(step, updates)
        return updates, DGDState(optax.safe_increment(state.count))

    return bounded(optax.GradientTransformation(init, update))


def _parts(path: tuple[Any, ...]) -> list[str]:
    name = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")  # inside an nnx.Variable
    return name.split("/")


def _name(path: tuple[Any, ...]) -> str:
    return _parts(path)[-1]


def _layer(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(_parts(path)[:-1])
