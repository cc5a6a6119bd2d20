import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nl_jax.data import (
    ByteTokenizer,
    Document,
    Packed,
    evaluation_batches,
    load_text_data,
    pack,
    train_iterator,
    windows,
)
from nl_jax.errors import InputError


def counting(n):
    """A stream whose token at position i is i, and covers i % 4 bytes."""
    return Packed(np.arange(n, dtype=np.uint16), (np.arange(n) % 4).astype(np.uint8), np.array([0, n - 1]))


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_same(got, expected):
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


@settings(deadline=None)
@given(st.integers(2, 60), st.integers(1, 20))
def test_windows_make_every_token_but_the_first_a_target_once(n, seq_len):
    if n < seq_len + 1:
        with pytest.raises(InputError, match=f"seq_len={seq_len}: expected at most"):
            windows(np.arange(n), seq_len)
        return
    rows = windows(np.arange(n), seq_len)
    count = (n - 1) // seq_len
    assert rows.shape == (count, seq_len + 1)
    assert rows[:, 1:].ravel().tolist() == list(range(1, count * seq_len + 1))
    np.testing.assert_array_equal(rows[:, :-1] + 1, rows[:, 1:])


def test_training_batches_have_shapes_types_and_targets_one_ahead():
    batch = next(train_iterator(counting(101), batch_size=4, seq_len=10, seed=0))
    assert set(batch) == {"inputs", "targets"}
    for array in batch.values():
        assert (array.shape, array.dtype) == ((4, 10), np.int32)
    np.testing.assert_array_equal(batch["inputs"] + 1, batch["targets"])
    assert (batch["inputs"][:, 0] % 10 == 0).all()


def test_every_epoch_has_every_window_once_in_a_new_order():
    iterator = train_iterator(counting(205), batch_size=3, seq_len=10, seed=0)  # 20 windows: batches span epochs
    order = np.concatenate([batch["inputs"][:, 0] // 10 for batch in take(iterator, 20)]).reshape(3, 20)
    for epoch in order:
        assert sorted(epoch) == list(range(20))
    assert len({tuple(epoch) for epoch in order}) == 3
    assert tuple(range(20)) not in {tuple(epoch) for epoch in order}


def test_the_seed_decides_the_order():
    def first(seed):
        return take(train_iterator(counting(205), batch_size=5, seq_len=10, seed=seed), 4)

    assert_same(first(0), first(0))
    assert any((one["inputs"] != other["inputs"]).any() for one, other in zip(first(0), first(1), strict=True))


@pytest.mark.parametrize("done", [0, 1, 9])
def test_restoring_the_state_continues_with_the_next_batch(done):
    iterator = train_iterator(counting(205), batch_size=3, seq_len=10, seed=7)
    take(iterator, done)
    state = iterator.get_state()
    expected = take(iterator, 12)
    iterator.set_state(state)
    assert_same(take(iterator, 12), expected)
    fresh = train_iterator(counting(205), batch_size=3, seq_len=10, seed=7)
    fresh.set_state(state)
    assert_same(take(fresh, 12), expected)


def test_an_orbax_checkpoint_continues_with_the_next_batch(tmp_path):
    iterator = train_iterator(counting(205), batch_size=3, seq_len=10, seed=7)
    take(iterator, 8)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(8, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator)))
        manager.wait_until_finished()
        expected = take(iterator, 5)
        fresh = train_iterator(counting(205), batch_size=3, seq_len=10, seed=7)
        manager.restore(8, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(fresh)))
    assert_same(take(fresh, 5), expected)


