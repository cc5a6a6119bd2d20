"""The recurrence token by token: the definition, which tests compare every closed form with."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def check_shapes(W, S, x, g, coefficients, w0):
    """Raises ``ValueError`` unless the arguments of an update fit each other."""
    arrays = {"W": W, "S": S, "x": x, "g": g} | ({} if w0 is None else {"w0": w0})
    for name, value in arrays.items():
        if jnp.ndim(value) < 2:
            raise ValueError(f"{name} has shape {jnp.shape(value)}; expected at least two axes")
    chunk, size_in, size_out = x.shape[-2], x.shape[-1], g.shape[-1]
    if chunk < 1:
        raise ValueError(f"x has shape {x.shape}; expected at least one token")
    if g.shape[-2] != chunk:
        raise ValueError(f"g has {g.shape[-2]} tokens, x has {chunk}; expected as many")
    for name, value in coefficients.items():
        if jnp.shape(value)[-1:] != (chunk,):
            raise ValueError(f"{name} has shape {jnp.shape(value)}; expected a last axis of the {chunk} tokens of x")
    for name, value in {"W": W, "S": S, "w0": w0}.items():
        if value is not None and value.shape[-2:] != (size_out, size_in):
            raise ValueError(f"{name} has shape {value.shape}; expected last axes of out, in = {size_out}, {size_in}")
    leading = {name: value.shape[:-2] for name, value in arrays.items()}
    leading |= {name: value.shape[:-1] for name, value in coefficients.items()}
    try:
        jnp.broadcast_shapes(*leading.values())
    except ValueError:
        given = ", ".join(f"{name} {axes}" for name, axes in leading.items() if axes)
        raise ValueError(f"leading axes of {given}; expected axes that broadcast") from None


def sequential_update(
    W: Float[Array, "... out in"],
    S: Float[Array, "... out in"],
    x: Float[Array, "... C in"],
    g: Float[Array, "... C out"],
    *,
    eta: Float[Array, "... C"],
    alpha: Float[Array, "... C"],
    mu: Float[Array, "... C"],
    beta: Float[Array, "... C"],
    w0: Float[Array, "... out in"] | None = None,
) -> tuple[Float[Array, "... out in"], Float[Array, "... out in"]]:
    """Does what ``chunk_update`` does, token by token: the definition, and the reference for tests.

    Examples:
      >>> import jax.numpy as jnp
      >>> from nl_jax.memory import sequential_update
      >>> W, S, one, zero = jnp.zeros((1, 2)), jnp.zeros((1, 2)), jnp.ones(2), jnp.zeros(2)
      >>> x, g = jnp.eye(2), jnp.array([[-1.0], [-3.0]])
      >>> W, S = sequential_update(W, S, x, g, eta=one, alpha=one, mu=zero, beta=zero)
      >>> print(W)  # gradient descent: W - η g xᵀ, token after token
      [[1. 3.]]
    """
    check_shapes(W, S, x, g, {"eta": eta, "alpha": alpha, "mu": mu, "beta": beta}, w0)
    W = W if w0 is None else W - w0

    def token(state, inputs):
        W, S = state
        x, g, eta, alpha, mu, beta = inputs
        answer = jnp.sum(W * x[..., None, :], axis=-1)
        S = mu[..., None, None] * S - eta[..., None, None] * g[..., :, None] * x[..., None, :]
        W = alpha[..., None, None] * W - beta[..., None, None] * answer[..., :, None] * x[..., None, :] + S
        return (W, S), None

    shapes = [W.shape[:-2], S.shape[:-2], x.shape[:-2], g.shape[:-2]] + [c.shape[:-1] for c in (eta, alpha, mu, beta)]
    leading = jnp.broadcast_shapes(*shapes)
    W, S = (jnp.broadcast_to(v, leading + v.shape[-2:]) for v in (W, S))
    tokens = [jnp.moveaxis(v, -2, 0) for v in (x, g)] + [jnp.moveaxis(v, -1, 0) for v in (eta, alpha, mu, beta)]
    (W, S), _ = jax.lax.scan(token, (W, S), tuple(tokens))
    return (W if w0 is None else w0 + W), S
