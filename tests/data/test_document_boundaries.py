"""Documents kept apart (reset) or not (carry): windows, batches, losses of models, training."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from nl_jax.data import BOUNDARIES, ByteTokenizer, Document, evaluation_batches, pack, padding_share, train_iterator
from nl_jax.errors import InputError
from nl_jax.evaluation import evaluate
from nl_jax.models import LanguageModel, LanguageModelConfig
from nl_jax.models.losses import mean_loss, token_losses
from nl_jax.parallel import parse_mesh
from nl_jax.training import fit, make_optimizer, read_metrics

SEPARATOR = ByteTokenizer.separator_id
TEXTS = st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=8)


def packed_of(texts):
    return pack([Document(str(i), text) for i, text in enumerate(texts)], ByteTokenizer())


def document_rows(batches):
    """Rows with a target: (inputs, targets), without padding."""
    rows = [row for batch in batches for row in zip(*(batch[k] for k in ("inputs", "targets", "mask")), strict=True)]
    assert all((np.diff(mask) <= 0).all() for _, _, mask in rows)  # padding is at the end
    return [(inputs[mask == 1], targets[mask == 1]) for inputs, targets, mask in rows if mask.any()]


@settings(deadline=None)
@given(TEXTS, st.integers(1, 12), st.integers(1, 4))
def test_every_token_is_a_target_once_and_no_window_holds_two_documents(texts, seq_len, batch_size):
    packed = packed_of(texts)
    expected = [[*text, SEPARATOR] for text in texts]  # its end is predicted too
    data = evaluation_batches(packed, batch_size=batch_size, seq_len=seq_len, document_boundaries="reset")
    rows, documents = document_rows(data.batches), []
    for inputs, targets in rows:
        assert (inputs[1:] == targets[:-1]).all()
        if inputs[0] == SEPARATOR:
            documents.append([])
        else:
            assert documents[-1][-1] == inputs[0]
        documents[-1] += targets.tolist()
    assert documents == expected
    assert data.num_tokens == sum(map(len, expected))
    assert data.num_bytes == sum(map(len, texts))
    assert padding_share(packed, seq_len) == pytest.approx(1 - data.num_tokens / (len(rows) * seq_len))


@settings(deadline=None, max_examples=20)
@given(TEXTS, st.integers(1, 12))
def test_an_epoch_of_training_has_the_same_windows(texts, seq_len):
    packed, sizes = packed_of(texts), {"batch_size": 1, "seq_len": seq_len, "document_boundaries": "reset"}
    windows = list(evaluation_batches(packed, **sizes).batches)
    iterator = train_iterator(packed, **sizes, seed=3)
    epoch = [next(iterator) for _ in windows]

    def key(batch):
        return [batch[name].tolist() for name in ("inputs", "targets", "mask")]

    assert sorted(map(key, epoch)) == sorted(map(key, windows))


@settings(deadline=None)
@given(TEXTS, TEXTS, TEXTS, st.integers(1, 12))
def test_the_windows_of_a_document_do_not_depend_on_the_others(texts, before, after, seq_len):
    """So no model's logits or losses can."""
    alone = evaluation_batches(packed_of(texts), batch_size=1, seq_len=seq_len, document_boundaries="reset")
    among = packed_of([*before, *texts, *after])
    batches = list(evaluation_batches(among, batch_size=1, seq_len=seq_len, document_boundaries="reset").batches)
    first = sum(-(-(len(text) + 1) // seq_len) for text in before)
    for batch, other in zip(alone.batches, batches[first:], strict=False):
        assert all(np.array_equal(batch[key], other[key]) for key in batch)


@settings(deadline=None, max_examples=30)
@given(TEXTS, st.integers(1, 12))
def test_bytes_and_targets_are_the_same_both_ways(texts, seq_len):
    packed = packed_of(texts)
    sets = [evaluation_batches(packed, batch_size=2, seq_len=seq_len, document_boundaries=way) for way in BOUNDARIES]
    assert sets[0].num_bytes == sets[1].num_bytes == sum(map(len, texts))
    assert sets[0].num_tokens == sets[1].num_tokens
    targets = [np.concatenate([targets for _, targets in document_rows(data.batches)]) for data in sets]
    np.testing.assert_array_equal(*targets)


PACKED = packed_of([bytes(np.random.default_rng(i).integers(97, 123, 5 + 7 * i)) for i in range(12)])
RESET = functools.partial(train_iterator, PACKED, seq_len=8, document_boundaries="reset")


def test_processes_share_a_batch_and_a_stopped_run_goes_on():
    iterator = RESET(batch_size=6, seed=1)
    whole = [next(iterator) for _ in range(9)]
    parts = [RESET(batch_size=6, seed=1, rows=range(2 * i, 2 * i + 2)) for i in range(3)]
    for batch in whole[:4]:
        shares = [next(part) for part in parts]
        assert {key: value.dtype for key, value in shares[0].items()} == {
            "inputs": np.int32,
            "targets": np.int32,
            "mask": np.float32,
        }
        for key, value in batch.items():
            np.testing.assert_array_equal(np.concatenate([share[key] for share in shares]), value)
    again = RESET(batch_size=6, seed=1)
    again.set_state(parts[2].get_state())
    for batch in whole[4:]:
        other = next(again)
        assert all(np.array_equal(batch[key], other[key]) for key in batch)


def test_bad_arguments():
    with pytest.raises(ValueError, match="document_boundaries='keep': expected one of carry, reset"):
        evaluation_batches(PACKED, batch_size=2, seq_len=4, document_boundaries="keep")
    for make in (functools.partial(train_iterator, seed=0), evaluation_batches):
        with pytest.raises(InputError, match="no text"):
            make(pack([], ByteTokenizer()), batch_size=2, seq_len=4, document_boundaries="reset")
    assert next(RESET(batch_size=2, seed=0))["inputs"].shape == (2, 8)
    assert (
        next(train_iterator(PACKED, batch_size=1, seq_len=900, seed=0, document_boundaries="reset"))["mask"] == 0
    ).any()


SIZES = {"width": 8, "num_layers": 1, "num_heads": 1, "mlp_hidden": 8, "chunk_size": 4, "vocab_size": 257}


@pytest.fixture(scope="module", params=["attention", "delta_net"])
def model(request):
    learns = {"cms_periods": (4, 8), "cms_regime": "online"}
    fields = {"context_length": 16} if request.param == "attention" else learns
    return LanguageModel(LanguageModelConfig(request.param, **SIZES, **fields), rngs=nnx.Rngs(0))


def test_another_document_changes_a_documents_losses_only_where_they_are_carried(model):
    losses, read = {}, jax.jit(token_losses)
    for way in BOUNDARIES:
        for first in (b"one ", b"TWO!"):
            data = evaluation_batches(
                packed_of([first, b"second document"]), batch_size=2, seq_len=16, document_boundaries=way
            )
            found = [np.asarray(read(model, batch))[batch["mask"] == 1] for batch in data.batches]
            losses[way, first] = np.concatenate(found)[5:]  # those of the second document
    assert len(losses["reset", b"one "]) == 16
    np.testing.assert_array_equal(losses["reset", b"one "], losses["reset", b"TWO!"])
    assert np.abs(losses["carry", b"one "] - losses["carry", b"TWO!"])[1:].max() > 1e-4


def test_a_training_step_leaves_the_padding_out(model):
    """Also where a model learns in context, which padding must not teach."""
    batch = next(RESET(batch_size=24, seed=5))
    assert 0 < (batch["mask"] == 0).sum() < batch["mask"].size
    other = {**batch, "targets": np.where(batch["mask"] == 1, batch["targets"], 7)}
    step = jax.jit(jax.value_and_grad(mean_loss))
    (loss, gradient), (same, again) = step(model, batch), step(model, other)
    assert loss == same
    jax.tree.map(np.testing.assert_array_equal, gradient, again)
    losses = np.asarray(jax.jit(token_losses)(model, batch))
    assert loss == pytest.approx(losses[batch["mask"] == 1].mean(), rel=1e-5)


def test_a_run_of_fit(model, tmp_path):
    """Training and evaluation take such batches as they are."""
    if getattr(model, "learns_in_context", False):
        pytest.skip("one model will do")
    mesh = parse_mesh("data:1", jax.devices()[:1])
    data = evaluation_batches(PACKED, batch_size=2, seq_len=8, document_boundaries="reset")
    sizes = {"steps": 4, "eval_every": 4, "checkpoint_every": 4}
    optimizer = make_optimizer(learning_rate=1e-2, steps=4)
    state, progress = fit(
        "model", lambda: model, optimizer, RESET(batch_size=4, seed=0), data, workdir=tmp_path, mesh=mesh, **sizes
    )
    assert progress.validation_bits_per_byte == evaluate(state.model, data, mesh)
    assert all(np.isfinite(row["loss"]) for row in read_metrics(tmp_path) if "loss" in row)
