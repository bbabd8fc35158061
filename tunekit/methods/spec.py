"""The methods that a recipe can name: what is put on the network, and what may train.

Importable without Keras or JAX.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Lt

from tunekit.errors import ModelError, did_you_mean

Selectors = str | tuple[str, ...]
LoRAInit = Literal["default", "gaussian", "orthogonal", "pissa", "olora", "loftq", "eva"]
Rank = Annotated[int, Ge(1)]

LANGUAGE_HEAD = "heads/lm_head/"
"""Where the variables of a language head are: a pretrained one, part of the network."""

_CONFIG: Any = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True)
class Plain:
    """Nothing is put on the network: a part of its own variables trains."""

    __pydantic_config__: ClassVar[Any] = _CONFIG

    name: Literal["full", "head", "bitfit", "norm"] = "full"
    """Any variable; the head's; biases and the head's (Ben Zaken et al. 2022, arXiv 2106.10199);
    those of norms and the head's."""


@dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation, ``y = W x + scaling B A x`` (Hu et al. 2021, arXiv 2106.09685)."""

    __pydantic_config__: ClassVar[Any] = _CONFIG

    name: Literal["lora"] = "lora"
    """Which method it is."""
    rank: Rank = 8
    """Width R of the two factors."""
    alpha: Annotated[float, Gt(0)] = 16.0
    """The update is scaled by alpha / rank."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Fraction of the update's inputs dropped in training."""
    targets: Selectors = "auto"
    """The layers adapted: "attention", "linear", "convolutions", names, patterns. "auto" is query
    and value in transformers, the convolutions elsewhere."""
    within: Selectors = "all"
    """The depth in which they are: "last 4", "blocks[2:]"."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases train as well: none, those of every layer, those of the layers adapted."""
    rslora: bool = False
    """Scales by alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732)."""
    dora: bool = False
    """Magnitude and direction of each output train apart (Liu et al. 2024, arXiv 2402.09353)."""
    init: LoRAInit = "default"
    """Values that the factors begin with. "pissa", "olora" and "eva" begin with the network's own
    or its data's directions; "loftq" with what quantisation took away."""
    rank_pattern: Mapping[str, Rank] = field(default_factory=dict)
    """Ranks by pattern of the layers' names; elsewhere `rank`."""
    alpha_pattern: Mapping[str, Annotated[float, Gt(0)]] = field(default_factory=dict)
    """Alphas by pattern of the layers' names; elsewhere `alpha`."""
    b_rate: Annotated[float, Gt(0)] = 1.0
    """The learning rate of B as a multiple of A's; 16 is LoRA+ (Hayou et al. 2024, arXiv
    2402.12354)."""
    rank_spread: Annotated[float, Ge(1)] = 1.0
    """With "eva": a layer may have up to so many times `rank`, taken from others by what their
    directions explain; 1 gives all the same."""

    def __hash__(self) -> int:
        """Of the fields, the two mappings among them."""
        return hash(tuple(map(str, (getattr(self, f.name) for f in fields(self)))))

    def issues(self) -> list[tuple[str, str]]:
        """Returns (field, message) for each combination that does not fit together."""
        found = []
        if self.rank_spread != 1 and self.init != "eva":
            found.append(
                ("rank_spread", f"ranks are spread by init 'eva' alone, and init is '{self.init}'.")
            )
        for name in ("rank_pattern", "alpha_pattern"):
            found += [
                (name, f"{pattern!r} is not a regular expression: {error}.")
                for pattern in getattr(self, name)
                if (error := _pattern_error(pattern))
            ]
        return found


@dataclass(frozen=True)
class VeRA:
    """One frozen random pair of factors for all layers; vectors scale it (arXiv 2310.11454)."""

    __pydantic_config__: ClassVar[Any] = _CONFIG

    name: Literal["vera"] = "vera"
    """Which method it is."""
    rank: Rank = 256
    """Width of the frozen factors."""
    d_initial: float = 0.1
    """What the vector between the factors begins with."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Fraction of the update's inputs dropped in training."""
    projection_seed: Annotated[int, Ge(0)] = 0
    """Of the frozen factors."""
    targets: Selectors = "auto"
    """As for LoRA; dense layers only."""
    within: Selectors = "all"
    """The depth in which they are."""


@dataclass(frozen=True)
class IA3:
    """Vectors that scale keys, values and the MLP's hidden features (arXiv 2205.05638)."""

    __pydantic_config__: ClassVar[Any] = _CONFIG

    name: Literal["ia3"] = "ia3"
    """Which method it is."""
    targets: Selectors = "auto"
    """The layers scaled: "auto" is key, value and the MLP's last layer; else convolutions. An MLP's
    last layer is scaled at its inputs, any other at its outputs."""
    within: Selectors = "all"
    """The depth in which they are."""


