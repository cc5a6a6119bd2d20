"""A stream: the same learner however its text is cut, stopped or saved; freeze, reset, rollback."""

import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.flags import FlagValues
from flax import nnx
from launcher_cases import small_files

from experiments.common import launcher as experiments_launcher
from nl_jax import Diverged, InputError, StorageError
from nl_jax.models import LanguageModel, LanguageModelConfig, chunk
from nl_jax.models.in_context import read_and_learn
from nl_jax.streaming import Stream

TOKENS = np.random.default_rng(0).integers(0, 11, 60)


@pytest.fixture(scope="module")
def model():
    return make()


def make(mixer="delta_net", **fields):
    sizes = {"vocab_size": 11, "width": 8, "num_layers": 2, "num_heads": 1, "mlp_hidden": 6, "chunk_size": 2}
    options = {"cms_periods": (4, 8), "cms_regime": "online", "cms_rate": 0.5}
    return LanguageModel(LanguageModelConfig(mixer, **sizes | options | fields), rngs=nnx.Rngs(0))


def states(stream):
    return jax.tree.map(np.asarray, stream.snapshot()[0])


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_feeding_is_reading_and_learning_however_cut(model):
    whole, parts = Stream(model), Stream(model)
    fed = whole.feed(TOKENS)
    told = [parts.feed(part) for part in np.split(TOKENS, [1, 4, 5, 23, 40])]
    logits, state = read_and_learn(model, *(jnp.asarray(x)[None] for x in (TOKENS[:56], TOKENS[1:57])))
    nats = optax.softmax_cross_entropy_with_integer_labels(logits[0], TOKENS[1:57])
    assert fed.loss == pytest.approx(float(nats.mean()), rel=1e-5)
    assert sum(part.loss * part.tokens for part in told if part.tokens) == pytest.approx(float(nats.sum()), rel=1e-5)
    assert fed.tokens == sum(part.tokens for part in told) == 56
    assert fed.updated == {"mixers": 14, "cms_0": 14, "cms_1": 7}
    assert same(states(whole), states(parts))
    for a, b in zip(*map(jax.tree.leaves, (states(whole), state)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert whole.position == 56
    assert whole.waiting == 4
    assert math.isnan(whole.feed([]).loss)
    assert all(value > 0 for value in fed.surprise.values())


def test_one_program_for_all_chunks_of_a_restored_model():
    model = jax.device_put(make(width=4), jax.sharding.SingleDeviceSharding(jax.devices()[0]))  # as checkpoints give it
    before = chunk.step._cache_size()
    Stream(model).feed(TOKENS)
    Stream(model).feed(TOKENS)
    assert chunk.step._cache_size() == before + 1


def test_a_saved_stream_is_the_same_learner(model, tmp_path):
    stream = Stream(model, frozen=["cms_1"])
    stream.feed(TOKENS[:30])
    stream.save(tmp_path / "saved")
    again = Stream.load(tmp_path / "saved", model)
    assert again.feed(TOKENS[30:]) == stream.feed(TOKENS[30:])
    assert same(states(again), states(stream))
    stream.save(tmp_path / "saved")  # over the one before
    assert Stream.load(tmp_path / "saved", model).position == stream.position
    with pytest.raises(InputError, match=r"a stream of another model, whose cms_periods is \[4, 8\], not \[4, 16\]"):
        Stream.load(tmp_path / "saved", make(cms_periods=(4, 16)))
    with pytest.raises(InputError, match="no saved stream there"):
        Stream.load(tmp_path / "none", model)
    about = tmp_path / "saved/about/metadata"
    about.write_text(about.read_text().replace('"format": 3', '"format": 2'))
    with pytest.raises(InputError, match="a saved stream of format 2; expected format 3"):
        Stream.load(tmp_path / "saved", model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="not a saved stream"):
        Stream.load(tmp_path / "empty", model)


def saved_position(path, model):
    return Stream.load(path, model).position


@pytest.mark.parametrize("content", ["notes.txt", "src/", "about/metadata", "stream and notes.txt"])
def test_saving_leaves_alone_what_is_no_saved_stream(content, model, tmp_path):
    target = tmp_path / "mine"
    if content == "stream and notes.txt":
        Stream(model).save(target)
        content = "notes.txt"
    file = target / content / "x" if content.endswith("/") else target / content
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="saved stream") as error:
        Stream(model).save(target)
    assert str(target) in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with pytest.raises(InputError, match="a file; expected"):
        Stream(model).save(file)


def test_a_stream_is_saved_where_it_is_said(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for path in ("~/a", "b/c", "empty", tmp_path / "link"):
        Stream(model).save(path)
        assert saved_position(path, model) == 0
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "empty", "link"]
    for call in (Stream(model).save, lambda path: Stream.load(path, model)):
        with pytest.raises(InputError, match="expected a path on this machine"):
            call("gs://bucket/stream")


def test_a_crash_while_saving_loses_nothing(model, tmp_path, monkeypatch):
    """The process ends before each change of a name or directory in turn: either learner is there, and can be saved."""
    old, new = Stream(model), Stream(model)
    new.feed(TOKENS[:9])
    originals = {"rename": Path.rename, "rmtree": shutil.rmtree}
    crashes = 0

    class Crash(BaseException):
        pass

    for moment in range(10):
        path = tmp_path / str(moment) / "saved"
        old.save(path)
        left = [moment]

        def count(name, left=left):
            def changed(*args, **options):
                if left[0] == 0 and "stream" in str(args):
                    raise Crash
                left[0] -= "stream" in str(args)
                return originals[name](*args, **options)

            return changed

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", count("rename"))
            patch.setattr(shutil, "rmtree", count("rmtree"))
            try:
                new.save(path)
            except Crash:
                crashes += 1
        assert saved_position(path, model) in (0, 8)
        new.save(path)
        assert saved_position(path, model) == 8
        assert [file.name for file in path.parent.iterdir()] == ["saved"]
        if left[0] > 0:
            break
    assert crashes >= 3


def test_a_full_disk_keeps_the_stream_that_was_saved(model, tmp_path):
    stream = Stream(model)
    stream.save(tmp_path / "saved")
    stream.feed(TOKENS[:9])
    with small_files(300), pytest.raises(StorageError, match=r"the stream could not be saved \(File too large\)"):
        stream.save(tmp_path / "saved")
    assert saved_position(tmp_path / "saved", model) == 0


def test_freeze_reset_rollback(model):
    stream = Stream(model)
    start = states(stream)
    stream.feed(TOKENS[:20])
    before, snapshot = states(stream), stream.snapshot()
    for level in ("mixers", "cms_0"):
        stream.freeze(level)
    fed = stream.feed(TOKENS[20:])
    after = states(stream)
    assert fed.updated["cms_0"] == fed.updated["mixers"] == 0 < fed.updated["cms_1"]
    assert same(after.levels["cms_0"], before.levels["cms_0"])
    assert same(after.levels["mixers"].delta_w, before.levels["mixers"].delta_w)
    assert not same(after.levels["mixers"].position, before.levels["mixers"].position)
    assert not same(after.levels["cms_1"], before.levels["cms_1"])
    stream.thaw("cms_0")
    stream.reset("cms_1")
    assert same(states(stream).levels["cms_1"], start.levels["cms_1"])
    stream.rollback(snapshot, "cms_1")
    assert same(states(stream).levels["cms_1"], before.levels["cms_1"])
    stream.rollback(snapshot)
    assert same(states(stream), before)


@pytest.mark.slow
def test_generate_leaves_the_stream_as_it_is(model):
    stream = Stream(model)
    stream.feed(TOKENS[:22])
    before = states(stream)
    first = stream.generate([1, 2], num_tokens=5, seed=3)
    assert stream.generate([1, 2], num_tokens=5, seed=3) == first
    assert len(first) == 5
    assert all(0 <= token < 11 for token in first)
    assert same(states(stream), before)
    # the likeliest token is that of the model as it has learned so far
    assert stream.waiting == 2
    (likeliest,) = stream.generate([], num_tokens=1, temperature=0)
    text = jnp.asarray(np.append(TOKENS[:22], [0, 0]))[None]
    logits, _ = read_and_learn(model, text, jnp.roll(text, -1, axis=1))
    assert likeliest == int(jnp.argmax(logits[0, 21]))


@pytest.mark.parametrize("level", ["cms_0", "cms_1"])
def test_divergence_is_named_and_the_last_good_state_kept(model, level):
    bad = jax.tree.map(jnp.copy, model)
    bad.cms_log_rate[...] = bad.cms_log_rate[...].at[int(level[-1])].set(1e3)  # its first update is infinite
    stream = Stream(bad)
    chunks = {"cms_0": 0, "cms_1": 1}[level]  # before that update
    with pytest.raises(Diverged, match=f"level '{level}' diverged in tokens {4 * chunks} to") as error:
        stream.feed(TOKENS[:22])
    assert (error.value.level, error.value.position) == (level, 4 * chunks)
    assert (stream.position, stream.waiting) == (4 * chunks, 22 - 4 * chunks)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(states(stream)))
    with pytest.raises(Diverged):
        stream.feed([])
    with pytest.raises(Diverged):
        stream.generate([], num_tokens=1)
    stream.freeze(level)
    fed = stream.feed([])
    assert (fed.tokens, stream.position) == (20 - 4 * chunks, 20)
    assert math.isfinite(fed.loss)


