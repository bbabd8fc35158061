"""A sweep: members against their own runs, what is compared, and what is kept."""

from __future__ import annotations

import csv
import json
import math
import sys

import numpy as np
import pytest
from PIL import Image

import tunekit
from tests.contract.families import fixed, images, plain_cnn
from tunekit import BatchSpec, DataSpec, LoRA, Phase, Recipe, RuntimeSpec, Sweep, run, sweep
from tunekit.cli import main
from tunekit.errors import DataError, ModelError, RecipeError, TrainingError, TunekitError
from tunekit.side_by_side import MemberRun
from tunekit.sweep_record import score_of
from tunekit.sweep_search import Search
from tunekit.sweep_space import Space

QUIET = RuntimeSpec(progress="none")
BASE = Recipe(
    method="head",
    plan=(Phase(epochs=2, learning_rate=0.01),),
    batch=BatchSpec(size=8),
    runtime=QUIET,
)
DIVERGING = 1e38


def ended(*scores: float | None, failure: str | None = None, **runtime) -> MemberRun:
    """A run that was evaluated so: accuracy and, by a tenth of it, loss."""
    recipe = Recipe(plan=(Phase(epochs=1),), runtime=RuntimeSpec(**runtime))
    history = [
        {"epoch": i, "val_accuracy": score, "val_loss": score / 10, "seconds": 0.5}
        for i, score in enumerate(scores)
    ]
    return MemberRun(recipe, history, [], failure, together=True, values={})


def recorded(scores: dict[tuple[float, int], MemberRun], metric: str = "accuracy") -> Sweep:
    """The record of runs by learning rate and seed."""
    found = Sweep(metric, ("learning_rate",))
    members = [{"learning_rate": rate, "seed": seed} for rate, seed in scores]
    found.add(members, list(scores.values()))
    return found


MIXED = {
    (0.1, 0): ended(0.5),
    (0.1, 1): ended(0.75),
    (0.2, 0): ended(0.5),
    (0.2, 1): ended(0.875),
    (0.3, 0): ended(0.75),
    (0.3, 1): ended(failure="the loss is nan at step 3"),
    (0.4, 0): ended(failure="the loss is inf at step 1"),
    (0.4, 1): ended(failure="the loss is nan at step 2"),
}


def test_the_summary_is_mean_sample_deviation_and_count_with_the_best_first():
    rows = recorded(MIXED).summary
    assert [(row["learning_rate"], row["n"], row["failed"]) for row in rows] == [
        (0.2, 2, 0),
        (0.1, 2, 0),
        (0.3, 1, 1),
        (0.4, 0, 2),
    ]
    assert [row["mean"] for row in rows] == [0.6875, 0.625, 0.75, None]
    assert rows[0]["std"] == pytest.approx(0.375 / math.sqrt(2))
    assert rows[2]["std"] is rows[3]["std"] is None


def test_the_best_is_the_best_seed_of_the_values_with_the_best_mean():
    found = recorded(MIXED)
    assert (found.best_row or {})["member"] == 3
    assert "best val_accuracy 0.8750 at learning_rate=0.2 seed=1 (member 3)" in repr(found)


def test_the_lowest_loss_is_the_best():
    found = recorded({(0.1, 0): ended(0.5), (0.2, 0): ended(0.25)}, metric="loss")
    assert found.lower_is_better
    assert (found.best_row or {})["learning_rate"] == 0.2
    assert [row["mean"] for row in found.summary] == [0.025, 0.05]


def test_the_score_is_of_the_weights_that_a_member_ends_with():
    course = (0.25, 0.75, 0.75, 0.5)
    assert score_of(ended(*course), "accuracy") == 0.75
    assert score_of(ended(*course), "loss") == 0.075
    assert score_of(ended(*course, monitor="loss"), "accuracy") == 0.25
    assert score_of(ended(*course, restore_best=False), "accuracy") == 0.5
    assert score_of(ended(*course, failure="the loss is nan"), "accuracy") is None


def test_a_score_that_is_not_a_number_is_a_failure():
    found = recorded({(0.1, 0): ended(math.nan)})
    assert found.rows[0]["failure"] == "val_accuracy is not a number"
    assert found.rows[0]["score"] is None


