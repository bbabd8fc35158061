"""Names of machines that a recipe can be planned for: ``v5e-8``, ``4xh100``, ``this``.

TPU slices are named as Google Cloud names them: v5e (also ``v5litepod``) and v6e by their chips;
v4, v5p and tpu7x by their cores, two a chip, so that ``v4-8`` is 4 chips. JAX sees one device a
chip, of tpu7x two.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache

from tunekit.data.memory import available_memory
from tunekit.errors import TunekitError, did_you_mean
from tunekit.planning.chips import CHIPS, GPU_SHARE, Chip


class TargetError(TunekitError, ValueError):
    """No machine has this name, or none of this size exists."""


@dataclass(frozen=True)
class Target:
    """A machine, or several as one: so many devices of one kind."""

    name: str
    """In the one spelling of tunekit, which `target` takes."""
    chip: Chip
    count: int
    """JAX devices of all hosts together."""
    hosts: int = 1
    grid: tuple[int, ...] = ()
    """Chips of a TPU slice along each side of its torus; empty for other machines."""

    @property
    def kind(self) -> str:
        """Returns ``cpu``, ``gpu`` or ``tpu``, as ``tunekit.platforms`` has them."""
        return self.chip.kind

    @property
    def is_this_machine(self) -> bool:
        """Returns whether what is planned for it can be measured here instead."""
        return self.name == "this"

    def __str__(self) -> str:
        """Returns such as ``8 x TPU v5e (v5e-8)``."""
        return f"{self.count} x {self.chip.label} ({self.name})"


_NAMES = {chip.name: chip for chip in CHIPS}
_ALIASES = {
    "v5litepod": "v5e", "v5lite": "v5e", "v6litepod": "v6e", "v7x": "tpu7x", "ironwood": "tpu7x",
    "trillium": "v6e", "a100": "a100-40gb", "a100-40": "a100-40gb", "a100-80": "a100-80gb",
    "h100-80gb": "h100", "h100-sxm": "h100", "4090": "rtx4090", "rtx-4090": "rtx4090",
    "rtx-a6000": "a6000", "a10": "a10g",
}  # fmt: skip

_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_CUBES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8))
# Of every slice that can be asked for: its number in the name, and its sides in chips.
_SLICES: dict[str, dict[int, tuple[int, ...]]] = {
    "v5e": {a * b: (a, b) for a, b in _FLAT},
    "v6e": {a * b: (a, b) for a, b in _FLAT},
    **{name: {2 * a * b * c: (a, b, c) for a, b, c in _CUBES} for name in ("v4", "v5p", "tpu7x")},
}
_CARDS_A_HOST = 8
_CARDS = (*range(1, _CARDS_A_HOST + 1), 16, 32, 64)
_CHIPS_A_HOST = {"v5e": 8, "v6e": 8, "v4": 4, "v5p": 4, "tpu7x": 4}


def target(name: str) -> Target:
    """Returns the machine of this name.

    Args:
        name: a chip and how many (``v5e-8``, ``h100-4``, ``4xh100``, ``h100x4``), a chip alone for
            one, or ``this`` for the devices of this machine.

    Raises:
        TargetError: no such chip, or no such number of them.

    Example:
        >>> target("4xH100").name, target("v4-8").count
        ('h100-4', 4)
    """
    if name.strip().lower() == "this":
        return _this_machine()
    chip, number = _split(name)
    return _slice(chip, number) if chip.kind == "tpu" else _cards(chip, number)


def target_names() -> tuple[str, ...]:
    """Returns the name of every machine, in the one spelling of tunekit; ``this`` is the last."""
    slices = [f"{chip}-{number}" for chip, sizes in _SLICES.items() for number in sizes]
    gpus = [chip.name for chip in CHIPS if chip.kind == "gpu"]
    return (*slices, *(f"{chip}-{number}" for chip in gpus for number in _CARDS), "this")


def _split(name: str) -> tuple[Chip, int | None]:
    """Reads a chip and its number; `None` where none is written."""
    written = re.sub(r"[\s_]+", "-", name.strip().lower())
    written = re.sub(r"^(\d+x)?(nvidia|geforce|tpu|gpu)-", r"\1", written)
    if chip := _chip(written):
        return chip, None
    for pattern in (r"(?P<count>\d+)-?x-?(?P<chip>.+)", r"(?P<chip>.+?)[-:x](?P<count>\d+)"):
        found = re.fullmatch(pattern, written)
        if found and (chip := _chip(found["chip"])):
            return chip, int(found["count"])
    # The chip without its number is what a near match can be found for.
    bare = re.sub(r"^\d+x-?|[-:x]\d+$", "", written)
    known = [*_NAMES, *_ALIASES]
    raise TargetError(
        f"no machine is called {name!r}.{did_you_mean(bare, known)} Chips known are "
        f"{', '.join(_NAMES)}; with a number, as in v5e-8, h100-4 or 4xh100; or 'this'."
    )


def _chip(name: str) -> Chip | None:
    return _NAMES.get(_ALIASES.get(name, name))


def _slice(chip: Chip, number: int | None) -> Target:
    sizes = _SLICES[chip.name]
    number = min(sizes) if number is None else number
    if number not in sizes:
        chips = math.prod(sizes[min(sizes)])
        about = f", which count cores: {chip.name}-{min(sizes)} is {chips} chips"
        raise _no_such_size(chip, number, tuple(sizes), about if chips != min(sizes) else "")
    grid = sizes[number]
    chips = math.prod(grid)
    devices = 2 * chips if chip.name == "tpu7x" else chips
    hosts = -(-chips // _chips_a_host(chip, chips))
    return Target(f"{chip.name}-{number}", chip, devices, hosts, grid)


def _chips_a_host(chip: Chip, chips: int) -> int:
    """A v5e or v6e slice of more than one host has hosts of 4 chips; 8 share one by themselves."""
    return min(_CHIPS_A_HOST[chip.name], 8 if chips <= 8 else 4)


def _cards(chip: Chip, number: int | None) -> Target:
    number = 1 if number is None else number
    if number not in _CARDS:
        raise _no_such_size(chip, number, _CARDS, "")
    return Target(f"{chip.name}-{number}", chip, number, -(-number // _CARDS_A_HOST))


def _no_such_size(chip: Chip, number: int, sizes: tuple[int, ...], about: str) -> TargetError:
    near = min(sizes, key=lambda size: (abs(size - number), size))
    return TargetError(
        f"there is no {chip.name}-{number}. Did you mean '{chip.name}-{near}'? {chip.label} comes "
        f"in sizes {', '.join(map(str, sizes))}{about}."
    )


@cache
def _this_machine() -> Target:
    """The devices that JAX has here; of a chip that is not in the table, its name and memory."""
    import jax

    devices = jax.devices()
    first, hosts = devices[0], jax.process_count()
    if first.platform == "cpu":
        # As many devices as there are, virtual ones too, share one memory.
        chip = Chip("cpu", "cpu", "CPU of this machine", available_memory(), {}, None, None)
        return Target("this", chip, len(devices), hosts)
    fits = [
        (len(kind), chip)
        for chip in CHIPS
        for kind in chip.device_kinds
        if first.device_kind.lower().startswith(kind.lower())
    ]
    if fits:
        return Target("this", max(fits, key=lambda fit: fit[0])[1], len(devices), hosts)
    kind = "tpu" if first.platform == "tpu" else "gpu"
    memory = (first.memory_stats() or {}).get("bytes_limit", 0)
    memory = int(memory / GPU_SHARE) if kind == "gpu" else memory
    chip = Chip(first.device_kind, kind, first.device_kind, memory, {}, None, None)
    return Target("this", chip, len(devices), hosts)
