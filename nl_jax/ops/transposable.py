"""A linear map that comes with its own transpose, differentiable in every mode and order.

A tangent rule (``jax.custom_jvp``) gives forward mode, and JAX derives reverse mode by transposing it. Where the
transpose that JAX derives would keep too much or be slow, this puts a hand-written one in its place. (The
``linear_call`` of ``jax.custom_derivatives`` does the same, but it cannot be batched by ``jax.vmap``.)
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad, batching, mlir

Map = Callable[[Any, Any], Any]


def apply_linear(function: Map, transpose: Map, residuals: Any, x: Any) -> Any:
    """``function(residuals, x)``, of which reverse mode takes ``transpose`` for its transpose.

    The residuals are all that is kept for a backward pass. Derivatives by them, which are needed for second order only,
    are those that JAX derives from ``function`` or ``transpose``.

    Args:
      function: linear in its second argument; from pytrees of arrays to one.
      transpose: ``transpose(residuals, cotangents)``, cotangents like the output, gives a pytree like x.
      residuals: a pytree of arrays.
      x: a pytree of arrays of floating point numbers.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from nl_jax.ops import apply_linear
      >>> times = lambda x: apply_linear(lambda a, x: a * x, lambda a, y: a * y, jnp.array([2.0, 3.0]), x).sum()
      >>> print(jax.grad(times)(jnp.ones(2)))
      [2. 3.]
    """
    outputs = jax.eval_shape(function, residuals, x)
    parts, inside = jax.tree.flatten(residuals)
    leaves, where = jax.tree.flatten(x)
    ends, back = jax.tree.flatten(outputs)

    def flat(rule: Map, structure: Any) -> Callable[..., list[Any]]:
        def call(*arrays: Any) -> list[Any]:
            own, rest = arrays[: len(parts)], arrays[len(parts) :]
            return jax.tree.leaves(rule(jax.tree.unflatten(inside, own), jax.tree.unflatten(structure, rest)))

        return call

    forward = jax.make_jaxpr(flat(function, where))(*parts, *leaves)
    backward = jax.make_jaxpr(flat(transpose, back))(*parts, *ends)
    return jax.tree.unflatten(back, _linear.bind(*parts, *leaves, count=len(parts), forward=forward, backward=backward))


# Operands are the residuals, ``count`` of them, and x; ``forward`` and ``backward`` are jaxprs of both.
_linear = core.Primitive("apply_linear")
_linear.multiple_results = True


def _run(*arrays, count, forward, backward):
    return core.jaxpr_as_fun(forward)(*arrays)


_linear.def_impl(jax.jit(_run, static_argnames=("count", "forward", "backward")))
_linear.def_abstract_eval(lambda *arrays, count, forward, backward: forward.out_avals)
mlir.register_lowering(_linear, mlir.lower_fun(_run, multiple_results=True))


def _jvp(primals, tangents, *, count, forward, backward):
    rules = {"count": count, "forward": forward, "backward": backward}
    outputs = _linear.bind(*primals, **rules)
    moving = [i for i, tangent in enumerate(tangents) if not isinstance(tangent, ad.Zero)]
    changes = []
    if moving[-1] >= count:
        changes.append(_linear.bind(*primals[:count], *map(ad.instantiate_zeros, tangents[count:]), **rules))
    if own := [i for i in moving if i < count]:

        def of_residuals(*given):
            return core.jaxpr_as_fun(forward)(*(dict(zip(own, given, strict=True)).get(i, x) for i, x in everything))

        everything = list(enumerate(primals))
        changes.append(jax.jvp(of_residuals, [primals[i] for i in own], [tangents[i] for i in own])[1])
    return outputs, [functools.reduce(jnp.add, parts) for parts in zip(*changes, strict=True)]


def _transpose(cotangents, *arrays, count, forward, backward):
    # x is all that reverse mode transposes: what depends on the residuals was made a known number by `_jvp`
    assert not any(map(ad.is_undefined_primal, arrays[:count]))
    cotangents = map(ad.instantiate_zeros, cotangents)
    back = _linear.bind(*arrays[:count], *cotangents, count=count, forward=backward, backward=forward)
    known = [not ad.is_undefined_primal(array) for array in arrays[count:]]
    return [None] * count + [None if k else c for k, c in zip(known, back, strict=True)]


def _batch(arrays, axes, *, count, forward, backward):
    size = next(a.shape[axis] for a, axis in zip(arrays, axes, strict=True) if axis is not None)
    # both maps get the same axes: in front of all of x and of the outputs, and of those residuals that have one
    mapped = [axis is not None or i >= count for i, axis in enumerate(axes)]
    moved = [
        batching.bdim_at_front(array, axis, size) if has else array
        for array, axis, has in zip(arrays, axes, mapped, strict=True)
    ]

    def batched(jaxpr):
        in_axes = [0 if i >= count or mapped[i] else None for i in range(len(jaxpr.in_avals))]
        shapes = [
            jax.ShapeDtypeStruct(aval.shape if axis is None else (size, *aval.shape), aval.dtype)
            for aval, axis in zip(jaxpr.in_avals, in_axes, strict=True)
        ]
        return jax.make_jaxpr(jax.vmap(core.jaxpr_as_fun(jaxpr), in_axes=in_axes))(*shapes)

    outputs = _linear.bind(*moved, count=count, forward=batched(forward), backward=batched(backward))
    return outputs, [0] * len(outputs)


ad.primitive_jvps[_linear] = _jvp
ad.primitive_transposes[_linear] = _transpose
batching.primitive_batchers[_linear] = _batch
