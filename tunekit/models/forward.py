"""The pure forward pass: values by structural name in, outputs and updated values out.

What a layer does in training follows from the partition, never from ``layer.trainable``: a
BatchNorm whose scale and shift are frozen uses its stored statistics and leaves them alone, and
dropout inside a part of the network where nothing trains is off, unless a phase asks otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal

import jax
import keras

from tunekit.methods.adapter import Adapter
from tunekit.methods.intercept import (
    Wrap,
    in_inference_mode,
    intercept,
    with_attributes,
)
from tunekit.models.cpu_gradients import cpu_activations
from tunekit.models.cpu_layers import cpu_layers
from tunekit.models.graph import is_attention, sublayers
from tunekit.models.sequence_inputs import extra_wraps, split_extras
from tunekit.models.tpu_attention import tpu_attention
from tunekit.names import Role, layer_names, structural_names, variable_roles
from tunekit.platforms import traced_platform

Values = dict[str, jax.Array]
Outputs = object

BatchNormMode = Literal["follow", "frozen", "running"]


@dataclass(frozen=True, eq=False)
class Forward:
    """A Keras model as a function of its variables' values.

    Example:
        >>> forward = Forward.of(model)
        >>> outputs, updates = forward(forward.values(), images, training=False)
    """

    model: keras.Model
    variables: Mapping[str, keras.Variable]
    """Every variable under its structural name; an adapter's under its prefix."""
    group_of: Callable[[str], Collection[str]]
    """From a variable's name to the names of its depth group: what trains with it."""
    layers: Mapping[str, keras.Layer] = field(repr=False)
    roles: Mapping[str, Role] = field(repr=False)
    """What each variable is: weight, statistic or seed."""
    batch_norm: BatchNormMode = "follow"
    """Where BatchNorm is in training mode: where it trains, nowhere or everywhere."""
    frozen_dropout: bool = False
    """Whether dropout acts where nothing trains."""
    largest_momentum: float = 0.9
    """Bound of BatchNorm's momentum in training: PyTorch's default, about ten batches."""
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    """What is put on the model, by the prefix of its values' names; a later one round an earlier
    one."""
    remat: Mapping[keras.Layer, Wrap] = field(default_factory=dict, repr=False)
    """What is computed anew in a backward pass (``tunekit.models.remat``)."""
    kept_to_rows: Mapping[keras.Layer, Wrap] = field(default_factory=dict, repr=False)
    """What keeps each device of a mesh to its rows of a batch (``tunekit.models.sharding``)."""
    per_example: bool = False
    """Whether the adapters' values have a leading axis [B], one adapter an example."""

    @classmethod
    def of(
        cls,
        model: keras.Model,
        groups: Collection[Collection[str]] | None = None,
        adapters: Mapping[str, Adapter] | None = None,
    ) -> Forward:
        """Returns the forward pass of `model`.

        Args:
            model: a built model.
            groups: the depth groups, each the names of its variables; `None` is one group.
            adapters: what is put on it, by the prefix of its values' names.
        """
        adapters = adapters or {}
        variables = structural_names(model)
        roles = variable_roles(model)
        for prefix, adapter in adapters.items():
            variables |= {f"{prefix}/{name}": v for name, v in adapter.variables.items()}
            roles |= {f"{prefix}/{name}": role for name, role in adapter.roles.items()}
        whole = tuple(variables)
        by_name = {name: tuple(group) for group in groups or () for name in group}
        return cls(
            model,
            variables,
            lambda name: by_name.get(name, whole),
            layer_names(model),
            roles,
            adapters=adapters,
        )

    def names(self, role: Role) -> list[str]:
        """Returns the names of the variables of one role, in the model's order."""
        return [name for name in self.variables if self.roles[name] == role]

    def values(self) -> Values:
        """Returns the model's present values, without copying them."""
        return {name: variable.value for name, variable in self.variables.items()}

    def assign(self, values: Mapping[str, jax.Array]) -> None:
        """Writes `values` into the model's variables, the model then holding these arrays."""
        assign_all(self.variables, values)

    def __call__(
        self,
        values: Mapping[str, jax.Array],
        inputs: object,
        *,
        training: bool,
        trainable: Collection[str] = (),
    ) -> tuple[Outputs, Values]:
        """Returns the outputs, and the values that the pass itself changed.

        Args:
            values: one array for every variable.
            inputs: what the model takes; of tokens, with what else a batch says of them
                (``tunekit.models.sequence_inputs``).
            training: whether layers that train behave as in training.
            trainable: names of the variables that train; used when `training`.

        Returns:
            The model's outputs, and new values of BatchNorm statistics and seeds.
        """
        given = self._given(values)
        inputs, extras = split_extras(inputs)
        with (
            self._applied(given, training=training, trainable=trainable) as scope,
            intercept(extra_wraps(self.layers, extras)),
        ):
            outputs = self.model(inputs, training=training)
        updates = {}
        for name, variable in self.variables.items():
            value = scope.get_current_value(variable)
            if value is not None and value is not given[name]:
                updates[name] = value
        return outputs, updates

    @contextmanager
    def applied(self, values: Mapping[str, jax.Array]) -> Iterator[None]:
        """Within the block the layers have these values and the adapters act, in inference mode.

        Whatever calls the layers or the model there, passes them ``training=False``.

        Args:
            values: one array for every variable.
        """
        with self._applied(self._given(values), training=False, trainable=()):
            yield

    def _given(self, values: Mapping[str, jax.Array]) -> Values:
        # Trained values may be float32 where the variable, and so the layer, is bfloat16.
        return {name: values[name].astype(v.dtype) for name, v in self.variables.items()}

    @contextmanager
    def _applied(
        self, given: Values, *, training: bool, trainable: Collection[str]
    ) -> Iterator[keras.StatelessScope]:
        mapping = [
            (variable, given[name])
            for name, variable in self.variables.items()
            if not name.startswith("adapters/")  # No state of the model: `_adapted` reads them.
        ]
        with (
            keras.StatelessScope(state_mapping=mapping) as scope,
            tpu_attention(),
            intercept(self._kernels()),
            intercept(self._modes(trainable) if training else {}),
            self._adapted(given, training=training),
            intercept(self.remat if training else {}),
            intercept(self.kept_to_rows),
        ):
            yield scope

    @contextmanager
    def _adapted(self, values: Values, *, training: bool) -> Iterator[None]:
        """Within the block the adapters act, with these values."""
        layers = {"": self.model, **self.layers}
        with ExitStack() as stack:
            for prefix, adapter in self.adapters.items():
                own = {name: values[f"{prefix}/{name}"] for name in adapter.variables}
                wraps = adapter.wraps(layers, own, training=training, per_example=self.per_example)
                stack.enter_context(intercept(wraps))
            if self.adapters and traced_platform() == "cpu":
                stack.enter_context(intercept(cpu_activations(self.layers.values())))
            yield

    def _kernels(self) -> dict[keras.Layer, Wrap]:
        return cpu_layers(self.layers.values()) if traced_platform() == "cpu" else {}

    def _modes(self, trainable: Collection[str]) -> dict[keras.Layer, Wrap]:
        """Puts each layer that has a training mode into the one that the partition says."""
        names = {id(variable): name for name, variable in self.variables.items()}
        wraps: dict[keras.Layer, Wrap] = {}
        for layer in self.layers.values():
            owned = [names[id(v)] for v in _own_moding_variables(layer)]
            if not owned:
                continue
            trains = any(name in trainable for name in self._deciding(layer, owned, names))
            if isinstance(layer, keras.layers.BatchNormalization):
                wraps[layer] = self._batch_norm(layer, trains=trains)
            elif not trains and not self.frozen_dropout:
                wraps[layer] = in_inference_mode
        return wraps

    def moving_statistics(self, trainable: Collection[str]) -> list[str]:
        """Returns the names of the statistics that a training pass may change, in order.

        All but those of a BatchNorm in inference mode: other layers do what they do.
        """
        names = {id(variable): name for name, variable in self.variables.items()}
        resting: set[str] = set()
        for layer, wrap in self._modes(trainable).items():
            if isinstance(layer, keras.layers.BatchNormalization) and wrap is in_inference_mode:
                resting.update(names[id(variable)] for variable in layer.variables)
        return [name for name in self.names("statistic") if name not in resting]

    def _batch_norm(self, layer: keras.layers.BatchNormalization, *, trains: bool) -> Wrap:
        """A BatchNorm in the mode of the policy; in training its statistics keep up.

        It obeys ``layer.trainable`` (``_trainable`` behind the property, Keras 3.15), which says
        nothing here. At the momentum of 0.99 that Keras' networks have, the statistics of
        inference are hundreds of steps old, and a run that learns well evaluates like noise.
        """
        if self.batch_norm == "frozen" or self.batch_norm == "follow" and not trains:
            return in_inference_mode
        momentum = min(layer.momentum, self.largest_momentum)
        return functools.partial(with_attributes, layer, _trainable=True, momentum=momentum)

    def _deciding(
        self, layer: keras.Layer, owned: list[str], names: Mapping[int, str]
    ) -> Collection[str]:
        """The variables of which one must train for `layer` to be in training mode."""
        if isinstance(layer, keras.layers.BatchNormalization):
            affine = [names[id(v)] for v in (layer.gamma, layer.beta) if v is not None]
            if affine:
                return affine
        return self.group_of(owned[0])


