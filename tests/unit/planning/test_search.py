"""The search over a machine whose memory is a formula: what it finds, tries, and leaves out."""

from dataclasses import replace

import pytest

from tunekit.errors import Issue, RecipeError
from tunekit.planning.candidates import Change, changed, changes, mesh_text, overrides
from tunekit.planning.search import MOST_TRIES, Search, largest_batch
from tunekit.planning.settings import Held, Setting, at_least, is_lighter
from tunekit.recipe import Recipe
from tunekit.training.layout import MeshSizes

ONE = Setting(MeshSizes(), 64, 1, "none", "float32", None, 16)
DATA = replace(ONE, mesh=MeshSizes(data=8))
LORA = Recipe(method={"name": "lora", "rank": 16}, batch={"size": 64}, plan=[{"epochs": 1}])
FULL = Recipe(batch={"size": 64}, plan=[{"epochs": 1}])

BYTES = {"float32": 4, "mixed_bfloat16": 4, "bfloat16": 2}
COMPUTED = {"float32": 4, "mixed_bfloat16": 2, "bfloat16": 2}


def held(setting: Setting, *, parameters=100.0, per_example=5.0) -> Held:
    """Bytes of a made-up network with LoRA, as exact as arithmetic."""
    split = setting.mesh.fsdp * setting.mesh.tensor
    base = {None: BYTES[setting.dtype], "int8": 1.1, "nf4": 0.6}[setting.quantize]
    kept = {"none": 1.0, "blocks": 0.2}[setting.remat]
    trained = 0.1 * (setting.rank or 0)
    micro = setting.batch / setting.accumulate / setting.mesh.devices
    return Held(
        frozen=parameters * base / split,
        trained=trained / split,
        optimizer=2 * trained / split,
        copies=0.0,
        rest=trained / split + micro * per_example * kept * COMPUTED[setting.dtype],
    )


def found(recipe, now, room, **network):
    search = Search(
        room, lambda change: held(change.setting, **network), [(now, held(now, **network))]
    )
    return search.smallest(changes(recipe, now, devices_of_host=8)), search


def test_what_costs_nothing_is_tried_first():
    fit, search = found(LORA, DATA, room=300.0)
    assert fit.change.overrides == ("runtime.mesh=fsdp",)
    assert len(search.tried) == 1


def test_micro_batches_come_before_activations_computed_anew():
    fit, _ = found(LORA, ONE, room=800.0)
    assert fit.change.overrides == ("batch.accumulate=4",)


def test_activations_are_computed_anew_where_micro_batches_are_spent():
    one_example = replace(ONE, batch=1)
    fit, _ = found(LORA, one_example, room=420.0)
    assert fit.change.overrides == ("runtime.remat=blocks",)


def test_a_base_too_large_is_kept_in_fewer_bits_only_if_nothing_less_will_do():
    fit, _ = found(LORA, replace(ONE, batch=1), room=250.0)
    assert fit.change.overrides == ("backbone.dtype=bfloat16",)
    fit, _ = found(LORA, replace(ONE, batch=1), room=150.0)
    assert "backbone.quantize=int8" in fit.change.overrides
    fit, _ = found(LORA, replace(ONE, batch=1), room=75.0)
    assert "backbone.quantize=nf4" in fit.change.overrides


def test_a_rank_is_lowered_where_adapters_are_what_is_large():
    wide = replace(ONE, batch=1, rank=64, quantize="nf4", dtype="bfloat16", remat="blocks")
    lora = Recipe(method={"name": "lora", "rank": 64}, plan=[{"epochs": 1}])
    fit, _ = found(lora, wide, room=80.0)
    assert fit.change.overrides == ("method.rank=32",)


def test_what_arithmetic_rules_out_is_never_compiled():
    fit, search = found(LORA, ONE, room=30.0)
    assert fit is None and search.tried == []


def test_full_tuning_is_offered_neither_a_rank_nor_a_packed_base():
    plain = replace(ONE, rank=None)
    for change in changes(FULL, plain, devices_of_host=8):
        assert not any("rank" in text or "quantize" in text for text in change.overrides)


def test_the_search_ends_after_so_many_tries():
    never = Search(
        room=1.0,
        compiled=lambda change: Held(0, 0, 0, 0, 2.0),
        known=[(ONE, Held(0, 0, 0, 0, 2.0))],
    )
    lighter = [
        Change(replace(ONE, accumulate=2**n), n, (f"batch.accumulate={2**n}",))
        for n in range(1, 20)
    ]
    assert never.smallest(lighter) is None
    assert len(never.tried) == MOST_TRIES