def test_the_table_has_a_line_for_all_seeds_and_says_what_failed():
    lines = recorded(MIXED).table().splitlines()
    assert [line.split() for line in lines[:5]] == [
        ["learning_rate", "val_accuracy", "std", "n", "failed"],
        ["0.2", "0.6875", "0.2652", "2", "0"],
        ["0.1", "0.6250", "0.1768", "2", "0"],
        ["0.3", "0.7500", "-", "1", "1"],
        ["0.4", "-", "-", "0", "2"],
    ]
    assert lines[-1] == "8 members, 3 failed, 8 side by side, 0.0 s"


def test_a_sweep_of_which_all_failed_has_no_best_and_is_saved_all_the_same(tmp_path):
    found = recorded({(0.1, 0): ended(failure="the loss is nan at step 3")})
    assert found.best_row is None
    assert "none has a result" in found.table()
    found.save(tmp_path / "out")
    assert not (tmp_path / "out" / "best").exists()
    with pytest.raises(TrainingError, match="no member has a result. .*the loss is nan at step 3"):
        found.best  # noqa: B018


def test_of_several_batches_the_weights_of_the_best_alone_are_kept():
    found = Sweep("accuracy", ("x",))
    for x, score in enumerate((0.5, 0.9, 0.7)):
        found.add([{"x": x}], [ended(score)])
    assert found._best is not None
    assert found._best.history[0]["val_accuracy"] == 0.9
    assert [row["member"] for row in found.rows] == [0, 1, 2]


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> tuple[Sweep, dict]:
    out = tmp_path_factory.mktemp("sweep") / "out"
    space = {"learning_rate": [0.003, 0.03, DIVERGING], "seed": range(1, 3)}
    return sweep(BASE, space, model=fixed(plain_cnn()), data=images(30), out=out), {"out": out}


def test_members_train_side_by_side_and_one_that_diverges_leaves_the_others_alone(swept):
    found, _ = swept
    assert all(row["together"] for row in found.rows)
    failures = {row["learning_rate"]: row["failure"] for row in found.rows}
    assert failures[0.003] is failures[0.03] is None
    assert "the loss is" in failures[DIVERGING]


@pytest.mark.parametrize("member", [0, 3])
def test_a_members_yaml_alone_is_the_same_run(swept, member):
    found, where = swept
    recipe = Recipe.load(where["out"] / "recipes" / f"0{member}.yaml")
    alone = run(recipe, model=fixed(plain_cnn()), data=images(30))
    assert len(alone.history) == len(found.histories[member]) == 2
    for one, other in zip(alone.history, found.histories[member], strict=True):
        # Products of all members at once sum in another order: float32.
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["val_loss"] == pytest.approx(one["val_loss"], rel=1e-5)
    assert found.rows[member]["score"] == alone.metrics["accuracy"]


def test_the_best_is_a_whole_result_with_the_score_of_its_row(swept):
    found, where = swept
    assert found.best.metrics["accuracy"] == (found.best_row or {})["score"]
    loaded = tunekit.load(where["out"] / "best")
    pixels = images(6)[0]
    np.testing.assert_allclose(
        loaded.model.logits(pixels), found.best.model.logits(pixels), rtol=1e-6, atol=1e-6
    )


def test_the_folder_holds_table_record_picture_best_and_recipes(swept):
    found, where = swept
    names = {path.name for path in where["out"].iterdir()}
    assert names == {"sweep.csv", "sweep.json", "sweep.png", "best", "recipes"}
    with (where["out"] / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["score"]) for row in rows[:4]] == [row["score"] for row in found.rows[:4]]
    assert (rows[4]["score"], rows[4]["failure"]) == ("", found.rows[4]["failure"])
    record = json.loads((where["out"] / "sweep.json").read_text())
    assert record["best"] == (found.best_row or {})["member"]
    assert len(record["members"]) == 6 and len(record["members"][0]["history"]) == 2


ADAPTER = BASE.model_copy(
    update={"method": LoRA(rank=2, targets="conv2d_1"), "data": DataSpec(split_seed=0)}
)


def test_members_with_adapters_on_a_cached_prefix_train_side_by_side_as_alone():
    space = {"learning_rate": [0.003, 0.03], "seed": range(2)}
    found = sweep(ADAPTER, space, model=fixed(plain_cnn()), data=images(30))
    assert all(row["together"] for row in found.rows)
    assert found.best.report["adapters"][0]["targets"] == ["backbone/conv2d_1"]
    losses = [[row["loss"] for row in history] for history in found.histories]
    assert len({tuple(each) for each in losses}) == 4
    for recipe, together in zip(found.recipes, losses, strict=True):
        alone = run(recipe, model=fixed(plain_cnn()), data=images(30)).history
        assert [row["loss"] for row in alone] == pytest.approx(together, rel=1e-5)


