from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.unit.tasks.small_language import model
from tunekit.cli import main
from tunekit.errors import DataError, ModelError
from tunekit.evaluation.retention import RetentionRow
from tunekit.models.model import Model
from tunekit.names import structural_names
from tunekit.result import Result
from tunekit.retention import Retention, retention
from tunekit.tasks.language_modelling import LanguageModelling
from tunekit.tasks.text_classification import TextClassification

OLD = ["so it is", "and that is all"]
NEW = [{"prompt": "is it?", "response": "yes"}, {"prompt": "who?", "response": "me"}]


def tuned(spec="lora"):
    llama = model()
    adapter = llama.add_adapter("a", spec).adapters["a"].adapter
    rng = np.random.default_rng(0)
    for variable in adapter.variables.values():
        if variable.trainable:
            variable.assign(variable + 0.2 * rng.normal(size=variable.shape))
    return llama


def result_of(llama, task=None, **batch) -> Result:
    recipe = {"batch": {"max_length": 40, **batch}, "data": {"prompt_column": "prompt"}}
    return Result(llama, recipe, [], {}, {}, task or LanguageModelling())


@pytest.fixture(scope="module")
def found() -> Retention:
    return retention(result_of(tuned()), retain=OLD, data=NEW, scales=(1, 0.5))


def test_the_base_is_measured_whether_or_not_it_was_asked_for(found) -> None:
    assert [row.scale for row in found.rows] == [0, 0.5, 1]
    assert found.turns == "adapters"
    assert found.base.kl == 0 < found.rows[1].kl < found.rows[2].kl
    assert found.tokens == len("yes") + len("me") + 2  # with the end of each turn
    assert found.retained_tokens == sum(map(len, OLD))


def test_rows_are_those_of_evaluation(found) -> None:
    result = result_of(tuned())
    measured = result.evaluate(NEW)
    assert found.rows[2].loss == pytest.approx(measured["loss"], rel=1e-5)
    assert found.rows[2].perplexity == pytest.approx(measured["perplexity"], rel=1e-5)
    with result.model.adapters_disabled():
        before = result.evaluate(NEW)
    assert found.base.loss == pytest.approx(before["loss"], rel=1e-5)


def test_a_table_and_json_say_which_rows_are_on_the_front(found) -> None:
    told = found.to_json()
    on_front = [row["scale"] for row in told["rows"] if row["on_front"]]
    assert on_front == [row.scale for row in sorted(found.front, key=lambda row: row.scale)]
    lines = found.table().splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["0", "0.5", "1"]
    starred = [float(line.split()[0]) for line in lines if line.endswith("*")]
    assert starred == on_front
    assert str(found).endswith(
        f"adapters scaled; {found.tokens} tokens of the new task, {found.retained_tokens} retained"
    )


def test_the_best_scale_depends_on_the_budget_of_forgetting() -> None:
    def row(scale, perplexity, retained):
        losses = np.log([perplexity, retained])
        return RetentionRow(scale, losses[0], perplexity, losses[1], retained, 0.0)

    rows = (row(0, 40, 20), row(0.5, 20, 20.5), row(1, 10, 22), row(1.25, 9, 30))
    found = Retention(rows, "adapters", 1, 1)
    chosen = {budget: found.best(budget).scale for budget in (0, 0.02, 0.03, 0.11, 0.2, 10)}
    assert chosen == {0: 0, 0.02: 0, 0.03: 0.5, 0.11: 1, 0.2: 1, 10: 1.25}
    with pytest.raises(DataError, match="expected a share of 0 or more, such as 0.05, got -1"):
        found.best(-1)


def moved():
    llama, before = model(), {}
    for name, variable in structural_names(llama.keras).items():
        if name.endswith("kernel"):
            before[name] = variable.value
            variable.assign(variable * 1.1)
    return llama, before


def test_a_model_trained_as_a_whole_is_compared_with_what_it_was() -> None:
    llama, before = moved()
    by_values = retention(llama, retain=OLD, data=NEW, scales=[1], base=before, max_length=40)
    by_model = retention(llama, retain=OLD, data=NEW, scales=[1], base=model(), max_length=40)
    assert by_values == by_model
    assert by_values.turns == "weights" and by_values.rows[1].kl > 0


def test_merged_adapters_know_what_the_weights_were() -> None:
    llama = tuned()
    apart = retention(llama, retain=OLD, data=NEW, scales=[1], max_length=40)
    together = retention(llama.merge(), retain=OLD, data=NEW, scales=[1], max_length=40)
    assert together.turns == "weights"
    for one, other in zip(apart.rows, together.rows, strict=True):
        assert list(one.to_json().values()) == pytest.approx(list(other.to_json().values()), 1e-3)


def test_what_cannot_be_compared_is_refused() -> None:
    llama = tuned()
    with pytest.raises(DataError, match=r"scales: expected numbers such as 0, 0.5, 1, got \[\]"):
        retention(llama, retain=OLD, data=NEW, scales=[])
    with pytest.raises(DataError, match=r"scales: .* got \[nan\]"):
        retention(llama, retain=OLD, data=NEW, scales=[float("nan")])
    with pytest.raises(ModelError, match="has active adapters, which are scaled instead"):
        retention(llama, retain=OLD, data=NEW, base=model())
    headless = Model(replace(llama.backbone, language_head=None))
    with pytest.raises(ModelError, match="retention is of causal language models, and the one on"):
        retention(headless, retain=OLD, data=NEW)
    other = result_of(llama, TextClassification(("a", "b")))  # pyright: ignore
    with pytest.raises(ModelError, match="this result is of TextClassification"):
        retention(other, retain=OLD, data=NEW)


def test_the_command_prints_the_table_names_the_best_and_saves(tmp_path, capsys) -> None:
    out, plots = str(result_of(tuned()).save(tmp_path / "out")), str(tmp_path / "plots")
    (tmp_path / "old.txt").write_text("\n".join(OLD))
    (tmp_path / "new.jsonl").write_text("\n".join(map(json.dumps, NEW)))
    files = ["--retain", str(tmp_path / "old.txt"), "--data", str(tmp_path / "new.jsonl")]
    line = ["retention", out, *files, "--scales", "0", "1"]
    assert main([*line, "--budget", "0.1", "--plot", plots]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split()[0] == "scale"
    assert "best within 10.0%: scale " in printed and f"saved in {plots}" in printed
    told = json.loads((tmp_path / "plots" / "retention.json").read_text())
    assert [row["scale"] for row in told["rows"]] == [0, 1]
    assert (tmp_path / "plots" / "retention.png").is_file()
    assert main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == told
