"""The launcher whose streams change subject: texts that were not trained on, readers, recovery, a whole run."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from launcher_cases import results_of

from experiments import subjects
from experiments.subject_changes.texts import cut_streams, default_texts, docstrings, held_out_texts, without_seen
from nl_jax import InputError
from nl_jax.data import Document
from nl_jax.models import LanguageModel, LanguageModelConfig
from nl_jax.models.in_context import read_and_learn
from nl_jax.parallel import parse_mesh

SLOW = pytest.mark.slow
FLAGS = ["--model=hope_attention", "--steps=2", "--eval_every=2", "--seq_len=128", "--cms_levels=64,128"]
FLAGS += ["--part=512", "--streams=2", "--seeds=2"]


def call(*arguments):
    return subjects.main(["subjects", *map(str, arguments)])


def test_no_default_text_of_a_stream_is_in_training():
    splits, texts = default_texts()
    held_out = held_out_texts(texts, splits.train)
    assert list(held_out) == ["prose", "code", "docstrings"]
    cut_streams(held_out, ["prose", "code", "docstrings", "prose"], streams=8, part=8192)  # raises where too short
    sizes = [sum(len(d.text) for d in splits.train if d.name.endswith(".py") == code) for code in (False, True)]
    assert 0.8 * sizes[0] < sizes[1] <= sizes[0]
    training = b" ".join(b" ".join(document.text.split()) for document in splits.train)
    before = b""
    for text in held_out.values():
        plain = b" ".join(text.split())
        found = [plain[i : i + 300] in training for i in range(0, len(plain) - 300, 1009)]
        assert not any(found)
        assert plain[:300] not in before
        before += plain


def test_paragraphs_seen_before_are_left_out():
    long, other = b"a long paragraph, " * 5, b"another paragraph of some length " * 3
    seen: set[bytes] = set()
    assert without_seen(long + b"\n\nimport os\n \n" + other, seen) == long + b"\n\nimport os\n\n" + other
    again = b"import os\n\n  " + long.replace(b" ", b"\n", 2) + b"\n\nnew " + other
    assert without_seen(again, seen) == b"import os\n\nnew " + other
    held_out = held_out_texts({"a": long + b"\n\n" + other, "b": other + b"\n\nshort"}, [Document("x", long)])
    assert held_out == {"a": other, "b": b"short"}


def test_docstrings_are_those_of_a_module_and_what_it_defines():
    source = (
        b'"One."\nclass A:\n    """Two\n\n    lines."""\n    async def f(x):\n        "Three."\n        return "no"\n'
    )
    assert docstrings(Document("a.py", source)) == [b"One.", b"Two\n\nlines.", b"Three."]
    assert docstrings(Document("a.txt", b"no Python :")) == []


def test_streams_have_every_byte_once_and_go_on_where_a_text_was():
    texts = {"a": bytes(range(100)), "b": bytes(range(100, 150))}
    streams = cut_streams(texts, ["a", "b", "a"], streams=3, part=16)
    assert streams.shape == (3, 48)
    assert len(set(streams.ravel().tolist())) == streams.size
    for i, row in enumerate(streams):
        np.testing.assert_array_equal(row[:16], 33 * i + np.arange(16))
        np.testing.assert_array_equal(row[16:32], 100 + 16 * i + np.arange(16))
        np.testing.assert_array_equal(row[32:], row[:16] + 16)
    with pytest.raises(InputError, match="--streams=3 of --part=17 bytes need 102 bytes of a, which has 100 "):
        cut_streams(texts, ["a", "b", "a"], streams=3, part=17)


@pytest.mark.parametrize("learns", [pytest.param(0, marks=SLOW), 16, pytest.param(64, marks=SLOW)])
def test_reading_in_calls_is_one_pass(learns):
    sizes = {"vocab_size": 257, "width": 8, "num_layers": 1, "num_heads": 1, "mlp_hidden": 6, "chunk_size": 2}
    levels = {"cms_periods": (4, 16), "cms_regime": "meta", "cms_rate": 0.5}
    model = LanguageModel(LanguageModelConfig("delta_net", **sizes, **levels), rngs=nnx.Rngs(0))
    streams = np.random.default_rng(0).integers(0, 256, (2, 64)).astype(np.uint8)
    tokens = jnp.concatenate([jnp.full((2, 1), 256), jnp.asarray(streams[:, :-1], int)], axis=1)
    targets = jnp.asarray(streams, int)

    def bits(logits):
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets) / np.log(2)

    model = jax.device_put(model, jax.sharding.NamedSharding(parse_mesh(None), jax.sharding.PartitionSpec()))
    steps = subjects._learn, subjects._read
    for step in steps:
        step.clear_cache()
    found = subjects.read_streams(model, streams, 8, learns, "test")
    assert [step._cache_size() for step in steps] == [learns > 0, learns < 64]  # one program for all calls
    learn = jax.jit(lambda mask: bits(read_and_learn(model, tokens, targets, mask)[0]))
    still, learned = bits(model(tokens)[0]), learn(jnp.ones((2, 64)))
    if learns in (0, 64):
        np.testing.assert_allclose(found, learned if learns else still, atol=1e-5)
    else:  # the weights that the first part has left, for all that follows
        np.testing.assert_allclose(found[:, :20], learned[:, :20], atol=1e-5)
        assert np.abs(found[:, 20:] - learned[:, 20:]).max() > 1e-3
        # Without the loss of what follows there is no gradient, so blocks stay as they are.
        stopped = learn(jnp.broadcast_to(jnp.arange(64) < 16, (2, 64)).astype(jnp.float32))
        np.testing.assert_allclose(found, stopped, atol=1e-5)


def test_evaluation_reads_as_many_rows_as_a_microbatch(tmp_path, monkeypatch):
    seen = []

    def fit_model(run, config, batches, *_):
        seen.append(batches.validation.batches[0]["inputs"].shape)
        raise InputError("not trained")

    monkeypatch.setattr(subjects, "fit_model", fit_model)
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {i} of a text, which differs from line {i - 1}\n\n" for i in range(800)))
    texts = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path in texts:
        path.write_text("".join(f"{path.name} has many lines, of which this is number {i}\n\n" for i in range(400)))
    rows = 4 * jax.device_count()
    given = [f"--data={text}", f"--texts={texts[0]},{texts[1]}", f"--batch_size={rows}", "--accumulate=2"]
    mesh = f"--mesh=data:{jax.device_count()}"
    assert call(f"--workdir={tmp_path / 'run'}", *FLAGS, *given, mesh) == 2
    assert seen == [(rows // 2, 128)]


def test_recovery_by_a_loop():
    random = np.random.default_rng(0)
    curve = np.concatenate([np.linspace(4, 2, 20), np.full(44, 2.0)]) + 0.1 * random.normal(size=64)
    for level in (curve[-16:].mean(), 2.5, 1.0):
        expected = 64 * len(curve)
        for end in reversed(range(4, len(curve) + 1)):
            if sum(curve[end - 4 : end]) / 4 <= 1.05 * level:
                expected = 64 * end
        assert subjects.recovery(curve, level) == expected
    bits = np.repeat(curve, 64)
    figures = subjects.figures_of(np.concatenate([bits, bits + 1]), 4096)["parts"]
    assert figures[0]["first 1,024"] == pytest.approx(curve[:16].mean())
    assert figures[1]["rest"] == pytest.approx(curve[16:].mean() + 1)
    assert figures[1]["last quarter"] == pytest.approx(curve[-16:].mean() + 1)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts")
    random = np.random.default_rng(0)
    for i, name in enumerate(("data", "prose", "code")):
        words = random.integers(0, 300, 3000) + 1000 * i
        (path / f"{name}.txt").write_text(" ".join(map(str, words)))
    return path


@pytest.mark.slow
def test_a_whole_run_goes_on_where_it_was(texts, tmp_path, capsys):
    run = tmp_path / "run"
    flags = [f"--workdir={run}", f"--data={texts / 'data.txt'}", *FLAGS]
    flags.append(f"--texts={texts / 'prose.txt'},{texts / 'code.txt'}")
    assert call(*flags) == 0
    table = capsys.readouterr().out
    assert re.search(r"2\. code.txt +meta_frozen +\d\.\d{3} ± ", table)
    assert re.search(r"3\. prose.txt +outer by meta +-?\d\.\d{3} ± ", table)
    results = results_of(run)
    assert list(results["readers"]) == ["meta", "meta_frozen", "meta_stopped", "outer"]
    parameters = [figures["parameters"] for figures in results["models"].values()]
    assert parameters[0] == parameters[1] + 2  # the rates of the levels
    for seeds in results["readers"].values():
        assert len(seeds) == 2
        assert seeds[0] != seeds[1]
        for seed in seeds:
            assert len(seed["parts"]) == 3
            assert len(seed["bits_by_64_bytes"]) == 3 * 512 / 64
    first = [results["readers"][name][0]["parts"] for name in results["readers"]]
    assert first[0][0] == first[2][0] != first[1][0]
    assert first[0][1] != first[2][1]
    assert (run / "subjects.png").read_bytes().startswith(b"\x89PNG")
    results["readers"]["outer"].pop()  # as if it had been stopped before the last model
    results["models"]["outer"]["validation_bits_per_byte"].pop()
    (run / "results.json").write_text(json.dumps(results))
    assert call(*flags) == 0
    assert capsys.readouterr().out == table


def test_a_stream_that_stops_being_finite_is_refused():
    config = LanguageModelConfig("delta_net", 257, 8, 1, 1, 6, (4, 8), chunk_size=2)
    model = jax.tree.map(lambda x: x * jnp.nan, LanguageModel(config, rngs=nnx.Rngs(0)))
    with pytest.raises(subjects.TrainingDiverged, match="test: not finite between bytes 0 and 8"):
        subjects.read_streams(model, np.zeros((1, 16), np.uint8), 8, 0, "test")