def assign_all(variables: Mapping[str, keras.Variable], values: Mapping[str, jax.Array]) -> None:
    """The variables named hold `values`, all or none: half a model is worth neither half.

    A Ctrl-C is raised when all of them do; on any other error they are as before.
    """
    before = {name: variables[name].value for name in values}
    try:
        _assign(variables, values)
    except BaseException as error:
        _assign(variables, values if isinstance(error, KeyboardInterrupt) else before)
        raise


@contextmanager
def holding(
    variables: Mapping[str, keras.Variable], values: Mapping[str, jax.Array]
) -> Iterator[None]:
    """Within the block the variables named hold `values`; afterwards what they held before."""
    before = {name: variables[name].value for name in values}
    try:
        assign_all(variables, values)
        yield
    finally:
        assign_all(variables, before)


def _assign(variables: Mapping[str, keras.Variable], values: Mapping[str, jax.Array]) -> None:
    for name, value in values.items():
        variables[name].assign(value)


def _own_moding_variables(layer: keras.Layer) -> list[keras.Variable]:
    """Variables of a layer that behaves otherwise in training: statistics, or a seed."""
    if isinstance(layer, keras.layers.BatchNormalization):
        return list(layer.variables)
    # Keras' attention takes a slower way to the same where its dropout may act.
    inside = [child for child in sublayers(layer) if isinstance(child, keras.layers.Dropout)]
    owners = [layer, *inside] if is_attention(layer) else [layer]
    return [generator.state for owner in owners for generator in owner._seed_generators]
