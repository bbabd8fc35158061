"""The table of bad recipes: each mistake and what is said of it, and all of them at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunekit.errors import RecipeError
from tunekit.plans.phase import Phase, Schedule
from tunekit.recipe import Recipe


def mistakes(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match="the recipe has") as caught:
        Recipe.load(path, overrides)
    return [str(issue) for issue in caught.value.issues]


# Mistakes beside a plan that is right.
IN_SECTIONS = [
    # Names of fields.
    ("sed: 1", "sed: a recipe has no such field. Did you mean 'seed'?"),
    ("batch: {sise: 8}", "batch.sise: batch has no such field. Did you mean 'size'?"),
    (
        "augment: {randaugment: {num_op: 1}}",
        "augment.randaugment.num_op: augment.randaugment has no such field. "
        "Did you mean 'num_ops'?",
    ),
    (
        "learning_rate: 1e-3",
        "learning_rate: a recipe has no such field; it belongs in plan[0].learning_rate.",
    ),
    (
        "batch: {weight_decay: 0.1}",
        "batch.weight_decay: batch has no such field; it belongs in optimizer.weight_decay.",
    ),
    (
        "head: {zzz: 1}",
        "head.zzz: head has no such field; it has kind, pooling, hidden, activation, dropout, bias",
    ),
    # Types.
    ("seed: x", 'seed: expected a whole number; got "x".'),
    ("seed: 1.5", "seed: expected a whole number; got 1.5."),
    ("seed: true", "seed: expected a whole number; got true."),
    ("batch: {size: '8'}", 'batch.size: expected a whole number; got "8". Leave the quotes out.'),
    ("backbone: {name: 3}", "backbone.name: expected text; got 3. Quote it."),
    (
        "backbone: {pretrained: no}",
        'backbone.pretrained: expected true or false; got "no". Write false.',
    ),
    (
        "task: {multi_label: yes}",
        "task.multi_label: expected true or false, or 'auto'; got \"yes\". Write true.",
    ),
    ("optimizer: adamw", 'optimizer: expected a mapping of fields; got "adamw".'),
    ("data: {labels: cat}", 'data.labels: expected a list; got "cat".'),
    ("data: {labels: [cat, 1]}", "data.labels[1]: expected text; got 1. Quote it."),
    (
        "backbone: {image_size: big}",
        'backbone.image_size: expected a whole number, or a list; got "big".',
    ),
    (
        "backbone: {image_size: [224]}",
        "image_size: expected a whole number, or a longer list; got [224].",
    ),
    (
        "optimizer: {betas: [0.9, 0.99, 0.999]}",
        "optimizer.betas: expected a list of at most 2; got [0.9, 0.99, 0.999].",
    ),
    ("seed: null", "seed: expected a whole number; got null."),
    (
        "cache: ram\naugment: {horizontal_flip: true}",
        "cache.store: 'ram' keeps nothing: images are augmented anew in every pass; set "
        "cache.views to the number of versions to keep of each, or leave the augmentation out.",
    ),
    (
        "cache: {store: disk, views: 2}\naugment: {mixup: 0.2}",
        "cache.store: 'disk' keeps nothing: images are mixed within every batch anew; leave out "
        "augment.mixup and augment.cutmix, or set cache to off.",
    ),
    # Ranges.
    ("seed: -1", "seed: expected a number of at least 0; got -1."),
    ("batch: {size: 0}", "batch.size: expected a number of at least 1; got 0."),
    ("head: {dropout: 1}", "head.dropout: expected a number below 1; got 1."),
    (
        "optimizer: {clip_norm: 0}",
        "optimizer.clip_norm: expected a number above 0; got 0.",
    ),
    (
        "optimizer: {weight_decay: .nan}",
        "optimizer.weight_decay: expected a finite number, got nan.",
    ),
    ("backbone: {image_size: 4}", "backbone.image_size: expected a number of at least 8"),
    ("data: {train: ''}", 'data.train: expected text that is not empty; got "".'),
    # Words of a fixed choice.
    (
        "backbone: {dtype: bfloat}",
        "backbone.dtype: expected 'float32', 'bfloat16', 'float16', 'mixed_bfloat16' or "
        "'mixed_float16'; got \"bfloat\". Did you mean 'bfloat16'",
    ),
    ("method: heads", "of these as its name; got 'heads'. Did you mean 'head'?"),
    ("method: {rank: 3}", "or a mapping with one of these as its name; got None."),
    ("method: {name: lora, rnak: 3}", "method.rnak: method has no such field. Did you mean 'rank'"),
    ("method: {name: dora, rank: 0}", "method.rank: expected a number of at least 1; got 0."),
    (
        "method: {name: vera, alpha: 2}",
        "method.alpha: method has no such field; it has name, rank,",
    ),
    (
        "method: {name: lora, rank_pattern: {'(': 3}}",
        "method.rank_pattern: '(' is not a regular expression",
    ),
    ("method: {name: lora, rank_spread: 2}", "method.rank_spread: ranks are spread by init 'eva'"),
    ("method: {name: lora, init: loftq}", "method.init: 'loftq' begins with what quantisation"),
    ("backbone: {quantize: nf4}", "backbone.quantize: kernels packed as nf4 cannot train"),
    (
        "task: {class_weights: ballanced}",
        "task.class_weights: expected 'balanced', or a list; got \"ballanced\". "
        "Did you mean 'balanced'?",
    ),
    ("optimizer: {name: adamx}", "Did you mean 'adam' or 'adamw'?"),
    # Right alone, impossible together.
    ("batch: {size: 10, accumulate: 4}", "batch.accumulate: size 10 does not divide into 4"),
    ("head: {hidden: [64]}", "head.hidden: only an 'mlp' head has hidden layers"),
    ("augment: {random_resized_crop: [0.9, 0.1]}", "augment.random_resized_crop: expected shares"),
    ("data: {labels: [a, a]}", "data.labels: expected each name once"),
    ("data: {train: x, validation: x}", "data.validation: 'x' is also train"),
    ("runtime: {resume: true}", "runtime.resume: there is no folder to resume from"),
    ("runtime: {checkpoint_every: often}", "runtime.checkpoint_every: expected a duration such as"),
    ("runtime: {checkpoint_every: 0 steps}", "runtime.checkpoint_every: expected a duration above"),
    (
        "task: {class_weights: [1, 2]}\ndata: {labels: [a, b, c]}",
        "task.class_weights: expected one weight per label of data.labels, 3; got 2.",
    ),
    ("runtime: {profile_steps: '7'}", "runtime.profile_steps: expected steps as FIRST:END, such"),
    ("cache: dsk", "cache.store: expected 'auto', 'ram', 'disk' or 'off'; got \"dsk\"."),
    ("cache: {stor: disk}", "cache.stor: cache has no such field. Did you mean 'store'?"),
    ("cache: false", "cache.store: expected 'auto', 'ram', 'disk' or 'off'; got false."),
    # The text.
    ("seed: 1\nseed: 2", "seed: line 3: given a second time; keep one."),
    ("seed: !!int one", "seed: line 2: a recipe has no tags"),
]


@pytest.mark.parametrize(("text", "expected"), IN_SECTIONS, ids=[row[0] for row in IN_SECTIONS])
def test_a_mistake_is_reported_once_and_in_full(tmp_path: Path, text: str, expected: str) -> None:
    (said,) = mistakes(tmp_path, f"plan: [{{epochs: 1}}]\n{text}")
    assert expected in said


IN_THE_PLAN = [
    ("", "plan: is required. The phases of training"),
    ("plan: []", "plan: expected a list of at least 1; got []."),
    ("plan: {epochs: 1}", 'plan: expected a list; got {"epochs": 1}.'),
    ("plan: [1]", "plan[0]: expected a mapping of fields; got 1."),
    ("plan: [{epochs: 0}]", "plan[0].epochs: expected a number above 0; got 0."),
    ("plan: [{epochs: .inf}]", "plan[0].epochs: expected a finite number, got inf."),
    ("plan: [{steps: 1.5}]", "plan[0].steps: expected a whole number; got 1.5."),
    ("plan: [{}]", "plan[0].epochs: expected a length: give epochs, or steps."),
    ("plan: [{epochs: 1, steps: 9}]", "plan[0].steps: epochs is 1 too, and a phase has one length"),
    ("plan: [{epochs: 1}, {epoch: 2}]", "plan[1].epoch: plan[1] has no such field."),
    (
        "plan: [{epochs: 1, learning_rate: 0}]",
        "plan[0].learning_rate: expected a number above 0; got 0.",
    ),
    ("plan: [{epochs: 1, schedule: cosin}]", "got \"cosin\". Did you mean 'cosine' or 'continue'?"),
    ("plan: [{epochs: 1, warmup: 5}]", "plan[0].warmup: expected text; got 5. Quote it."),
    ("plan: [{epochs: 1, warmup: soon}]", "plan[0].warmup: expected a duration such as '3 epochs'"),
    (
        "plan: [{epochs: 2, warmup: 3 epochs}]",
        "plan[0].warmup: 3 epochs leaves nothing of the phase of 2 epochs after it",
    ),
    ("plan: [{steps: 9, warmup: 9 steps}]", "plan[0].warmup: 9 steps leaves nothing of the phase"),
    ("plan: [{steps: 9, warmup: 100%}]", "plan[0].warmup: 100% leaves nothing of the phase after"),
    ("plan: [{epochs: 1, train: [1]}]", "plan[0].train[0]: expected text; got 1. Quote it."),
    ("plan: [{epochs: 1, train: 3}]", "plan[0].train: expected a list, or text; got 3. Quote it."),
    (
        "plan: [{epochs: 1, train: hed}]",
        "plan[0].train: 'hed' is no selector. Did you mean 'head'?",
    ),
    ("plan: [{epochs: 1, train: []}]", "plan[0].train: names nothing; give a selector"),
    (
        "method: head\nplan: [{epochs: 1}, {epochs: 1, train: 'head, last 2'}]",
        "plan[1].train: 'last 2' reaches beyond the head, and method 'head' trains nothing else",
    ),
    ("- plan", "expected a mapping of fields, got a list."),
    # What only a phase after another, or beyond the head, can have.
    (
        "plan: [{epochs: 1, schedule: continue}]",
        "plan[0].schedule: no phase comes before it to go on with; choose a course such as cosine.",
    ),
    (
        "plan: [{epochs: 1, multipliers: {hed: 2}}]",
        "plan[0].multipliers: 'hed' is no selector. Did you mean 'head'?",
    ),
    (
        "plan: [{epochs: 1, multipliers: {head: 0}}]",
        "plan[0].multipliers.head: expected a number above 0; got 0.",
    ),
    (
        "plan: [{epochs: 1, train: head, l2_sp: 0.1}]",
        "plan[0].l2_sp: acts on the backbone's weights, and only the head trains; leave it out.",
    ),
    ("plan: [{epochs: 1, mixout: 1}]", "plan[0].mixout: expected a number below 1; got 1."),
    (
        "plan: [{epochs: 1, batch: {size: 10, accumulate: 4}}]",
        "plan[0].batch.accumulate: size 10 does not divide into 4",
    ),
    (
        "plan: [{epochs: 1, optimizer: {nam: sgd}}]",
        "plan[0].optimizer.nam: plan[0].optimizer has no such field. Did you mean 'name'?",
    ),
    ("plan: [{epochs: 1, batch_norm: frosen}]", "Did you mean 'frozen'?"),
    # Builders.
    (
        "plan: [{epochs: 1}, {build: gradual_unfreze}]",
        "plan[1].build: expected one of 'head_only', 'lp_ft', ",
    ),
    ("plan: [{build: layer_decai}]", "got \"layer_decai\". Did you mean 'layer_decay'?"),
    ("plan: [{build: 3}]", "'norm_only'; got 3."),
    ("plan: [{build: }]", "'norm_only'; got null."),
    (
        "plan: [{build: layer_decay, factor: 2}]",
        "plan[0].factor: expected a number of at most 1; got 2.",
    ),
    (
        "plan: [{build: layer_decay, factr: 0.5}]",
        "plan[0].factr: plan[0] has no such field. Did you mean 'factor'?",
    ),
    ("plan: [{build: layer_decay, train: hed}]", "plan[0].train: 'hed' is no selector."),
    ("plan: [{build: layer_decay, train: [1]}]", "plan[0].train[0]: expected text; got 1."),
    ("plan: [{build: layer_decay, warmup: soon}]", "plan[0].warmup: expected a duration such as"),
    (
        "plan: [{build: surgical}]",
        "plan[0].block: is required. Which one, counted as in Python: 0 is the first block",
    ),
    ("plan: [{build: lp_ft, epochs: 2}]", "plan[0].head_epochs: expected fewer than the 2 epochs"),
    (
        "plan: [{build: bit_fit, schedule: linear}]",
        "plan[0].schedule: plan[0] has no such field; it has epochs, learning_rate, build. "
        "`tunekit plan-preview` writes its phases out",
    ),
    (
        "plan: [{factor: 0.5, epochs: 1}]",
        "plan[0].factor: plan[0] has no such field; build: layer_decay or ulmfit has.",
    ),
    (
        "method: head\nplan: [{build: head_only}, {build: ulmfit}]",
        "plan[1].build: 'ulmfit' reaches beyond the head, and method 'head' trains nothing else; "
        "set method: full, or build: head_only.",
    ),
    (
        "method: head\nplan: [{build: layer_decay, train: all}]",
        "plan[0].train: 'all' reaches beyond the head",
    ),
    ("plan: [", "bad.yaml, line 1, column 8 is not YAML"),
]


@pytest.mark.parametrize(("text", "expected"), IN_THE_PLAN, ids=[row[0] for row in IN_THE_PLAN])
def test_a_mistake_in_the_plan_is_reported_once_and_in_full(
    tmp_path: Path, text: str, expected: str
) -> None:
    (said,) = mistakes(tmp_path, text)
    assert expected in said


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("plan.3.epochs=2", "plan[3]: the override has no place: plan has 1 item, 0."),
        ("plan.0.epoch=2", "plan[0].epoch: plan[0] has no such field. Did you mean 'epochs'?"),
        ("bacth.size=2", "bacth: a recipe has no such field. Did you mean 'batch' or"),
        ("batch.size=two", 'batch.size: expected a whole number; got "two".'),
        ("batch.size", "override 'batch.size' is not of the form path=value"),
    ],
)
def test_a_mistaken_override_is_reported_like_a_mistaken_field(
    tmp_path: Path, override: str, expected: str
) -> None:
    (said,) = mistakes(tmp_path, "plan: [{epochs: 1}]", override)
    assert expected in said


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_recipe(tmp_path: Path) -> None:
    text = """
        runtime: {resume: true}
        batch: {size: 10, accumulate: 4}
        plan:
          - {epochs: 1, steps: 1}
          - {epochs: -1, warmup: soon}
          - 3
        augment: {mixup: a lot}
        backbone: {name: 1}
        batch: {size: 10, accumulate: 4}
    """
    said = mistakes(tmp_path, text, "seed=x", "nowhere", "plan.9.steps=1")
    assert [line.partition(":")[0] for line in said] == [
        "override 'nowhere' is not of the form path=value, such as plan.0.epochs=2.",
        "seed",
        "backbone.name",
        "augment.mixup",
        "plan[9]",
        "plan[1].epochs",
        "plan[2]",
        "plan[0].steps",
        "batch",
        "batch.accumulate",
        "runtime.resume",
    ]


def test_every_mistake_of_a_builder_is_reported_at_once(tmp_path: Path) -> None:
    said = mistakes(
        tmp_path, "plan: [{build: ulmfit, epochs: x, factor: 0}, {build: lp_ft, head: 1}]"
    )
    assert [line.partition(":")[0] for line in said] == [
        "plan[0].epochs",
        "plan[0].factor",
        "plan[1].head",
    ]


@pytest.mark.parametrize("schedule", ["one_cycle", "slanted_triangular", "continue"])
def test_a_schedule_without_a_warmup_is_not_judged_by_it(schedule: Schedule) -> None:
    assert Phase(epochs=1, schedule=schedule, warmup="2 epochs").issues() == []


def test_a_combination_is_not_judged_by_a_value_that_is_wrong_itself(tmp_path: Path) -> None:
    # Without `epochs` the phase has no length, but what is wrong is its sign.
    (said,) = mistakes(tmp_path, "plan: [{epochs: -1}]")
    assert "expected a number above 0" in said


def test_a_file_that_is_no_text_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "picture.yaml"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(RecipeError, match="picture.yaml cannot be read"):
        Recipe.load(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vision/linear_prob", "got 'vision/linear_prob'. Did you mean 'vision/linear_probe'"),
        ("linear_probe", "Did you mean 'vision/linear_probe'?"),
        ("nothing/like/it.yaml", "`tunekit ls` lists the shipped ones."),
    ],
)
def test_a_recipe_that_is_not_there_is_answered_with_near_names(name: str, expected: str) -> None:
    with pytest.raises(RecipeError, match="expected a YAML file or a shipped recipe") as caught:
        Recipe.load(name)
    assert expected in str(caught.value)
