"""The frame of the evaluation suite: one program for all rates, the choice of the rate, what is tested, resuming."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from experiments.eval_runs.evaluation import Evaluation, Subtask
from experiments.eval_runs.flags import rates_of
from experiments.eval_runs.main import main
from experiments.eval_runs.programs import rated_program, set_rate_factor
from experiments.eval_runs.running import Runner
from experiments.eval_runs.table import rows_of
from nl_jax import Diverged
from nl_jax.models import LanguageModel, named_config
from nl_jax.parallel import parse_mesh
from nl_jax.tasks import recall_batch
from nl_jax.training import compile_step, init_state, make_optimizer

CONFIG = named_config("hope_attention", "tiny", vocab_size=12, width=8, num_layers=1, num_heads=2, mlp_hidden=16)


def batch(seed, step):
    return recall_batch(seed, step, batch_size=4, seq_len=16, vocab_size=12, pairs=2)


@pytest.fixture(scope="module")
def program():
    return rated_program(LanguageModel, CONFIG, 6, batch(0, 1))


def trained(program, rate):
    state = set_rate_factor(program.init(jax.random.key(0)), rate)
    for step in range(1, 6):
        state, _ = program.take_step(state, batch(0, step))
    return state.model


@pytest.mark.parametrize("rate", [1e-3, 3e-2])
def test_the_factor_is_the_learning_rate(program, rate):
    mesh = parse_mesh(devices=jax.local_devices()[:1])
    optimizer = make_optimizer(learning_rate=rate, steps=6, cms_periods=CONFIG.optimizer_periods)
    state = init_state(lambda: LanguageModel(CONFIG, rngs=nnx.Rngs(jax.random.key(0))), optimizer)
    step = compile_step(optimizer, mesh, jax.eval_shape(lambda: state), batch(0, 1))
    for number in range(1, 6):
        state, _ = step(state, batch(0, number))
    for found, expected in zip(jax.tree.leaves(trained(program, rate)), jax.tree.leaves(state.model), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_another_factor_gives_another_model(program):
    one, other = (jax.tree.leaves(trained(program, rate))[0] for rate in (1e-3, 3e-2))
    assert not np.allclose(one, other, atol=1e-4)


@dataclasses.dataclass
class Scorer:
    """Scores by the size of the parameters' change, and counts what is asked of it."""

    tests: int = 0

    def validate(self, model, mesh):
        return {"score": float(sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(model)))}

    def test(self, model, mesh):
        self.tests += 1
        return {"size": self.validate(model, mesh)["score"]}


def evaluation_of(scorer, **changes):
    sizes = {"vocab_size": 12, "context_length": 16}

    def subtasks(values):
        return {name: Subtask(sizes, batch, scorer.validate, scorer.test) for name in values.subtasks}

    small = {"width": 8, "num_layers": 1, "batch_size": 4, "steps": 3, "eval_every": 1, "seeds": 2}
    given = {
        "name": "evals.own",
        "models": ("linear_attention",),
        "names": ("first", "second"),
        "subtasks": subtasks,
        "score": "score",
        "shown": {"size": "size"},
        "presets": {"quick": small | {"subtasks": ["first"]}, "full": small},
        "paper": {"linear_attention": {"first": "12.3"}},
        "references": lambda values: {"nothing": {"first": {"size": 0.5}}},
    }
    return Evaluation(**given | changes)


def run(evaluation, workdir, *more):
    assert main(evaluation, "", ["own", f"--workdir={workdir}", *more]) == 0
    return json.loads((workdir / "results.json").read_text())


def test_the_best_rate_is_taken_and_tested_data_is_looked_at_once_a_seed(tmp_path, capsys):
    scorer = Scorer()
    results = run(evaluation_of(scorer), tmp_path / "run", "--learning_rates=1e-5,1e-3,1e-1")
    cell = results["subtasks"]["first"]["linear_attention"]
    assert set(cell["rates"]) == {"1e-05", "0.001", "0.1"}
    best = max(cell["rates"], key=cell["rates"].get)
    assert cell["learning_rate"] == float(best)
    assert cell["seeds"][0]["score"] == cell["rates"][best]  # the run that was tried, not another
    assert len(cell["seeds"]) == 2
    assert cell["seeds"][0]["score"] != cell["seeds"][1]["score"]
    at_best = [seed["test_at_best"] == seed["test"] for seed in cell["seeds"]]
    assert scorer.tests == 2 + at_best.count(False)
    assert list(results["subtasks"]) == ["first"]
    out = capsys.readouterr().out
    assert "12.3" in out
    assert "nothing" in out
    rows = rows_of(results, "first")
    assert {len(row) for row in rows} == {len(rows[0])}
    assert (tmp_path / "run/results.png").stat().st_size > 1000


