"""Transfer learning on pretrained models: one call, one recipe, one command.

Public names are imported when first used, so that ``import tunekit`` loads neither JAX nor Keras.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tunekit.xla_flags import keep_sums_right

if TYPE_CHECKING:
    from tunekit import errors as errors
    from tunekit import plans as plans
    from tunekit.data.spec import AugmentSpec as AugmentSpec
    from tunekit.data.spec import BatchSpec as BatchSpec
    from tunekit.data.spec import CacheSpec as CacheSpec
    from tunekit.data.spec import DataSpec as DataSpec
    from tunekit.data.spec import MixedSpec as MixedSpec
    from tunekit.data.spec import RandAugmentSpec as RandAugmentSpec
    from tunekit.errors import TunekitError as TunekitError
    from tunekit.finetune import finetune as finetune
    from tunekit.generate import generate as generate
    from tunekit.inspection import Inspection as Inspection
    from tunekit.inspection import inspect as inspect
    from tunekit.methods.spec import IA3 as IA3
    from tunekit.methods.spec import Bottleneck as Bottleneck
    from tunekit.methods.spec import LoRA as LoRA
    from tunekit.methods.spec import PrefixTuning as PrefixTuning
    from tunekit.methods.spec import PromptTuning as PromptTuning
    from tunekit.methods.spec import VeRA as VeRA
    from tunekit.methods.spec import VisualPrompt as VisualPrompt
    from tunekit.models.loading import load_model as load_model
    from tunekit.models.model import Model as Model
    from tunekit.models.spec import BackboneSpec as BackboneSpec
    from tunekit.models.spec import HeadSpec as HeadSpec
    from tunekit.planning.plan import Plan as Plan
    from tunekit.planning.planner import plan as plan
    from tunekit.plans.optimizer import OptimizerSpec as OptimizerSpec
    from tunekit.plans.phase import Phase as Phase
    from tunekit.preview import Preview as Preview
    from tunekit.preview import plan_preview as plan_preview
    from tunekit.probe import Probe as Probe
    from tunekit.probe import probe as probe
    from tunekit.recipe import Recipe as Recipe
    from tunekit.result import Result as Result
    from tunekit.result import load as load
    from tunekit.retention import Retention as Retention
    from tunekit.retention import retention as retention
    from tunekit.run import run as run
    from tunekit.sweep import sweep as sweep
    from tunekit.sweep_record import Sweep as Sweep
    from tunekit.tasks.prediction import Prediction as Prediction
    from tunekit.tasks.spec import ClassificationSpec as ClassificationSpec
    from tunekit.tasks.spec import EmbeddingSpec as EmbeddingSpec
    from tunekit.tasks.spec import LanguageModellingSpec as LanguageModellingSpec
    from tunekit.tasks.spec import MaskedLMSpec as MaskedLMSpec
    from tunekit.tasks.spec import RegressionSpec as RegressionSpec
    from tunekit.tasks.spec import SpanQASpec as SpanQASpec
    from tunekit.tasks.spec import TokenClassificationSpec as TokenClassificationSpec
    from tunekit.training.spec import MeshSpec as MeshSpec
    from tunekit.training.spec import RuntimeSpec as RuntimeSpec

__version__ = "0.1.0"

_HOMES = {
    "AugmentSpec": "tunekit.data.spec",
    "BackboneSpec": "tunekit.models.spec",
    "BatchSpec": "tunekit.data.spec",
    "Bottleneck": "tunekit.methods.spec",
    "CacheSpec": "tunekit.data.spec",
    "ClassificationSpec": "tunekit.tasks.spec",
    "DataSpec": "tunekit.data.spec",
    "EmbeddingSpec": "tunekit.tasks.spec",
    "HeadSpec": "tunekit.models.spec",
    "IA3": "tunekit.methods.spec",
    "Inspection": "tunekit.inspection",
    "LanguageModellingSpec": "tunekit.tasks.spec",
    "LoRA": "tunekit.methods.spec",
    "MaskedLMSpec": "tunekit.tasks.spec",
    "MeshSpec": "tunekit.training.spec",
    "MixedSpec": "tunekit.data.spec",
    "Model": "tunekit.models.model",
    "OptimizerSpec": "tunekit.plans.optimizer",
    "Phase": "tunekit.plans.phase",
    "Plan": "tunekit.planning.plan",
    "Prediction": "tunekit.tasks.prediction",
    "PrefixTuning": "tunekit.methods.spec",
    "Preview": "tunekit.preview",
    "Probe": "tunekit.probe",
    "PromptTuning": "tunekit.methods.spec",
    "RandAugmentSpec": "tunekit.data.spec",
    "Recipe": "tunekit.recipe",
    "RegressionSpec": "tunekit.tasks.spec",
    "Result": "tunekit.result",
    "Retention": "tunekit.retention",
    "RuntimeSpec": "tunekit.training.spec",
    "SpanQASpec": "tunekit.tasks.spec",
    "Sweep": "tunekit.sweep_record",
    "TokenClassificationSpec": "tunekit.tasks.spec",
    "TunekitError": "tunekit.errors",
    "VeRA": "tunekit.methods.spec",
    "VisualPrompt": "tunekit.methods.spec",
    "finetune": "tunekit.finetune",
    "generate": "tunekit.generate",
    "inspect": "tunekit.inspection",
    "load": "tunekit.result",
    "load_model": "tunekit.models.loading",
    "plan": "tunekit.planning.planner",
    "plan_preview": "tunekit.preview",
    "probe": "tunekit.probe",
    "retention": "tunekit.retention",
    "run": "tunekit.run",
    "sweep": "tunekit.sweep",
}

_MODULES = ("errors", "plans")

__all__ = [*_HOMES, *_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"tunekit.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'tunekit' has no attribute {name!r}{_near(name)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _near(name: str) -> str:
    from tunekit.errors import did_you_mean

    return f".{hint}" if (hint := did_you_mean(name, __all__)) else ""


class _Door(ModuleType):
    """Keeps ``tunekit.finetune`` the function once its module of the same name is imported."""

    def __setattr__(self, name: str, value: object) -> None:
        # The import system binds every submodule to its package under the submodule's name.
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def _use_jax() -> None:
    """Makes JAX the backend of Keras, which reads it once, when it is imported.

    Raises:
        BackendError: another backend is asked for, or in use already.
    """
    chosen = os.environ.setdefault("KERAS_BACKEND", "jax")
    origin = "the environment variable KERAS_BACKEND"
    move = "Unset it, or set KERAS_BACKEND=jax."
    if chosen == "jax" and (keras := sys.modules.get("keras")) is not None:
        chosen = keras.config.backend()
        origin = "Keras, imported earlier in this process,"
        move = "Import tunekit before keras, or set KERAS_BACKEND=jax before either."
    if chosen != "jax":
        from tunekit.errors import BackendError

        raise BackendError(f"tunekit runs Keras on JAX, but {origin} says {chosen!r}. {move}")


_use_jax()
keep_sums_right()
sys.modules[__name__].__class__ = _Door