@dataclass(frozen=True)
class Bottleneck:
    """Small two-layer networks between the layers."""

    __pydantic_config__: ClassVar[Any] = _CONFIG

    name: Literal["bottleneck"] = "bottleneck"
    """Which method it is."""
    kind: Literal["houlsby", "pfeiffer", "parallel"] = "pfeiffer"
    """After attention and MLP (Houlsby et al. 2019, arXiv 1902.00751); after the MLP alone
    (Pfeiffer et al. 2020, arXiv 2005.00247); beside the MLP (He et al. 2022, arXiv 2110.04366)."""
    reduction: Annotated[float, Gt(0)] = 16.0
    """The bottleneck has 1/reduction of the width, at least 1."""
    activation: Literal["relu", "gelu", "silu", "tanh", "linear"] = "relu"
    """Between its two layers."""
    scaling: float = 1.0
    """Factor of its output."""
    within: Selectors = "all"
    """The depth in which they are."""


@dataclass(frozen=True)
class PrefixTuning:
    """Learned keys and values before those of every attention (arXiv 2101.00190)."""

    __pydantic_config__: ClassVar[Any] = _CONFIG

    name: Literal["prefix"] = "prefix"
    """Which method it is."""
    length: Annotated[int, Ge(1)] = 16
    """Positions P."""
    within: Selectors = "all"
    """The depth in which the attentions are."""


@dataclass(frozen=True)
class PromptTuning:
    """Learned embeddings before those of the tokens (Lester et al. 2021, arXiv 2104.08691)."""

    __pydantic_config__: ClassVar[Any] = _CONFIG

    name: Literal["prompt"] = "prompt"
    """Which method it is."""
    length: Annotated[int, Ge(1)] = 16
    """Positions P."""
    init: Literal["random", "vocabulary"] = "vocabulary"
    """What they begin with: small random numbers, or the embeddings of tokens drawn at random."""


@dataclass(frozen=True)
class VisualPrompt:
    """Learned tokens among a vision transformer's patches (Jia et al. 2022, arXiv 2203.12119)."""

    __pydantic_config__: ClassVar[Any] = _CONFIG

    name: Literal["visual_prompt"] = "visual_prompt"
    """Which method it is."""
    length: Annotated[int, Ge(1)] = 10
    """Tokens P."""
    deep: bool = True
    """Whether every block has its own; else the first block's go through."""


AdapterSpec = LoRA | VeRA | IA3 | Bottleneck | PrefixTuning | PromptTuning | VisualPrompt
Method = Plain | AdapterSpec

_NAMED: dict[str, Method] = {
    "full": Plain("full"),
    "head": Plain("head"),
    "bitfit": Plain("bitfit"),
    "norm": Plain("norm"),
    "lora": LoRA(),
    "rslora": LoRA(rslora=True),
    "dora": LoRA(dora=True),
    "lora+": LoRA(b_rate=16.0),
    "pissa": LoRA(init="pissa"),
    "olora": LoRA(init="olora"),
    "eva": LoRA(init="eva"),
    "vera": VeRA(),
    "ia3": IA3(),
    "bottleneck": Bottleneck(),
    "houlsby": Bottleneck(kind="houlsby"),
    "pfeiffer": Bottleneck(kind="pfeiffer"),
    "parallel": Bottleneck(kind="parallel"),
    "prefix": PrefixTuning(),
    "prompt": PromptTuning(),
    "visual_prompt": VisualPrompt(),
}
METHOD_NAMES = tuple(_NAMED)
"""What a method may be called in a recipe; several are one class with other defaults."""


def named_method(name: str) -> Method:
    """Returns the method of that name, as it is without options.

    Raises:
        ModelError: there is none.
    """
    if name not in _NAMED:
        raise ModelError(
            f"{name!r} is no method ({', '.join(_NAMED)}).{did_you_mean(name, _NAMED)}"
        )
    return _NAMED[name]


def adapter_spec(spec: Any) -> AdapterSpec:
    """Returns the adapter that `spec` is or names.

    Raises:
        ModelError: it is or names none, or its options do not fit together.
    """
    named = named_method(spec) if isinstance(spec, str) else spec
    if not isinstance(named, AdapterSpec):
        adapters = ", ".join(name for name, method in _NAMED.items() if is_adapter(method))
        raise ModelError(
            f"expected an adapter such as LoRA(rank=8), or one of {adapters}; got {spec!r}."
        )
    find: Callable[[], list[tuple[str, str]]] = getattr(named, "issues", list)
    if issues := find():
        raise ModelError("; ".join(f"{path}: {message}" for path, message in issues))
    return named


def is_adapter(method: Method) -> bool:
    """Returns whether the method puts something on the network."""
    return not isinstance(method, Plain)