def test_the_fields_of_a_method_can_be_swept():
    base = BASE.model_copy(update={"method": LoRA()})
    space = {"method.rank": [1, 3], "method.alpha": [8.0]}
    found = sweep(base, space, model=fixed(plain_cnn()), data=images())
    assert [row["failure"] for row in found.rows] == [None, None]
    assert [recipe.method for recipe in found.recipes] == [
        LoRA(rank=1, alpha=8.0),
        LoRA(rank=3, alpha=8.0),
    ]
    assert found.best.model.adapters["lora"].adapter.spec == found.best.recipe.method


def test_methods_can_be_swept():
    space = {"method": ["head", "ia3"], "plan.0.epochs": 1}
    found = sweep(BASE, space, model=fixed(plain_cnn()), data=images())
    assert [recipe.method.name for recipe in found.recipes] == ["head", "ia3"]
    assert [row["failure"] for row in found.rows] == [None, None]


def test_a_mistaken_field_of_a_method_is_refused_before_training():
    with pytest.raises(RecipeError, match="method.rnk.*Did you mean 'rank'"):
        sweep(ADAPTER, {"method.rnk": [1, 2]}, model=plain_cnn(), data=images())


def test_a_folder_of_other_things_is_refused_before_training(tmp_path):
    (tmp_path / "mine.txt").write_text("not a sweep")
    with pytest.raises(ModelError, match="mine.txt.*Name a new or empty folder"):
        sweep(BASE, {"seed": [1, 2]}, model=plain_cnn(), data=images(), out=tmp_path)


def test_members_of_several_programs_train_one_after_another():
    space = {"head.kind": ["linear", "cosine"], "plan.0.epochs": 1}
    found = sweep(BASE, space, model=fixed(plain_cnn()), data=images())
    assert [row["together"] for row in found.rows] == [False, False]
    assert [row["failure"] for row in found.rows] == [None, None]
    assert found.best.model.head_spec.kind == (found.best_row or {})["head.kind"]


def test_one_that_diverges_leaves_those_after_it_alone_and_a_model_given_as_it_was():
    plan = (Phase(epochs=2, learning_rate=0.01, early_stopping=1),)
    base = BASE.model_copy(update={"plan": plan})
    model = tunekit.load_model(fixed(plain_cnn()))
    before = {name: np.array(v.value) for name, v in model.variables().items()}
    found = sweep(base, {"learning_rate": [DIVERGING, 0.01]}, model=model, data=images())
    assert model.labels == ()
    for name, variable in model.variables().items():
        np.testing.assert_array_equal(variable.value, before[name])
    assert "the loss is" in found.rows[0]["failure"]
    assert found.rows[1]["failure"] is None and not found.rows[1]["together"]
    alone = run(found.recipes[1], model=fixed(plain_cnn()), data=images())
    assert [row["loss"] for row in found.histories[1]] == [row["loss"] for row in alone.history]
    assert found.best.model is model and model.labels == ("blue", "green", "red")


@pytest.mark.parametrize(
    ("scale", "optimum", "course", "median_at_random"),
    [("log(1e-5, 1e-1)", 1e-3, np.log10, 1.0), ("uniform(0, 1)", 0.3, float, 0.25)],
)
def test_a_search_draws_nearer_to_the_optimum_than_chance(scale, optimum, course, median_at_random):
    search = Search(Space.read({"x": scale}, []), seed=0, lower_is_better=True)
    distances = []
    for _ in range(6):
        asked = [values["x"] for values in search.ask(8)]
        assert len(set(asked)) == 8
        found = [float(abs(course(x) - course(optimum))) for x in asked]
        distances += found
        search.tell(found)
    assert np.median(distances[24:]) < 0.7 * median_at_random


def test_a_search_shuns_what_failed_and_draws_the_same_for_the_same_seed():
    def drawn() -> list[list[int]]:
        search = Search(Space.read({"x": "int(1, 100)"}, []), seed=0, lower_is_better=False)
        batches = []
        for _ in range(5):
            asked = [values["x"] for values in search.ask(8)]
            batches.append(asked)
            search.tell([None if x > 50 else float(x) for x in asked])
        return batches

    batches = drawn()
    assert batches == drawn()
    assert sum(x > 50 for x in batches[-1]) < sum(x > 50 for x in batches[0])