@pytest.mark.parametrize("level", ["mixers", "cms_0", "cms_1"])
def test_the_level_that_was_not_finite_before_is_named(model, level):
    stream = Stream(model)
    stream.feed(TOKENS[:9])
    state, waiting = stream.snapshot()
    spoilt = jax.tree.map(lambda x: x * jnp.nan if x.dtype == jnp.float32 else x, state)
    stream.rollback((spoilt, waiting), level)
    with pytest.raises(Diverged, match=f"level '{level}' diverged in tokens 8 to 11"):
        stream.feed(TOKENS[9:20])
    stream.rollback((state, waiting), level)
    assert math.isfinite(stream.feed([]).loss)


def test_a_stream_in_bfloat16(model):
    narrow, wide = Stream(jax.tree.map(lambda x: x.astype(jnp.bfloat16), model)), Stream(model)
    before = [x.dtype for x in jax.tree.leaves(narrow.snapshot()[0])]
    found, expected = narrow.feed(TOKENS), wide.feed(TOKENS)
    assert found.loss == pytest.approx(expected.loss, rel=0.02)
    assert [x.dtype for x in jax.tree.leaves(narrow.snapshot()[0])] == before
    assert not same(states(narrow), states(Stream(narrow.model)))


@pytest.mark.slow
def test_a_nested_level_that_is_frozen_still_follows_the_text(tmp_path):
    model = make("linear_attention", cms_variant="nested", cms_regime="meta", num_layers=1)
    stream, frozen = Stream(model), Stream(model, frozen=["cms_1"])
    for one in (stream, frozen):
        one.feed(TOKENS[:30])
    before, after, learned = (states(one).levels["cms_1"] for one in (Stream(model), frozen, stream))
    assert same((before.params, before.optimizer), (after.params, after.optimizer))
    assert not same(before.params, learned.params)
    assert not same(before.mixers, after.mixers)
    assert same(states(frozen).pending["cms_1"], states(stream).pending["cms_1"])
    stream.save(tmp_path / "saved")
    again = Stream.load(tmp_path / "saved", model)
    assert again.feed(TOKENS[30:]) == stream.feed(TOKENS[30:])
    assert same(states(again), states(stream))


