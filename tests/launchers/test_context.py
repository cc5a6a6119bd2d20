"""The launcher that compares models by position in a long context, from its command line."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from launcher_cases import results_of

from experiments import context
from experiments.common import launcher
from nl_jax.data import evaluation_batches, load_text_data
from nl_jax.evaluation import bits_by_position
from nl_jax.parallel import parse_mesh

FLAGS = ["--models=transformer,transformer_conv", "--steps=4", "--batch_size=2", "--seq_len=80", "--seeds=2"]
FLAGS += ["--eval_every=2", "--checkpoint_every=2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "data.txt"
    path.write_bytes(Path(launcher.__file__).read_bytes())
    return path


def call(*arguments):
    return context.main(["context", *map(str, arguments)])


def test_bits_by_position_average_the_targets_there(data):
    batches = evaluation_batches(load_text_data(str(data)).validation, batch_size=3, seq_len=50)
    logits = jax.random.normal(jax.random.key(0), (257, 257))
    model = jax.tree_util.Partial(lambda table, inputs, state: (table[inputs], state), logits)
    total, count = np.zeros(50), np.zeros(50)
    for batch in batches.batches:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits[batch["inputs"]], batch["targets"])
        total, count = total + np.sum(losses * batch["mask"], axis=0), count + batch["mask"].sum(axis=0)
    bits = bits_by_position(model, batches, parse_mesh(devices=jax.devices()[:1]))
    np.testing.assert_allclose(bits, total / count / math.log(2), rtol=1e-5)


@pytest.mark.slow
def test_a_whole_run_goes_on_where_it_was(data, tmp_path, capsys):
    flags = [f"--workdir={tmp_path / 'run'}", f"--data={data}", *FLAGS]
    assert call(*flags) == 0
    table = capsys.readouterr().out
    results = results_of(tmp_path / "run")
    for figures in results["models"].values():
        assert figures["tokens"] == 4 * 2 * 80
        assert len(figures["seeds"]) == 2
        for seed in figures["seeds"]:
            assert list(seed["bits_by_position"]) == ["64", "80"]
            assert all(0 < bits < 10 for bits in seed["bits_by_position"].values())
        first, second = (seed["validation_bits_per_byte"] for seed in figures["seeds"])
        assert first != second
    assert (tmp_path / "run" / "context.png").read_bytes().startswith(b"\x89PNG")
    results["models"]["transformer_conv"]["seeds"].pop()  # as if it had been stopped before the last model
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    assert call(*flags) == 0
    assert capsys.readouterr().out == table


SMALL = ["--models=hope_attention", "--seeds=1", "--batch_size=2", "--seq_len=16"]


@pytest.mark.slow
def test_levels_start_from_blocks_that_were_trained_without(data, tmp_path, capsys):
    flags = [f"--data={data}", *SMALL, "--eval_every=9", "--checkpoint_every=9"]
    levels = ["--cms_levels=4,8", "--cms_regime=online", "--cms_rate=0.03", "--learning_rate=1e-12"]
    assert call(f"--workdir={tmp_path / 'first'}", *flags, "--steps=9", "--cms_levels=1,2") == 0
    again = [*flags, *levels, "--steps=1"]
    assert call(f"--workdir={tmp_path / 'anew'}", *again) == 0
    assert call(f"--workdir={tmp_path / 'on'}", *again, f"--start_from={tmp_path / 'first'}") == 0
    bits = {}
    for name in ("first", "anew", "on"):
        results = results_of(tmp_path / name)
        bits[name] = results["models"]["hope_attention"]["seeds"][0]["validation_bits_per_byte"]
    assert bits["on"] < bits["first"] + 0.05 < bits["anew"]  # the levels learn in context, from where they start
    capsys.readouterr()
    start = f"--start_from={tmp_path / 'first'}"
    assert call(f"--workdir={tmp_path / 'more'}", *again, start, "--seeds=2") == 2
    assert "has finished 2 seeds of hope_attention" in capsys.readouterr().err
    assert call(f"--workdir={tmp_path / 'wider'}", *again, start, "--cms_levels=4,8,16") == 2
    assert "of hope_attention has the shape" in capsys.readouterr().err
