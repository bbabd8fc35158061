"""What trains, at which rate, until when: the builders of plans.

Example:
    >>> from tunekit import finetune, plans
    >>> finetune("efficientnet_lite0", "photos/", plan=plans.gradual_unfreeze(epochs=6))
"""

from tunekit.plans.builders_gradual import Alternating as alternating
from tunekit.plans.builders_gradual import ChainThaw as chain_thaw
from tunekit.plans.builders_gradual import GradualUnfreeze as gradual_unfreeze
from tunekit.plans.builders_gradual import Ulmfit as ulmfit
from tunekit.plans.builders_parts import BitFit as bit_fit
from tunekit.plans.builders_parts import HeadOnly as head_only
from tunekit.plans.builders_parts import LpFt as lp_ft
from tunekit.plans.builders_parts import NormOnly as norm_only
from tunekit.plans.builders_parts import Surgical as surgical
from tunekit.plans.builders_rates import Discriminative as discriminative
from tunekit.plans.builders_rates import LayerDecay as layer_decay

__all__ = [
    "alternating",
    "bit_fit",
    "chain_thaw",
    "discriminative",
    "gradual_unfreeze",
    "head_only",
    "layer_decay",
    "lp_ft",
    "norm_only",
    "surgical",
    "ulmfit",
]