def spelt_out(tree: Any) -> Any:
    """Returns what a recipe says of its method with the class's own name and fields.

    ``"dora"`` and ``{"name": "dora", "rank": 4}`` are LoRAs; what no method is called stays.
    """
    tree = {"name": tree} if isinstance(tree, str) else tree
    method = _NAMED.get(tree.get("name", "")) if isinstance(tree, dict) else None
    if method is None:
        return tree
    plain = type(method)()
    changed = {
        f.name: getattr(method, f.name)
        for f in fields(method)
        if getattr(method, f.name) != getattr(plain, f.name)
    }
    return {**changed, **tree, "name": method.name}


def name_mistake(tree: Any) -> str | None:
    """Returns what is wrong with how a recipe names its method, spelt out; or `None`."""
    name = tree.get("name") if isinstance(tree, dict) else tree
    if name in METHOD_NAMES:
        return None
    near = did_you_mean(str(name), METHOD_NAMES)
    names = ", ".join(METHOD_NAMES)
    return f"expected {names}, or a mapping with one of these as its name; got {name!r}.{near}"


def shortest(method: Method) -> str | dict[str, Any]:
    """Returns the method as a recipe says it: by a name alone, or with all of its fields."""
    for name, named in _NAMED.items():
        if method == named:
            return name
    return {f.name: getattr(method, f.name) for f in fields(method)}


def without_data(method: Method) -> Method:
    """Returns a method of the same arrays that begins with random values, for looking at it."""
    return replace(method, init="default", rank_spread=1.0) if isinstance(method, LoRA) else method


def rate_factor(method: Method, name: str) -> float:
    """Returns the factor of the learning rate that the method itself gives a variable."""
    is_b = name.endswith(("/lora_b", "/embedding_b"))
    return method.b_rate if isinstance(method, LoRA) and is_b else 1.0


def default_train(method: Method) -> tuple[str, ...]:
    """Returns the selectors of a phase that has none of its own."""
    return ("head",) if method == Plain("head") else ("all",)


def trained_parts(method: Method, *, has_head: bool = True) -> str:
    """Returns in words what a phase trains that does not say so itself.

    Args:
        method: of the recipe.
        has_head: whether there is a head for labels, which every method trains.
    """
    if method.name in ("full", "head"):
        return "all" if method.name == "full" else "head"
    named = {"bitfit": "biases", "norm": "norms"}
    parts = named.get(method.name, f"{method.name} adapter")
    return f"{parts}, head" if has_head else parts


def default_learning_rate(method: Method, *, of_texts: bool = False) -> float:
    """Returns the peak rate where none is given: fresh values bear more than pretrained ones.

    Args:
        method: of the recipe.
        of_texts: whether the network reads texts; transformers bear less than convolutions.
    """
    if method == Plain("full"):
        return 5e-5 if of_texts else 3e-4
    return 5e-4 if of_texts and is_adapter(method) else 1e-3


def may_train(method: Method, name: str, *, is_norm: bool) -> bool:
    """Returns whether `method` may train the variable of that structural name.

    Args:
        method: of the recipe.
        name: of a weight of the network, a head or an adapter.
        is_norm: whether it is a normalisation layer's.
    """
    is_head = name.startswith("heads/")
    if is_head and not name.startswith(LANGUAGE_HEAD):
        return True
    if is_adapter(method):
        return name.startswith("adapters/")
    return {
        "full": True,
        "head": is_head,
        "bitfit": name.endswith(("bias", "/beta")),
        "norm": is_norm,
    }[method.name]


_BEYOND_HEAD = re.compile(r"(?!head$|none$)[a-z]+( +\d+)?|(blocks|stage|backbone/).*")


def refusal(method: Method, selectors: Sequence[str]) -> str | None:
    """Returns why `method` cannot train what `selectors` name, or `None` where it can.

    A pattern may match anywhere, so only selectors that surely leave the head are refused.
    """
    pieces = [piece.strip() for selector in selectors for piece in selector.split(",")]
    beyond = [piece for piece in pieces if _BEYOND_HEAD.fullmatch(piece)]
    if method != Plain("head") or not beyond:
        return None
    return (
        f"{beyond[0]!r} reaches beyond the head, and method 'head' trains nothing else; "
        "set method: full, or train: head."
    )


def refusal_of_builder(method: Method, build: str) -> str | None:
    """Returns why `method` cannot train what a builder of plans has train, or `None`."""
    if method != Plain("head") or build == "head_only":
        return None
    return (
        f"{build!r} reaches beyond the head, and method 'head' trains nothing else; "
        "set method: full, or build: head_only."
    )


def _pattern_error(pattern: str) -> str | None:
    try:
        re.compile(pattern)
    except re.error as error:
        return str(error)
    return None
