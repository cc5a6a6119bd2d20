"""`ContinualLearner`: learns, answers, goes back, is saved and loaded, refuses bad input, and does not grow."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nl_jax import Diverged, InputError
from nl_jax.data import ByteTokenizer
from nl_jax.models import LanguageModel, named_config
from nl_jax.pretrained.level_stacking import Chunk, Pull
from nl_jax.pretrained.stacked_level import StackedLevel
from nl_jax.streaming import ContinualLearner
from nl_jax.trees import named_leaves

LEVELS = (
    StackedLevel("fast", blocks=(1,), units=(0.0, 0.5)),
    StackedLevel("slow", period=3, blocks=(1,), units=(0.5, 1.0), rule="adam", learning_rate=1e-3),
)
EXAMPLES = [("the sky", "blue"), ("the grass", "green"), ("the coal", "black"), ("the snow", "white")]


SIZES = {"num_layers": 2, "width": 32, "num_heads": 2, "mlp_hidden": 24}


def make_model(**options):
    return LanguageModel(named_config("transformer", "tiny", **SIZES | options), rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def model():
    return make_model()


def make(model, levels=LEVELS, **options):
    return ContinualLearner(model, ByteTokenizer(), levels, **{"batch_size": 2, "chunk": 64, **options})


def assert_equal(one, other, **tolerance):
    first, second = (named_leaves(learner.snapshot()[0]) for learner in (one, other))
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_allclose(first[name], second[name], err_msg=name, **tolerance)


def test_it_learns_labels_and_reports_what_it_did(model):
    matrices = ("query", "value", "gate", "up", "down")
    fast = StackedLevel("fast", blocks=(0,), rule="adam", learning_rate=1e-2, matrices=matrices)
    learner = make(model, [fast, dataclasses.replace(fast, name="slow", period=3, blocks=(1,))])
    before = learner.score(EXAMPLES)
    for _ in range(30):
        learned = learner.learn(EXAMPLES)
    after = learner.score(EXAMPLES)
    assert learner.predict([text for text, _ in EXAMPLES]) == [label for _, label in EXAMPLES]
    assert after.loss < before.loss
    assert after.accuracy == 1.0
    assert learned.examples == 4
    assert learned.tokens == after.tokens == sum(len(label) + 2 for _, label in EXAMPLES)
    assert learned.updated == {"fast": 2, "slow": 1}  # steps 58 and 59
    assert learner.labels == tuple(label for _, label in EXAMPLES)


def test_many_batches_are_learned_as_one_after_the_other(model):
    """Whether batches come in one call, or padded with others, changes nothing; nor does the order of reports."""
    together, apart, filled = make(model), make(model), make(model, fill=64)
    texts = [*EXAMPLES, ("a text", "x"), "a text that is longer than a chunk of 64 bytes, which is cut " * 3, *EXAMPLES]
    learned = together.learn(texts)
    filled.learn(texts)
    parts = [apart.learn(texts[start : start + 2]) for start in range(0, len(texts), 2)]
    assert_equal(together, apart, rtol=1e-4, atol=1e-6)
    assert_equal(together, filled, rtol=1e-4, atol=1e-6)
    nats = sum(part.loss * part.tokens for part in parts)
    assert learned.loss == pytest.approx(nats / learned.tokens, rel=1e-4)
    assert learned.tokens == sum(part.tokens for part in parts)


def test_learning_is_the_schedule_s_steps_on_the_tokens(model):
    learner = make(model)
    learner.learn(["0123456789abcdef"])
    tokens = np.full((2, 32), 0, np.int32)
    separator = learner.tokenizer.separator_id
    row = [separator, *b"0123456789abcdef", separator]
    tokens[0, : len(row) - 1] = row[:-1]
    targets, mask = np.zeros((2, 32), np.int32), np.zeros((2, 32), np.float32)
    targets[0, : len(row) - 1], mask[0, : len(row) - 1] = row[1:], 1.0
    schedule = learner._stacked.schedule()
    want, _ = jax.jit(schedule.step)(learner._stacked.init(), Chunk(tokens, targets, mask))
    got = learner.snapshot()[0]
    for name, leaf in named_leaves(want).items():
        np.testing.assert_allclose(named_leaves(got)[name], leaf, rtol=1e-4, atol=1e-6)


def test_learning_rates_share_a_program_and_count(model):
    quick, slow = (make(model, [StackedLevel("a", blocks=(1,), learning_rate=rate)]) for rate in (0.5, 0.25))
    quick.learn(EXAMPLES[:2])
    slow.learn(EXAMPLES[:2])
    one, half = (learner.snapshot()[0].levels["a"].change["down"] for learner in (quick, slow))
    np.testing.assert_allclose(half, one / 2, rtol=1e-4, atol=1e-9)


def test_a_rollback_takes_back_what_was_learned_and_the_labels(model):
    learner = make(model)
    learner.learn(EXAMPLES[:2])
    kept = learner.snapshot()
    learner.learn(EXAMPLES[2:])
    learner.rollback(kept)
    other = make(model)
    other.learn(EXAMPLES[:2])
    assert learner.labels == other.labels == ("blue", "green")
    assert_equal(learner, other)


def test_a_loaded_learner_goes_on_as_the_saved_one(model, tmp_path):
    learner, other = make(model), make(model)
    learner.learn(EXAMPLES[:2])
    learner.save(tmp_path / "saved")
    other.load(tmp_path / "saved")
    assert_equal(learner, other)
    for one in (learner, other):
        one.learn(EXAMPLES[2:])
    assert_equal(learner, other)
    assert learner.labels == other.labels


def test_what_is_protected_is_saved_and_earlier_versions_did_not_know_of_it(model, tmp_path):
    levels = [dataclasses.replace(LEVELS[1], period=1, protects=True)]
    learner, other, plain = (make(model, levels) for _ in range(3))
    for one in (learner, plain):
        one.learn(EXAMPLES[:2])
    learner.protect(EXAMPLES[:2])
    learner.save(tmp_path / "saved")
    other.load(tmp_path / "saved")
    for one in (learner, other, plain):
        one.learn(EXAMPLES[2:])
    assert_equal(learner, other)
    changes = (one.snapshot()[0].levels["slow"].change["down"] for one in (learner, plain))
    assert not np.allclose(*changes)

    make(model).save(tmp_path / "earlier")
    path = tmp_path / "earlier/about/metadata"
    metadata = json.loads(path.read_text())
    for level in metadata["levels"]:
        assert level.pop("protects") is False
    path.write_text(json.dumps(metadata))
    make(model).load(tmp_path / "earlier")
    with pytest.raises(InputError, match="levels"):
        make(model, [LEVELS[0], dataclasses.replace(LEVELS[1], protects=True)]).load(tmp_path / "earlier")


@pytest.mark.parametrize("difference", ["levels", "model", "question"])
def test_another_learner_s_files_are_refused_with_what_differs(model, tmp_path, difference):
    make(model).save(tmp_path / "saved")
    if difference == "levels":
        other = make(model, [dataclasses.replace(LEVELS[0], period=2), LEVELS[1]])
    elif difference == "model":
        other = make(make_model(num_layers=3))
    else:
        other = make(model, question="{text}:")
    with pytest.raises(InputError, match=difference):
        other.load(tmp_path / "saved")


def test_what_a_taught_model_has_in_its_weights_is_not_added_again(model, tmp_path):
    learner = make(model)
    learner.learn(EXAMPLES)
    learner.save(tmp_path / "saved")
    with pytest.raises(InputError, match="parameters"):
        make(learner.model).load(tmp_path / "saved")


def test_braces_in_a_question_are_characters(model):
    for question in ('{text} {"label":', "{text} -> {label}", "{{text}}:"):
        learner = make(model, question=question)
        learner.learn([("sky", "blue")])
        asked = question.replace("{text}", "sky")
        assert learner.tokenizer.decode(np.asarray(learner.prompt("sky"))) == asked


def test_half_of_a_surrogate_pair_is_refused(model):
    learner = make(model)
    for example in ("hi \ud83d", ("hi \ud83d", "x"), ("hi", "x \ud83d")):
        with pytest.raises(InputError, match="half of a surrogate pair"):
            learner.learn([example])


def test_the_beginning_of_a_long_question_is_read_and_is_no_update(model):
    """The label is learned with the whole question before it, as if it were one chunk."""
    levels = [dataclasses.replace(LEVELS[1], period=1, retention=0.9)]
    long, whole = make(model, levels, chunk=32), make(model, levels, chunk=128)
    text = ("what is it called? " * 3, "sky")
    for learner in (long, whole):
        learner.learn(EXAMPLES[:1])
    found, expected = long.learn([text]), whole.learn([text])
    assert found.tokens == expected.tokens == 5
    assert found.updated == expected.updated == {"slow": 1}
    assert found.loss == pytest.approx(expected.loss, abs=1e-4)
    (importance,) = long.importance([text]).values()
    assert all(np.any(np.asarray(leaf) > 0) for leaf in jax.tree.leaves(importance))


def test_a_text_begins_with_what_the_model_expects(model):
    """Once, before all else: not in what is between."""

    class Begun(ByteTokenizer):
        begin_tokens = (7,)

    def tokens(example, **options):
        learner = ContinualLearner(model, Begun(), LEVELS, batch_size=1, chunk=64, **options)
        return learner.prompt(example[0]), learner._row(example)[0], learner._row("a text")

    prompt, row, (text, given) = tokens(("sky", "blue"))
    assert text[0] == 7
    assert text.count(7) == 1
    assert given == 1
    assert prompt.count(7) == row.count(7) == 1
    assert bytes(prompt[prompt.index(7) + 1 :]) == b"sky\nlabel:"
    prompt, row, _ = tokens(("sky", "blue"), before="Examples.")
    assert prompt[0] == 7
    assert prompt.count(7) == 1
    assert row.count(7) == 0


def test_a_chunk_that_diverges_is_named_and_the_state_before_it_is_kept():
    """In the middle of a call, too: what came before is learned, what comes after is not."""
    bad = make_model(tied_head=False)
    bad.embed.embedding[ord("~")] = jnp.nan
    learner = make(bad)
    with pytest.raises(Diverged, match="chunk 1") as error:
        learner.learn([*EXAMPLES[:2], ("~", "nothing"), *EXAMPLES[2:]])
    assert error.value.position == 1
    assert error.value.level in ("fast", "slow")
    assert int(learner.snapshot()[0].step) == 1
    assert all(np.isfinite(leaf).all() for leaf in named_leaves(learner.snapshot()[0]).values())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda learner: learner.learn("a text"), "list of texts"),
        (lambda learner: learner.learn([("a", "b", "c")]), "expected a text"),
        (lambda learner: learner.learn([3]), "expected a text"),
        (lambda learner: learner.learn(3), "examples: 3; expected a list of texts"),
        (lambda learner: learner.learn([np.zeros(500)]), r"^example .{,50}: expected a text"),
        (lambda learner: learner.predict("a text"), "texts: one text; expected a list of texts"),
        (lambda learner: learner.predict(["a"], labels="ab"), "labels: one text; expected a list of texts"),
        (lambda learner: learner.predict(["a"], labels=["b"], batch_size=0), "batch_size=0: expected at least 1"),
        (lambda learner: learner.predict(["a"]), "no label was learned"),
        (lambda learner: learner.importance([]), "no examples"),
        (lambda learner: learner.load("/nowhere/at/all"), "nowhere"),
    ],
)
def test_bad_input_is_one_clear_error(model, call, message):
    with pytest.raises(InputError, match=message):
        call(make(model))


@pytest.mark.parametrize(
    "options", [{"chunk": 0}, {"chunk": 2.5}, {"batch_size": 0}, {"fill": 0}, {"question": "label:"}]
)
def test_bad_options_are_one_clear_error(model, options):
    with pytest.raises(InputError, match=next(iter(options))):
        make(model, **options)


def test_what_is_held_does_not_grow_with_the_stream(model):
    learner = make(model)
    sizes = []
    for round_ in range(3):
        learner.learn([(f"text {round_} {i}", label) for i, (_, label) in enumerate(EXAMPLES)] + [f"more {round_}"])
        sizes.append(sum(leaf.nbytes for leaf in named_leaves(learner.snapshot()[0]).values()))
    assert sizes[0] == sizes[1] == sizes[2]
    assert len(learner.labels) == len(EXAMPLES)


def test_importance_is_the_mean_squared_gradient_of_each_example(model):
    level = StackedLevel("a", blocks=(0,), rule="gradient_descent")
    learner = make(model, [level])
    each = [learner.importance([example])["a"]["down"] for example in EXAMPLES[:3]]
    np.testing.assert_allclose(learner.importance(EXAMPLES[:3])["a"]["down"], sum(each) / 3, rtol=1e-4, atol=1e-9)

    def loss(change):
        state = learner._stacked.init()
        state = state._replace(levels={"a": state.levels["a"]._replace(change={"down": change})})
        (chunk,) = next(iter(learner._chunks(EXAMPLES[:1])))
        _, read = learner._stacked.schedule().step(state, chunk)
        return jnp.sum(read.losses * chunk.mask)

    gradient = jax.grad(loss)(jnp.zeros_like(each[0]))
    np.testing.assert_allclose(each[0], gradient**2, rtol=1e-3, atol=1e-8)


def test_a_pull_brings_changes_back(model):
    """Without surprise, gradient descent on the pull alone shrinks what is away from the centre."""
    level = StackedLevel("a", blocks=(0,), rule="adam", learning_rate=1e-3)
    free, pulled = make(model, [level]), make(model, [level])
    zeros = jax.tree.map(jnp.zeros_like, free.snapshot()[0].levels["a"].change)
    pulled.pull = {"a": Pull(zeros, jax.tree.map(lambda leaf: leaf + 1e4, zeros))}
    for learner in (free, pulled):
        for _ in range(5):
            learner.learn(EXAMPLES)
    far, near = (float(jnp.linalg.norm(x.snapshot()[0].levels["a"].change["down"])) for x in (free, pulled))
    assert near < far / 2


def test_what_stands_before_is_read_and_not_learned(model):
    """Each example is learned as after ``before`` in its text, whose own tokens are no targets."""
    level = StackedLevel("a", blocks=(1,), learning_rate=20.0)
    tokenizer, before = ByteTokenizer(), "Q: the sea\nA: blue\n\n"
    learner = make(model, [level], before=before, question="Q: {text}\nA:", chunk=32)
    learned = learner.learn(EXAMPLES[:2])
    assert learned.tokens == len(" blue\n") + len(" green\n")

    start = [tokenizer.separator_id, *tokenizer.encode(before.encode())[0].tolist()]
    tokens, mask = np.zeros((2, 33), np.int32), np.zeros((2, 33), np.float32)
    for row, (text, label) in enumerate(EXAMPLES[:2]):
        asked = tokenizer.encode(f"Q: {text}\nA:".encode())[0].tolist()
        given = [*[10] * (16 - len(asked) % 16), *asked]  # after blank lines
        whole = [*given, *tokenizer.encode(f" {label}\n".encode())[0].tolist()]
        tokens[row, : len(whole)] = whole
        mask[row, len(given) : len(whole)] = 1.0
    chunk = Chunk(tokens[:, :-1], tokens[:, 1:], mask[:, 1:], model(np.asarray([start] * 2))[1])
    plain = make(model, [level])
    state, _ = plain._stacked.schedule().step(plain._stacked.init(), chunk)
    plain.rollback((state, {}))
    assert_equal(learner, plain, rtol=2e-3, atol=2e-4)

    whole = np.concatenate([np.asarray([start] * 2), tokens], axis=1)
    logits = jax.nn.log_softmax(learner.model(whole[:, :-1])[0])[:, -32:]
    losses = -jnp.take_along_axis(logits, chunk.targets[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(
        learner.score(EXAMPLES[:2]).loss, np.sum(losses * chunk.mask) / np.sum(chunk.mask), rtol=1e-5
    )


@pytest.mark.parametrize("before", ["", "the sea: blue\n"])
def test_answers_are_predicted_and_written(model, before):
    matrices = ("query", "value", "gate", "up", "down")
    level = StackedLevel("a", blocks=(0, 1), rule="adam", learning_rate=1e-2, matrices=matrices)
    learner = make(model, [level], before=before, question="{text}:")
    for _ in range(40):
        learner.learn(EXAMPLES)
    texts, labels = [text for text, _ in EXAMPLES], [label for _, label in EXAMPLES]
    assert learner.predict(texts) == labels
    assert learner.answer(texts, batch_size=3) == labels
    assert learner.answer(texts, num_tokens=3) == [label[:2] for label in labels]  # after a blank
    assert learner.answer([]) == []


def test_a_learner_with_something_else_before_is_refused(model, tmp_path):
    make(model, before="one").save(tmp_path / "saved")
    make(model, before="one").load(tmp_path / "saved")
    with pytest.raises(InputError, match="before one"):
        make(model).load(tmp_path / "saved")
