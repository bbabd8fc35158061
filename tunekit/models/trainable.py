"""A method on a model: what it puts there, and what it lets train of what selectors select."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tunekit.errors import SelectionError
from tunekit.methods.spec import Method, Plain, may_train
from tunekit.models.model import Model
from tunekit.models.selection import resolve_selection
from tunekit.models.spec import Quantization


def put(
    method: Method,
    model: Model,
    *,
    seed: int = 0,
    inputs: Iterable[Any] | None = None,
    quantize: Quantization | None = None,
) -> None:
    """The method's adapter is on the model and active; an active one of the same spec goes on.

    Args:
        method: one that puts nothing on a model leaves it as it is.
        model: with the head that it will train with.
        seed: of fresh values.
        inputs: as for `Model.add_adapter`.
        quantize: as for `Model.add_adapter`.

    Raises: as `Model.add_adapter` does.
    """
    if isinstance(method, Plain):
        return
    acting = model.adapters.acting
    if len(acting) == 1 and acting[0][0].spec == method:
        return
    name, count = method.name, 1
    while name in model.adapters.entries:
        count += 1
        name = f"{method.name}_{count}"
    model.add_adapter(name, method, seed=seed, inputs=inputs, quantize=quantize)


def resolve_trainable(
    selectors: str | Sequence[str], model: Model, method: Method
) -> frozenset[str]:
    """Returns the structural names of what `selectors` select and `method` may train.

    Raises:
        SelectionError: a selector is mistaken, or selects nothing that the method may train.
    """
    chosen = resolve_selection(selectors, model)
    norms = model.norm_layers()
    allowed = frozenset(
        name for name in chosen if may_train(method, name, is_norm=name.rpartition("/")[0] in norms)
    )
    if chosen and not allowed:
        text = selectors if isinstance(selectors, str) else ", ".join(selectors)
        raise SelectionError(
            f"'{text}' selects {len(chosen)} variables, and method '{method.name}' trains none of "
            "them. Select a part that it reaches, such as 'all', or take method 'full'."
        )
    return allowed