def test_the_rows_of_a_process_are_those_of_the_global_batch():
    def batches(rows):
        iterator = train_iterator(counting(205), batch_size=6, seq_len=10, seed=3, rows=rows)
        return take(iterator, 5), iterator.get_state()

    whole, state = batches(None)
    for rows in ([0, 1, 2], [3, 4, 5], [0, 4], [2]):
        part, other = batches(rows)
        assert_same(part, [{key: value[rows] for key, value in batch.items()} for batch in whole])
        assert other == state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"seq_len": 0}, "seq_len=0"),
        ({"seq_len": 205}, "seq_len=205: expected at most 204"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_training_arguments(change, message):
    with pytest.raises(InputError, match=message):
        train_iterator(counting(205), **({"batch_size": 6, "seq_len": 10, "seed": 0} | change))


def test_the_longest_sequence_that_fits():
    batch = next(train_iterator(counting(205), batch_size=2, seq_len=204, seed=0))
    assert batch["targets"][:, -1].tolist() == [204, 204]


@settings(deadline=None)
@given(st.integers(2, 80), st.integers(1, 12), st.integers(1, 5))
def test_evaluation_scores_every_token_but_the_first_once_in_order(n, seq_len, batch_size):
    packed = counting(n)
    evaluation = evaluation_batches(packed, batch_size=batch_size, seq_len=seq_len)
    batches = list(evaluation.batches)
    for batch in batches:
        assert {key: (array.shape, array.dtype) for key, array in batch.items()} == {
            "inputs": ((batch_size, seq_len), np.int32),
            "targets": ((batch_size, seq_len), np.int32),
            "mask": ((batch_size, seq_len), np.float32),
        }
        assert batch["mask"].any()
        kept = batch["mask"] == 1
        assert (kept | (batch["mask"] == 0)).all()
        assert (batch["targets"][~kept] == 0).all()
        np.testing.assert_array_equal(batch["targets"][kept], batch["inputs"][kept] + 1)
    targets = np.concatenate([batch["targets"][batch["mask"] == 1] for batch in batches])
    assert targets.tolist() == list(range(1, n))
    assert evaluation.num_tokens == n - 1
    assert evaluation.num_bytes == packed.bytes_per_token[1:].sum()
    assert_same(list(evaluation.batches), batches)  # a second time


@settings(deadline=None)
@given(st.integers(2, 80), st.integers(1, 12), st.integers(1, 5), st.integers(1, 100))
def test_max_tokens_takes_windows_spread_over_the_split(n, seq_len, batch_size, max_tokens):
    packed = counting(n)
    evaluation = evaluation_batches(packed, batch_size=batch_size, seq_len=seq_len, max_tokens=max_tokens)
    targets = np.concatenate([batch["targets"][batch["mask"] == 1] for batch in evaluation.batches])
    assert len(targets) == evaluation.num_tokens <= max(max_tokens, seq_len)
    assert packed.bytes_per_token[targets].sum() == evaluation.num_bytes
    assert (np.diff(targets.astype(int)) > 0).all()
    total = -(-(n - 1) // seq_len)
    chosen = np.unique((targets - 1) // seq_len)
    assert len(chosen) == min(total, max(1, max_tokens // seq_len))
    # Evenly: no gap, the ends included, is a whole step longer than the others.
    gaps = np.diff([-1 - chosen[0], *chosen, 2 * total - 1 - chosen[-1]])
    assert gaps.max() - gaps.min() <= 2


def test_batches_can_be_indexed():
    batches = evaluation_batches(counting(100), batch_size=2, seq_len=10).batches
    assert len(batches) == 5
    assert_same([batches[-1], batches[0]], [batches[4], batches[0]])
    for index in (5, -6):
        with pytest.raises(IndexError):
            batches[index]


@pytest.mark.parametrize("name", ["batch_size", "seq_len", "max_tokens"])
def test_bad_evaluation_arguments(name):
    with pytest.raises(InputError, match=f"--{name}=0"):
        evaluation_batches(counting(50), **({"batch_size": 2, "seq_len": 4} | {name: 0}))


def test_an_empty_split_cannot_be_evaluated():
    with pytest.raises(InputError, match="no text"):
        evaluation_batches(pack([], ByteTokenizer()), batch_size=2, seq_len=4)


def test_load_text_data(tmp_path):
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"text number {i} é\n" * 5, encoding="utf-8")
    data = load_text_data(str(tmp_path))
    assert data.fingerprint["documents"] == 40
    splits = (data.documents.train, data.documents.validation, data.documents.test)
    assert sum(map(len, splits)) == 40
    for split, packed in zip(splits, (data.train, data.validation, data.test), strict=True):
        assert split
        assert isinstance(split[0], Document)
        expected = pack(split, data.tokenizer)
        np.testing.assert_array_equal(packed.tokens, expected.tokens)
    assert data.train_text == b"".join(document.text for document in data.documents.train)
    assert data.test_text == b"".join(document.text for document in data.documents.test)
    assert (
        sum(packed.bytes_per_token.sum() for packed in (data.train, data.validation, data.test))
        == (data.fingerprint["bytes"])
    )
    with pytest.raises(InputError, match="no such file"):
        load_text_data(str(tmp_path), tokenizer_path=str(tmp_path / "none.json"))


@pytest.mark.parametrize("length", [30, 100, 101])
def test_batches_of_one(length):
    packed = counting(length)
    batches = train_iterator(packed, batch_size=1, seq_len=10, seed=0)
    count = (length - 1) // 10
    starts = [int(next(batches)["inputs"][0, 0]) for _ in range(2 * count)]
    assert sorted(starts[:count]) == sorted(starts[count:]) == list(range(0, 10 * count, 10))


@pytest.mark.parametrize("rows", [[6], [-1], []])
def test_rows_that_a_batch_does_not_have(rows):
    with pytest.raises(ValueError, match="expected some of the rows 0 to 5"):
        train_iterator(counting(205), batch_size=6, seq_len=10, seed=0, rows=rows)