def test_listed_values_are_choices_of_a_search_whatever_they_are():
    said = {"x": "int(1, 2)", "train": [("head", "last 2"), "all"], "seed": range(2)}
    search = Search(Space.read(said, []), seed=0, lower_is_better=False)
    asked = search.ask(12)
    assert {json.dumps(values["train"]) for values in asked} == {'["head", "last 2"]', '"all"'}
    assert {values["x"] for values in asked} == {1, 2}
    assert all("seed" not in values for values in asked)


def test_a_searched_sweep_tries_each_draw_with_every_seed_and_none_twice():
    space = {"plan.0.epochs": "int(1, 2)", "seed": range(2)}
    found = sweep(BASE, space, trials=6, model=fixed(plain_cnn()), data=images())
    tried = [(row["plan.0.epochs"], row["seed"]) for row in found.rows]
    assert sorted(tried) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert found.best.recipe == found.recipes[(found.best_row or {})["member"]]


def test_a_search_without_optuna_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(TunekitError, match=r"pip install 'tunekit\[sweep\]'; or list the values"):
        sweep(BASE, {"seed": 1, "batch.size": "int(4, 8)"}, trials=2, data=images())


@pytest.mark.parametrize(
    ("space", "keywords", "message"),
    [
        ({"learning_rate": "log(1e-5, 1e-1)"}, {}, r"trials: a range is to be searched.*trials=20"),
        ({"seed": range(2)}, {"trials": 5}, "trials: all values are listed"),
        ({"batch.size": "int(4, 8)"}, {"trials": 0}, "trials: expected at least 1, got 0"),
        ({"batch.size": "int(0, 8)"}, {"trials": 3}, "batch.size: expected .*batch.size=0"),
        ({"batch.size": "int(4, 8)"}, {"trials": 2000}, "2,000 members, and at most 1,000"),
        ({"runtime.out": "x", "seed": range(2)}, {}, "runtime.out: is not a member's"),
        ({"seed": range(2)}, {"metric": "acuracy"}, "metric: no such metric.*'accuracy'"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_training(space, keywords, message):
    with pytest.raises(RecipeError, match=message):
        sweep(BASE, space, model=plain_cnn(), data=images(), **keywords)


def test_a_recipe_that_resumes_is_refused(tmp_path):
    runtime = RuntimeSpec(out=str(tmp_path), resume=True)
    base = BASE.model_copy(update={"runtime": runtime})
    with pytest.raises(RecipeError, match="runtime.resume: a sweep begins anew"):
        sweep(base, {"seed": range(2)}, model=plain_cnn(), data=images())


def test_a_sweep_without_validation_data_is_refused():
    base = BASE.model_copy(update={"data": DataSpec(validation_fraction=0)})
    with pytest.raises(DataError, match="compares its members by validation data.*fraction above"):
        sweep(base, {"seed": range(2)}, model=plain_cnn(), data=images())


def test_a_sweep_without_data_says_how_to_name_it():
    with pytest.raises(RecipeError, match="data.path: expected the path of the training data"):
        sweep(BASE, {"seed": range(2)}, model=plain_cnn())


def test_the_command_sweeps_prints_the_table_and_saves(tmp_path, monkeypatch, capsys):
    pixels, labels = images(18)
    for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "photos" / label / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    said = ["data.path=photos", "learning_rate=1e-3,1e-2", "seed=0..1", "--metric", "loss"]
    small = ["backbone.image_size=32", "plan.0.epochs=1", "batch.size=8", "runtime.progress=none"]
    assert main(["sweep", "vision/linear_probe", *said, *small]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["learning_rate", "val_loss", "std", "n"]
    assert {line.split()[0] for line in lines[1:3]} == {"0.001", "0.01"}
    assert lines[-1] == "saved in runs/sweep-linear_probe"
    assert tunekit.load("runs/sweep-linear_probe/best").model.labels == ("blue", "green", "red")


def test_the_command_reports_every_mistake_on_lines_of_their_own(capsys):
    assert main(["sweep", "vision/full", "batch.size=8,x", "plan.0.epoch=1"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "tunekit: the recipe has 2 mistakes:",
        "  plan[0].epoch: plan[0] has no such field. Did you mean 'epochs'?",
        '  batch.size: expected a whole number; got "x". In members with batch.size=x.',
    ]
