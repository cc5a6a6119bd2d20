"""What a run says of itself: norms by level, where its time went, and a trace of some steps."""

import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from nl_jax.data import ByteTokenizer, Document, evaluation_batches, pack, train_iterator
from nl_jax.models import LanguageModel, LanguageModelConfig
from nl_jax.parallel import parse_mesh
from nl_jax.training import fit, init_state, make_optimizer, read_metrics, train_step
from nl_jax.training.clock import TRACED_STEPS, Clock

PACKED = pack([Document("text", b"hello world, " * 200)], ByteTokenizer())
SIZES = {"batch_size": 2, "seq_len": 8}
CONFIG = LanguageModelConfig(
    "attention", vocab_size=257, width=8, num_layers=1, num_heads=2, mlp_hidden=8, cms_periods=(1, 2), context_length=8
)


def model():
    return LanguageModel(CONFIG, rngs=nnx.Rngs(0))


def test_norms_by_level():
    optimizer = make_optimizer(learning_rate=1e-2, steps=4, warmup_steps=0, cms_periods=(1, 2))
    state = init_state(model, optimizer)
    batch = next(train_iterator(PACKED, **SIZES, seed=0))
    step = jax.jit(functools.partial(train_step, optimizer))
    updates = []
    for _ in range(2):
        new, outputs = step(state, batch)
        levels = [float(outputs[f"grad_norm/{name}"]) for name in ("cms_0", "cms_1", "parameters")]
        assert np.linalg.norm(levels) == pytest.approx(float(outputs["grad_norm"]), rel=1e-5)
        changed = jax.tree.map(lambda a, b: a - b, new.model.blocks.cms.levels[1], state.model.blocks.cms.levels[1])
        assert float(outputs["update_norm/cms_1"]) == pytest.approx(float(optax.tree.norm(changed)), rel=1e-5)
        assert float(outputs["update_norm/parameters"]) > 0
        updates.append(float(outputs["update_norm/cms_1"]))
        state = new
    assert updates[0] == 0.0 < updates[1]  # it is due every other step


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_norm_of_what_memories_have_learned(accumulate):
    config = LanguageModelConfig("delta_net", 257, width=8, num_layers=2, num_heads=2, mlp_hidden=8, chunk_size=4)
    memories = LanguageModel(config, rngs=nnx.Rngs(0))
    batch = next(train_iterator(PACKED, **SIZES, seed=0))
    _, outputs = jax.jit(functools.partial(train_step, optax.sgd(0.0), accumulate=accumulate))(
        init_state(lambda: memories, optax.sgd(0.0)), batch
    )
    _, state = memories(batch["inputs"])
    norms = [optax.tree.norm(jax.tree.map(lambda w, row=row: w[:, row], state.delta_w)) for row in range(2)]
    assert float(outputs["state_norm/mixers"]) == pytest.approx(np.sqrt(np.mean(np.square(norms))), rel=1e-4)


def test_times_and_a_trace_of_a_run(tmp_path):
    fit(
        "model",
        model,
        make_optimizer(learning_rate=1e-2, steps=5, cms_periods=(1, 2)),
        train_iterator(PACKED, **SIZES, seed=0),
        evaluation_batches(PACKED, **SIZES, max_tokens=32),
        workdir=tmp_path,
        mesh=parse_mesh("data:1", jax.devices()[:1]),
        steps=5,
        eval_every=3,
        checkpoint_every=3,
        profile=4,
    )
    first, last = (row for row in read_metrics(tmp_path) if "tokens_per_second" in row)
    assert {name for name in last if name.startswith("seconds/")} == {
        f"seconds/{p}" for p in ("data", "step", "save", "evaluation")
    }
    assert 0 < last["seconds/data"] < last["seconds/step"]
    assert "seconds/save" not in first  # the first checkpoint comes after the first evaluation
    assert list((tmp_path / "model/profile").rglob("*.xplane.pb"))  # fewer than three steps were left
    assert TRACED_STEPS == 3


@pytest.mark.parametrize(
    ("steps", "traced"), [(range(1, 9), [4, 5, 6]), (range(6, 12), [6, 7, 8]), (range(5, 7), [5, 6]), (range(1, 4), [])]
)
def test_a_run_that_resumes_after_the_traced_steps_traces_its_first(steps, traced, tmp_path, monkeypatch):
    tracing, found = [], []
    monkeypatch.setattr(jax.profiler, "start_trace", tracing.append)
    monkeypatch.setattr(jax.profiler, "stop_trace", tracing.clear)
    with Clock(tmp_path, 4) as clock:
        for number in steps:
            clock.step(number, lambda number=number: found.append(number) if tracing else None)
    assert found == traced
    assert not tracing


def test_a_clock_starts_again_when_it_is_read(tmp_path):
    clock = Clock(tmp_path, None)
    assert clock.timed("data", max, 1, 2) == 2
    assert clock.add("data", 2.0) == 2.0
    assert clock.take()["seconds/data"] >= 2.0
    assert "seconds/data" not in clock.take()
