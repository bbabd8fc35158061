"""Operations of a program as it was traced: of loops as often as they run.

XLA's own count of a program (``Lowered.cost_analysis``) takes the body of a loop once: of a step in
micro-batches it tells one, of a language model's head one chunk of its tokens. Here the trips are
known, for a scan says them. An operation is an addition or a multiplication of floating point
numbers; functions such as ``exp`` are none, as in XLA's count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr

_ELEMENTWISE = frozenset(
    ("add", "sub", "mul", "div", "max", "min", "neg", "add_any", "square", "integer_pow", "clamp")
)
_REDUCING = frozenset(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "cumsum"))


def operations(jaxpr: Any) -> float:
    """Returns the operations of a jaxpr, those of its loops and calls included.

    What no result depends on is left out, as XLA leaves it out: a step that starts from cached
    features traces the frozen part of the network too.
    """
    needed, _ = dce_jaxpr(jaxpr, used_outputs=True)
    return _operations(needed)


def _operations(jaxpr: Any) -> float:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> float:
    name, parameters = equation.primitive.name, equation.params
    if rule := _RULES.get(name):
        return rule(equation)
    if name in _ELEMENTWISE:
        return _floating(equation.outvars[0].aval)
    if name in _REDUCING:
        return _floating(equation.invars[0].aval)
    if name == "cond":
        return max(_operations(branch.jaxpr) for branch in parameters["branches"])
    inner = sum(_operations(jaxpr) for jaxpr in _inner(parameters))
    return inner * parameters["length"] if name == "scan" else inner


def _inner(parameters: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs that an equation runs; rules of derivatives are functions, and not among them."""
    for value in parameters.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            each = getattr(each, "jaxpr", each)
            if hasattr(each, "eqns"):
                yield each


def _floating(aval: Any) -> float:
    return float(math.prod(aval.shape)) if jnp.issubdtype(aval.dtype, jnp.floating) else 0.0


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval, equation.outvars[0].aval
    return 2.0 * math.prod(out.shape) * math.prod(left.shape[axis] for axis in contracted)


def _convolution(equation: Any) -> float:
    """Two for each pair of an output and a weight that meet within the image.

    Those that meet in its padding, or in the gaps that the gradient of a strided convolution has,
    are left out.
    """
    parameters = equation.params
    image, kernel = (variable.aval.shape for variable in equation.invars)
    out = equation.outvars[0].aval.shape
    layout = parameters["dimension_numbers"]
    _, inputs, *window = layout.rhs_spec
    meetings = 1
    for axis, place in enumerate(window):
        outputs = np.arange(out[layout.out_spec[2 + axis]])[:, None]
        weights = np.arange(kernel[place])[None]
        low = parameters["padding"][axis][0]
        at = (
            outputs * parameters["window_strides"][axis]
            + weights * parameters["rhs_dilation"][axis]
            - low
        )
        gap = parameters["lhs_dilation"][axis]
        last = (image[layout.lhs_spec[2 + axis]] - 1) * gap
        meetings *= int(np.count_nonzero((at >= 0) & (at <= last) & (at % gap == 0)))
    apart = out[layout.out_spec[0]] * out[layout.out_spec[1]]
    return 2.0 * apart * kernel[inputs] * meetings


_RULES: dict[str, Callable[[Any], float]] = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
}