def test_a_rate_that_reaches_the_goal_ends_the_search_and_the_run(tmp_path):
    results = run(evaluation_of(Scorer(), goal=0.0), tmp_path / "run", "--learning_rates=1e-5,1e-3,1e-1")
    cell = results["subtasks"]["first"]["linear_attention"]
    assert list(cell["rates"]) == ["0.001"]
    assert [seed["steps"] for seed in cell["seeds"]] == [2, 2]


def test_what_is_there_is_not_run_again_and_what_is_missing_is(tmp_path):
    workdir = tmp_path / "run"
    whole = run(evaluation_of(Scorer()), workdir, "--learning_rates=1e-3,1e-1", "--preset=full")
    scorer = Scorer()
    assert run(evaluation_of(scorer), workdir, "--learning_rates=1e-3,1e-1", "--preset=full") == whole
    assert scorer.tests == 0
    cut = json.loads(json.dumps(whole))
    del cut["subtasks"]["first"]["linear_attention"]["seeds"][:]
    cut["subtasks"]["second"]["linear_attention"]["rates"].popitem()
    del cut["subtasks"]["second"]["linear_attention"]["seeds"][1:]
    (workdir / "results.json").write_text(json.dumps(cut))
    again = run(evaluation_of(Scorer()), workdir, "--learning_rates=1e-3,1e-1", "--preset=full")

    def figures(results):
        return {
            (subtask, model): [(seed["score"], seed["test"]) for seed in cell["seeds"]]
            for subtask, cells in results["subtasks"].items()
            for model, cell in cells.items()
        }

    assert figures(again) == figures(whole)


def test_a_flag_that_is_given_goes_before_the_preset(tmp_path):
    results = run(evaluation_of(Scorer()), tmp_path / "run", "--steps=2", "--learning_rates=1e-3", "--seeds=1")
    assert results["configuration"]["flags"]["steps"] == 2
    assert results["configuration"]["flags"]["width"] == 8
    assert results["subtasks"]["first"]["linear_attention"]["seeds"][0]["steps"] == 2


def test_the_middle_rate_comes_first():
    class Values:
        learning_rates = ("1e-1", "1e-3", "1e-2")

    assert rates_of(Values) == [1e-2, 1e-3, 1e-1]


def test_a_seed_that_is_not_finite_is_left_out_and_all_else_is_run(tmp_path, capsys, monkeypatch):
    """The second seed of the first subtask is not finite, and the first one of the second subtask."""
    tested, calls = Runner._tested, []

    def fails(self, cell, trained):
        calls.append(cell.subtask)
        if len(calls) in (2, 3):
            raise Diverged("not finite at 16,384 tokens")
        return tested(self, cell, trained)

    monkeypatch.setattr(Runner, "_tested", fails)
    flags = ["own", f"--workdir={tmp_path / 'run'}", "--learning_rates=1e-3", "--preset=full"]
    assert main(evaluation_of(Scorer()), "", flags) == 1
    assert "the table lacks 2 runs; first, linear_attention, seed 1: not finite" in capsys.readouterr().err
    cells = json.loads((tmp_path / "run/results.json").read_text())["subtasks"]
    first, second = (cells[name]["linear_attention"] for name in ("first", "second"))
    assert [entry["seed"] for entry in first["seeds"]] == [0]
    assert [entry["seed"] for entry in second["seeds"]] == [1]
    assert list(first["diverged"]) == ["1"]
    assert list(second["diverged"]) == ["0"]
    assert main(evaluation_of(Scorer()), "", flags) == 1
    assert len(calls) == 4  # nothing is run again


def test_a_model_that_no_rate_trains_is_left_out(tmp_path, capsys, monkeypatch):
    def diverged(self, cell, rate, seed):
        raise Diverged("not finite in step 1")

    monkeypatch.setattr(Runner, "_train", diverged)
    flags = ["own", f"--workdir={tmp_path / 'run'}", "--learning_rates=1e-3,1e-2"]
    assert main(evaluation_of(Scorer()), "", flags) == 1
    assert "seed all: not finite at any of --learning_rates=0.01,0.001" in capsys.readouterr().err
    assert main(evaluation_of(Scorer()), "", flags) == 1


def test_attention_without_a_convolution_has_heads_of_its_own(tmp_path):
    models = "--models=transformer,transformer_conv,linear_attention"
    evaluation = evaluation_of(Scorer(), goal=0.0)
    run(evaluation, tmp_path / "run", models, "--num_heads=2", "--attention_heads=4", "--learning_rates=1e-3")
    given = json.loads((tmp_path / "run/config.json").read_text())["models"]
    heads = {name.removeprefix("first/"): config["num_heads"] for name, config in given.items()}
    assert heads == {"transformer": 4, "transformer_conv": 2, "linear_attention": 2}
