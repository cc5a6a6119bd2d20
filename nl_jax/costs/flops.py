"""Counts the floating-point operations of a program from its jaxpr.

XLA's ``cost_analysis`` counts the body of a loop once, whatever its length; here it counts once per iteration.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core


class Flops(NamedTuple):
    """Numbers of floating-point operations.

    Examples:
        >>> from nl_jax.costs import Flops
        >>> Flops(matrix=10, elementwise=2).times(3)
        Flops(matrix=30, elementwise=6)
    """

    matrix: int = 0  # in matrix products, convolutions and triangular solves
    elementwise: int = 0  # in all others

    def times(self, count: int) -> "Flops":
        """The operations of ``count`` runs."""
        return Flops(self.matrix * count, self.elementwise * count)


# Primitives that only move, select or convert numbers.
_MOVES = frozenset(
    """all_gather all_to_all bitcast_convert_type broadcast_in_dim concatenate convert_element_type copy device_put
    dynamic_slice dynamic_update_slice expand_dims gather get imag name optimization_barrier pad pcast ppermute pvary
    real reduce_precision reshape rev scatter select_n sharding_constraint slice sort split squeeze stack stop_gradient
    swap top_k transpose""".split()  # noqa: SIM905
)
# Primitives that run their only jaxpr once.
_CALLS = frozenset(
    """checkpoint closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr jit pjit remat
    remat2""".split()  # noqa: SIM905
)
# Primitives with many operations per element of the output, for which there is no rule.
_UNKNOWN = frozenset(
    """custom_call eig eigh fft ffi_call hessenberg householder_product lu qr ragged_dot ragged_dot_general
    scaled_matmul schur svd tridiagonal tridiagonal_solve""".split()  # noqa: SIM905
)


def count_flops(function: Callable[..., Any], *arguments: Any) -> Flops:
    """Counts the floating-point operations of ``function(*arguments)``, without compiling or running it.

    The rules are:

    - A product of [m, k] and [k, n] counts 2·m·n·k operations. A convolution counts likewise, with the zeros of padding
      and dilation included. A triangular solve of n rows counts n per element of its output, a Cholesky factor n / 3.
    - A reduction counts one operation per element of its input, and a scatter-add one per update. Primitives that only
      move, compare or convert numbers count nothing. All others count one per element of their floating-point outputs.
    - A Pallas kernel counts what its own estimate of the cost says; without one, its body for each program of its grid,
      also for those that have nothing to do, such as attention's tiles that causality excludes.
    - A scan counts its length times its body, a cond its costliest branch, and ``jax.checkpoint`` also the operations
      that the backward pass recomputes.

    These are the operations that the program requests; XLA may remove those whose result is not used.

    Args:
        function: any function that ``jax.make_jaxpr`` can trace.
        *arguments: pytrees of arrays or of ``jax.ShapeDtypeStruct``.

    Returns:
        The operations of all devices together.

    Raises:
        NotImplementedError: for a while loop with floating-point operations, since the jaxpr does not hold the number
            of iterations, and for primitives without a rule: FFT, most decompositions.

    Examples:
        >>> import jax.numpy as jnp
        >>> from nl_jax.costs import count_flops
        >>> count_flops(lambda a, b: a @ b + 1.0, jnp.ones((2, 3)), jnp.ones((3, 4)))
        Flops(matrix=48, elementwise=8)
    """
    return _jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _jaxpr(jaxpr: core.Jaxpr) -> Flops:
    counts = [_equation(equation) for equation in jaxpr.eqns]
    return Flops(sum(count.matrix for count in counts), sum(count.elementwise for count in counts))


def _equation(equation: core.JaxprEqn) -> Flops:
    name, params = equation.primitive.name, equation.params
    inputs: list[Any] = equation.invars
    outputs = _elements(equation.outvars)
    bodies = [] if name.startswith(("reduce", "scatter")) else list(_bodies(params))
    if name in _CALLS:
        return _jaxpr(*bodies)
    if name == "custom_linear_solve":  # the other jaxprs are for derivatives
        return _jaxpr(params["jaxprs"].solve.jaxpr)
    if name == "apply_linear":  # from ``nl_jax/ops/transposable.py``; the other jaxpr is the transpose
        return _jaxpr(params["forward"].jaxpr)
    if name == "scan":
        return _jaxpr(*bodies).times(params["length"])
    if name == "cond":
        return max(map(_jaxpr, bodies), key=sum)
    if name == "shard_map":  # its jaxpr is the share of one device
        return _jaxpr(*bodies).times(math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"]))
    if name == "while" and any(sum(_jaxpr(body)) for body in bodies):
        raise NotImplementedError("while: the number of iterations is unknown; expected a loop of fixed length")
    if name == "pallas_call":
        if params.get("cost_estimate") is not None:  # all of it in matrix products
            return Flops(matrix=params["cost_estimate"].flops)
        return _jaxpr(params["jaxpr"]).times(math.prod(params["grid_mapping"].grid))
    if name in _UNKNOWN or (bodies and name != "while"):
        raise NotImplementedError(f"{name}: no rule to count its floating point operations")
    if not outputs or name in _MOVES:
        return Flops()
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return Flops(matrix=2 * outputs * math.prod(inputs[0].aval.shape[axis] for axis in contracted))
    if name == "conv_general_dilated":
        kernel = inputs[1].aval.shape
        return Flops(matrix=2 * outputs * math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]])
    if name == "triangular_solve":
        return Flops(matrix=outputs * inputs[0].aval.shape[-1])
    if name == "cholesky":
        return Flops(matrix=outputs * inputs[0].aval.shape[-1] // 3)
    if name.startswith("reduce_window"):
        return Flops(elementwise=outputs * math.prod(params["window_dimensions"]))
    if name.startswith("reduce"):
        return Flops(elementwise=_elements(inputs))
    if name.startswith("scatter"):
        return Flops(elementwise=_elements(inputs[-1:]))
    return Flops(elementwise=outputs)


def _elements(variables: Iterable[Any]) -> int:
    """Number of floating-point elements in the values of the variables."""
    avals = [variable.aval for variable in variables if hasattr(variable.aval, "dtype")]
    return sum(math.prod(aval.shape) for aval in avals if jnp.issubdtype(aval.dtype, jnp.inexact))


def _bodies(params: Mapping[str, Any]) -> Iterator[core.Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
