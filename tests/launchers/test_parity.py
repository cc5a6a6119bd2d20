"""Parity: the generator against what the task says, shares of whole sequences, mixer options, and the launcher."""

import json
import shutil

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launcher_cases import results_of
from launcher_table import files

from experiments import parity
from experiments.common import task_training
from experiments.eval_runs.batches import split
from nl_jax import InputError
from nl_jax.evaluation import Accuracies, accuracies
from nl_jax.parallel import parse_mesh
from nl_jax.tasks import PARITY_VOCABULARY, parity_batch

PADDING = 2


def strings_of(batch):
    """The strings of a batch, as tuples."""
    rows = zip(batch["inputs"], batch["mask"], strict=True)
    return [tuple(inputs[: int(mask.sum())].tolist()) for inputs, mask in rows]


@settings(deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 12),
    st.integers(0, 12),
    st.integers(0, 2**31 - 1),
    st.integers(0, 10**6),
    st.booleans(),
)
def test_every_symbol_has_its_label(count, low, more, seed, step, distinct):
    high = low + more
    count = min(count, 2 ** (low - 1))
    sizes = {"batch_size": count, "min_length": low, "max_length": high, "distinct": distinct}
    batch = parity_batch(seed, step, **sizes)
    shape = (count, high)
    assert {key: (array.shape, array.dtype) for key, array in batch.items()} == {
        "inputs": (shape, np.int32),
        "targets": (shape, np.int32),
        "mask": (shape, np.float32),
    }
    for inputs, targets, mask in zip(*batch.values(), strict=True):
        length = next((t for t in range(high) if inputs[t] == PADDING), high)
        assert low <= length <= high
        assert list(mask) == [1] * length + [0] * (high - length)
        assert set(inputs[length:]) <= {PADDING}
        assert set(targets[length:]) <= {0}
        ones = 0
        for symbol, target in zip(inputs[:length], targets[:length], strict=True):
            assert symbol in (0, 1)
            ones += symbol
            assert target == (1 if ones % 2 == 0 else 0)
        assert ones % 2 == 0
    if distinct:
        assert len(set(strings_of(batch))) == count
    np.testing.assert_equal(parity_batch(seed, step, **sizes), batch)


def test_strings_are_drawn_by_the_coin():
    """Shares of all strings of 1 to 4 symbols, against their probabilities as the coin, drawn by hand, gives them."""
    low, high, p = 1, 4, 2 / 6  # m = 2: a 0, a 1 and the end each come with 1/3
    expected = {}

    def grow(string, probability):
        ends = probability * (1 if len(string) == high else 1 - 2 * p)
        whole = string + (1,) * (sum(string) % 2)
        if low <= len(string) and len(whole) <= high:
            expected[whole] = expected.get(whole, 0) + ends
        if len(string) < high:
            for symbol in (0, 1):
                grow((*string, symbol), probability * p)

    grow((), 1.0)
    count = 50_000
    strings = strings_of(parity_batch(0, 0, batch_size=count, min_length=low, max_length=high))
    assert set(strings) <= set(expected)
    total = sum(expected.values())
    for string, probability in expected.items():
        share = probability / total
        assert strings.count(string) / count == pytest.approx(share, abs=5 * (share / count) ** 0.5), string


def test_distinct_strings_are_the_first_of_each():
    sizes = {"batch_size": 12, "min_length": 1, "max_length": 6}
    strings = strings_of(parity_batch(3, 4, **sizes, distinct=True))
    drawn = strings_of(parity_batch(3, 4, **sizes))
    assert len(set(drawn)) < len(drawn)
    unique = list(dict.fromkeys(drawn))
    assert strings[: len(unique)] == unique
    everything = strings_of(parity_batch(0, 0, batch_size=60, min_length=3, max_length=6, distinct=True))
    assert len(set(everything)) == 60 == 4 + 8 + 16 + 32


