"""A searched space: Optuna proposes the values of several members at once, and learns of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tunekit.errors import TunekitError
from tunekit.sweep_space import SEED, Listed, Searched, Space, Values


class Search:
    """Optuna's tree-structured Parzen estimator over a space, seeds left out.

    Bergstra et al. 2011, https://papers.nips.cc/paper/4443; the first ten trials are random. Trials
    under way count as bad ones, so that those asked for at once differ.
    """

    def __init__(self, space: Space, *, seed: int, lower_is_better: bool) -> None:
        """Begins a search.

        Raises:
            TunekitError: Optuna is not installed.
        """
        self._optuna = _optuna()
        self._listed = {p: v.values for p, v in space.ranges.items() if isinstance(v, Listed)}
        self._distributions = {
            path: self._distribution(values)
            for path, values in space.ranges.items()
            if path != SEED
        }
        self._worst = float("inf") if lower_is_better else -float("inf")
        with self._quiet():
            self._study = self._optuna.create_study(
                sampler=self._optuna.samplers.TPESampler(seed=seed),
                direction="minimize" if lower_is_better else "maximize",
            )
        self._asked: list[Any] = []

    def ask(self, count: int) -> list[Values]:
        """Returns the values of `count` trials; two may be alike."""
        self._asked = [self._study.ask(self._distributions) for _ in range(count)]
        return [self._values(trial.params) for trial in self._asked]

    def tell(self, scores: Sequence[float | None]) -> None:
        """Says how the trials that were asked for came out; `None` is worse than any number."""
        for trial, score in zip(self._asked, scores, strict=True):
            self._study.tell(trial, self._worst if score is None else score)

    def _values(self, parameters: Mapping[str, Any]) -> Values:
        # Optuna knows choices of numbers and texts only: a listed value goes by its place.
        return {
            path: self._listed[path][value] if path in self._listed else value
            for path, value in parameters.items()
        }

    def _distribution(self, values: Listed | Searched) -> Any:
        kinds = self._optuna.distributions
        if isinstance(values, Listed):
            return kinds.CategoricalDistribution(tuple(range(len(values.values))))
        if values.scale == "int":
            return kinds.IntDistribution(int(values.lo), int(values.hi))
        return kinds.FloatDistribution(values.lo, values.hi, log=values.scale == "log")

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Within the block Optuna says nothing of its studies."""
        logging = self._optuna.logging
        before = logging.get_verbosity()
        logging.set_verbosity(logging.WARNING)
        try:
            yield
        finally:
            logging.set_verbosity(before)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise TunekitError(
            "a range is searched by Optuna, which is not installed: pip install 'tunekit[sweep]'; "
            "or list the values."
        ) from None
    return optuna