def test_a_launcher_ends_with_1_where_learning_diverges(capsys):
    def body(values):
        raise Diverged("level 'cms_0' diverged", level="cms_0", position=4)

    assert experiments_launcher.run(body, FlagValues(), None, ["x"]) == 1
    assert capsys.readouterr().err == "error: level 'cms_0' diverged\n"


def test_bad_input(model):
    with pytest.raises(ValueError, match="cms_regime='outer'"):
        Stream(make(cms_regime="outer"))
    with pytest.raises(ValueError, match="level 'cms_7': unknown"):
        Stream(model).reset("cms_7")
    with pytest.raises(ValueError, match="level 'mixers': attention"):
        Stream(make(mixer="attention")).freeze("mixers")
    stream = Stream(model)
    with pytest.raises(ValueError, match="token 11: expected 0 to 10"):
        stream.feed([1, 11])
    with pytest.raises(ValueError, match=r"token 1\.5: expected an integer"):
        stream.feed([1.5])
    for tokens, problem in [(3, "tokens=3"), ("text", "token 't'"), (np.zeros((2, 500)), r"token .{,50}")]:
        with pytest.raises(ValueError, match=rf"^{problem}: expected (an integer|a sequence of integers, or bytes)$"):
            stream.feed(tokens)
    assert stream.waiting == 0
    with pytest.raises(ValueError, match="expected a token"):
        stream.generate()


def test_a_limit_of_tokens_to_learn(model):
    whole, limited = Stream(model), Stream(model)
    whole.feed(TOKENS)
    assert math.isnan(limited.feed(TOKENS, limit=0).loss)
    assert (limited.position, limited.waiting) == (0, 60)
    assert limited.feed([], limit=11).tokens == 8
    assert limited.feed([], limit=12).tokens == 12
    assert limited.feed([]).tokens == 36
    assert same(states(whole), states(limited))
    with pytest.raises(ValueError, match="limit=-1: expected 0 or more"):
        limited.feed([1], limit=-1)
    assert limited.waiting == 4