def test_default_validation_sets_have_no_duplicates_and_their_windows():
    values = parity.define_flags()
    values(["parity"])
    for batches, (low, high) in zip(parity.validation(values), ((2, 50), (51, 100)), strict=True):
        assert {batch["inputs"].shape for batch in batches} == {(32, high)}
        strings = [string for batch in batches for string in strings_of(batch) if string]
        assert len(set(strings)) == len(strings) == 500
        assert {low, high} <= set(map(len, strings)) <= set(range(low, high + 1))


def test_batches_are_fixed_by_seed_and_step():
    sizes = {"batch_size": 4, "min_length": 2, "max_length": 50}
    seeds = (0, 1, task_training.VALIDATION_SEED)
    batches = [parity_batch(seed, step, **sizes)["inputs"].tobytes() for seed in seeds for step in (0, 1)]
    assert len(set(batches)) == len(batches)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"batch_size": 0}, "batch_size=0: expected at least 1"),
        ({"min_length": 0}, "min_length=0: expected at least 1"),
        ({"max_length": 1}, "max_length=1: expected at least 2"),
        ({"batch_size": 15, "distinct": True}, "15 distinct strings .* 2 to 4 symbols long: expected at most 14"),
    ],
)
def test_sizes_that_do_not_fit_are_named(change, problem):
    with pytest.raises(InputError, match=problem):
        parity_batch(0, 0, **{"batch_size": 4, "min_length": 2, "max_length": 4, **change})


def test_whole_sequences_are_counted_once_and_padding_not_at_all():
    strings = parity_batch(0, 0, batch_size=5, min_length=2, max_length=9)
    batches = list(split(strings, 2))  # the last one has a copy that must not count
    wrong = strings["mask"] == 0  # after the end of every string
    wrong[1, :2] = True
    wrong[4, 0] = True
    answers = np.where(wrong, 1 - strings["targets"], strings["targets"])
    answers = np.concatenate([answers, 1 - answers[4:]])
    logits = iter(jax.nn.one_hot(answers, PARITY_VOCABULARY).reshape(3, 2, 9, PARITY_VOCABULARY))

    results = []
    for batch in batches:
        model = jax.tree_util.Partial(lambda logits, inputs, state: (logits, state), next(logits))
        results.append(accuracies(model, [batch], parse_mesh(devices=jax.devices()[:1])))
    lengths = strings["mask"].sum(1)
    assert [result.sequences for result in results] == [0.5, 1.0, 0.0]
    positions = [1 - 2 / lengths[:2].sum(), 1.0, 1 - 1 / lengths[4]]
    np.testing.assert_allclose([result.positions for result in results], positions, rtol=1e-6)


FLAGS = ["--max_length=8", "--long_length=12", "--validation_sequences=20", "--width=8", "--num_layers=1"]
FLAGS += ["--chunk_size=4", "--batch_size=8", "--steps=5", "--eval_every=2", "--seeds=2", "--models=delta_net"]
FLAGS += ["--mixer_option=allow_neg_eigval=True", '--mixer_option=eta=("sigmoid", 1.0)']


def call(*arguments):
    """Exit code of the launcher run in this process."""
    return parity.main(["parity", *map(str, arguments)])


def test_given_options_are_added_to_the_models_own():
    def options(*arguments):
        values = parity.define_flags()
        values(["parity", "--models=hope_frozen,delta_net", *arguments])
        return [dict(config.mixer_options) for config in task_training.check(parity.TASK, values).values()]

    assert options() == [{"frozen": True}, {}]
    given = {"rule": "paper", "eta": ("softplus", 0.0)}
    arguments = ["--mixer_option=rule=paper", '--mixer_option=eta=("softplus",0.0)']
    assert options(*arguments) == [{"frozen": True, **given}, given]
    assert options("--models=hope_frozen", "--mixer_option=frozen=False") == [{"frozen": False}]


