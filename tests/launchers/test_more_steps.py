"""A run that is given other steps: what is refused and why, and a whole run by the launcher."""

import json

import pytest
from launcher_cases import call, results_of

from experiments import language_model
from experiments.common.more_steps import continued, kept_results
from nl_jax import InputError

STORED = {"steps": 100, "schedule": "constant", "warmup_steps": 10, "learning_rate": 0.1, "seed": 0}


def go_on(workdir, stored, done, **given):
    (workdir / f"hope/seed_0/checkpoints/{done}").mkdir(parents=True)
    return continued(workdir, stored, {**stored, **given}, has_results=False)


@pytest.mark.parametrize(
    ("schedule", "done", "given"),
    [
        ("constant", 100, {"steps": 200}),
        ("constant", 60, {"steps": 60}),
        ("constant", 100, {"steps": 200, "schedule": "wsd"}),
        ("wsd", 80, {"steps": 200}),
        ("wsd", 80, {"steps": 90, "schedule": "constant"}),
        ("cosine", 0, {"steps": 200}),
        ("cosine", 100, {}),
    ],
)
def test_what_goes_on(schedule, done, given, tmp_path):
    stored = {**STORED, "schedule": schedule}
    assert go_on(tmp_path, stored, done, **given) == {**stored, **given}


@pytest.mark.parametrize(
    ("schedule", "done", "given"),
    [
        ("cosine", 100, {"steps": 200}),
        ("cosine", 20, {"steps": 50}),
        ("constant", 100, {"steps": 200, "schedule": "cosine"}),
        ("constant", 100, {"steps": 110, "schedule": "wsd"}),
        ("wsd", 100, {"steps": 200}),
        ("wsd", 82, {"steps": 200}),
    ],
)
def test_what_cannot_go_on_says_why(schedule, done, given, tmp_path):
    with pytest.raises(
        InputError, match=r"would have had other learning rates.*expected --steps=100, or a new workdir"
    ):
        go_on(tmp_path, {**STORED, "schedule": schedule}, done, **given)
    with pytest.raises(InputError, match="has taken 150 steps; expected as many or more"):
        go_on(tmp_path, STORED, 150, steps=149)


def test_other_flags_are_as_strict_as_ever(tmp_path):
    assert go_on(tmp_path, STORED, 100, steps=200, learning_rate=0.2)["learning_rate"] == 0.1  # so it is compared


def test_earlier_results_are_found_that_of_the_most_steps_first(tmp_path):
    for name in ("results.json", "results_90.json", "results_400.json", "results_x.json", "results_1.json.tmp"):
        (tmp_path / name).touch()
    assert [path.name for path in kept_results(tmp_path)] == ["results_400.json", "results_90.json"]


@pytest.mark.slow
def test_a_finished_run_goes_on_with_more_steps(small_models, tmp_path):
    (tmp_path / "data.txt").write_text("one two three four five " * 400)
    flags = [f"--data={tmp_path / 'data.txt'}", "--models=transformer", "--batch_size=2", "--seq_len=16"]
    flags += ["--eval_every=2", "--checkpoint_every=2", "--schedule=constant", "--warmup_steps=2"]

    def run(name, steps):
        assert call(language_model.main, *flags, f"--workdir={tmp_path / name}", f"--steps={steps}") == 0
        return results_of(tmp_path / name)["models"]["transformer"]

    first = run("more", 4)
    more, whole = run("more", 8), run("whole", 8)
    for key in ("tokens", "validation_bits_per_byte", "test_bits_per_byte"):
        assert more[key] == whole[key] != first[key]
    kept = json.loads((tmp_path / "more/results_4.json").read_text())
    assert kept["models"]["transformer"] == first
    assert json.loads((tmp_path / "more/config.json").read_text())["flags"]["steps"] == 8
    assert run("more", 8) == more