def test_what_needs_no_less_than_what_did_not_fit_is_left_out():
    tried = []

    def compiled(change):
        tried.append(change.overrides)
        return Held(0, 0, 0, 0, 2.0)

    search = Search(1.0, compiled, [(ONE, Held(0, 0, 0, 0, 2.0))])
    half, quarter = replace(ONE, accumulate=2), replace(ONE, accumulate=4)
    search.smallest([Change(quarter, 1, ("b",)), Change(half, 2, ("a",))])
    assert tried == [("b",)]


def test_a_change_that_contradicts_the_recipe_is_passed_over():
    def compiled(change):
        if change.setting.accumulate == 2:
            raise RecipeError([Issue("batch.accumulate", "cannot be.")])
        return held(change.setting)

    search = Search(900.0, compiled, [(ONE, held(ONE))])
    fit = search.smallest(changes(LORA, ONE, devices_of_host=8))
    assert fit.change.setting.accumulate == 4


def test_arithmetic_never_says_more_than_the_truth():
    for change in changes(LORA, DATA, devices_of_host=8):
        if is_lighter(change.setting, DATA):
            assert at_least(held(DATA), DATA, change.setting) <= held(change.setting).total + 1e-6


def test_every_override_makes_the_recipe_that_was_meant():
    for change in changes(LORA, ONE, devices_of_host=8):
        try:
            recipe = changed(LORA, change.overrides)
        except RecipeError:
            continue  # Methods of images take no packed base.
        assert Setting.of(recipe, change.setting.mesh, recipe.batch) == change.setting


def test_a_phase_with_batches_of_its_own_gets_the_override_too():
    recipe = Recipe(batch={"size": 64}, plan=[{"epochs": 1}, {"epochs": 1, "batch": {"size": 32}}])
    now = Setting.of(recipe, MeshSizes(), recipe.batch)
    texts = overrides(recipe, now, replace(now, accumulate=4))
    assert texts == ("batch.accumulate=4", "plan.1.batch.accumulate=4")
    assert changed(recipe, texts).plan[1].batch.accumulate == 4


@pytest.mark.parametrize(
    ("sizes", "text"),
    [((1, 1, 1), "one"), ((8, 1, 1), "data"), ((1, 8, 1), "fsdp"),
     ((1, 1, 8), "tensor"), ((1, 4, 2), "{data: 1, fsdp: 4, tensor: 2}")],
)  # fmt: skip
def test_a_mesh_is_said_as_recipes_have_it(sizes, text):
    assert mesh_text(MeshSizes(*sizes)) == text
    mesh = changed(LORA, [f"runtime.mesh={text}"]).runtime.mesh
    assert mesh == text or (mesh.data, mesh.fsdp, mesh.tensor) == sizes


def sized(room, *, start=8, most=None, per_example=5.0, mesh=None, unevenness=1.0):
    now = replace(ONE, batch=start, **({"mesh": mesh} if mesh else {}))
    compiled = []

    def needs(size):
        compiled.append(size)
        exact = held(replace(now, batch=size), per_example=per_example)
        return replace(exact, rest=exact.rest**unevenness)

    return largest_batch(now, held(now, per_example=per_example), room, needs, most), compiled


def test_the_largest_batch_is_found_from_a_line_and_compiled():
    (size, needs), compiled = sized(room=1000.0)
    # 400 frozen, 6.4 of adapters, 20 an example.
    assert size == 29 and size in compiled and needs.total <= 1000.0


def test_a_recipe_that_does_not_fit_gets_a_smaller_batch():
    (size, _), _ = sized(room=500.0)
    assert size == 4


def test_no_batch_fits_where_the_state_does_not():
    assert sized(room=100.0)[0] is None


def test_a_batch_is_a_multiple_of_the_devices_that_share_it():
    (size, _), compiled = sized(room=1000.0, mesh=MeshSizes(data=8))
    assert size % 8 == 0 and all(each % 8 == 0 for each in compiled)


def test_no_more_examples_are_asked_for_than_there_are():
    (size, _), _ = sized(room=10_000.0, most=20)
    assert size == 20


@pytest.mark.parametrize("unevenness", [1.05, 0.95])
def test_a_curve_is_followed_to_what_fits(unevenness):
    found, compiled = sized(room=1500.0, unevenness=unevenness)
    size, needs = found
    assert needs.total <= 1500.0 and len(compiled) <= 4
    assert sized(room=needs.total, unevenness=unevenness)[0] is not None