FIGURES = ["accuracy", "accuracy_short", "sequences_short", "sequences_long"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    assert call(f"--workdir={workdir}", *FLAGS) == 0
    return workdir


def test_a_whole_run(finished, capsys):
    results = results_of(finished)
    figures = results["models"]["delta_net"]
    assert list(figures) == [
        "parameters",
        *FIGURES,
        *(f"best_{name}" for name in FIGURES),
        "steps_to_all_right",
        "steps",
    ]
    assert (figures["steps"], figures["steps_to_all_right"]) == ([5, 5], [None, None])
    config = json.loads((finished / "config.json").read_text())
    options = [["allow_neg_eigval", True], ["eta", ["sigmoid", 1.0]]]
    assert config["models"]["delta_net"]["mixer_options"] == options
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    for seed in (0, 1):
        run = [row for row in rows if row["model"] == f"delta_net/seed_{seed}"]
        assert [row["step"] for row in run if set(FIGURES) <= set(row)] == [2, 4, 5]
        for name in FIGURES:
            assert run[-1][name] == figures[name][seed]
        assert 0 < figures["accuracy"][seed] < 1
        assert list((finished / "delta_net" / f"seed_{seed}" / "tensorboard").glob("events.*"))
    assert (finished / "accuracy.png").read_bytes().startswith(b"\x89PNG")

    before = files(finished)
    capsys.readouterr()
    assert call(f"--workdir={finished}", *FLAGS) == 0  # only prints the table again
    out, err = capsys.readouterr()
    assert err == ""
    row = next(line for line in out.splitlines() if line.startswith("delta_net"))
    for name in ("sequences_short", "sequences_long", "accuracy"):
        assert f"{np.mean(figures[name]):.3f} ± " in row
    assert "0 of 2" in row
    assert files(finished) == before


def test_other_options_are_refused(finished, capsys):
    assert call(f"--workdir={finished}", *FLAGS, "--mixer_option=alpha=0.5") == 2
    assert "holds a run with other flags: mixer_option" in capsys.readouterr().err


def test_finished_seeds_are_kept_and_the_rest_is_run(finished, tmp_path, capsys):
    """As after a kill in the second seed."""
    workdir = shutil.copytree(finished, tmp_path / "run")
    expected = results_of(workdir)
    partial = results_of(workdir)
    for values in partial["models"]["delta_net"].values():
        if isinstance(values, list):
            values.pop()
    (workdir / "results.json").write_text(json.dumps(partial))
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(lines[:-2]))
    capsys.readouterr()
    assert call(f"--workdir={workdir}", *FLAGS) == 0
    assert "seed_0" not in capsys.readouterr().err
    assert (workdir / "metrics.jsonl").read_text().splitlines(keepends=True) == lines
    assert results_of(workdir) == expected


def test_a_run_ends_when_all_is_right_twice_in_a_row(tmp_path, monkeypatch):
    """The short set's and the long set's figures, evaluation by evaluation."""
    shares = [(1.0, 0.5), (1.0, 1.0), (0.9, 1.0), (1.0, 1.0), (1.0, 1.0)]
    scores = iter(
        Accuracies(positions=(1 + share) / 2, sequences=share, classes=share) for pair in shares for share in pair
    )
    monkeypatch.setattr(parity, "accuracies", lambda *_: next(scores))
    assert call(f"--workdir={tmp_path}", *FLAGS, "--steps=100", "--eval_every=3", "--seeds=1") == 0
    figures = results_of(tmp_path)["models"]["delta_net"]
    assert (figures["sequences_long"], figures["steps_to_all_right"], figures["steps"]) == ([1.0], [6], [15])


def test_best_figures_are_of_one_evaluation():
    names = [*FIGURES]
    evaluations = [dict(zip(names, figures, strict=True)) for figures in [(0.5, 0.9, 0.8, 0.1), (0.6, 0.7, 0.5, 0.5)]]
    worst = dict.fromkeys(names, 0.0)
    outcome = parity.outcome([*evaluations, worst])
    assert outcome == worst | {f"best_{name}": value for name, value in evaluations[1].items()}
