"""The closed vocabulary: what it keeps of a text, and what it does not know."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nl_jax.tasks.word_tokenizer import UNKNOWN, WordTokenizer, common_words

tokenizer = WordTokenizer(["the", "magic", "Number", "for", "big", "cat", "is", "a"])


def test_numbers_and_uuids_are_found_again_in_what_is_decoded():
    for value in ("1234567", "0a3f9c1e-12ab-4cd3-8ef0-abcdef012345", "big-cat"):
        ids, _ = tokenizer.encode(f"The magic number for it is: {value}. A cat,\n the cat".encode())
        text = tokenizer.decode(ids)
        assert value in text
        assert text.startswith("the magic number for <unk> is:")
        assert tokenizer.decode(tokenizer.encode(value.encode())[0]) == value
    assert len(tokenizer.encode(b"1234567")[0]) == 4
    assert len(tokenizer.encode(b"0a3f9c1e-12ab-4cd3-8ef0-abcdef012345")[0]) == 20


@given(st.text())
def test_every_byte_counts_once_and_ids_are_in_the_vocabulary(text):
    ids, counts = tokenizer.encode(text.encode())
    assert ids.dtype == counts.dtype == np.int32
    assert len(ids) == len(counts)
    assert ((ids > 0) & (ids < tokenizer.vocab_size)).all()
    assert counts.sum() == (len(text.encode()) if len(ids) else 0)
    assert (counts >= 0).all()


def test_unknown_words_are_one_token_and_case_does_not_count():
    unknown, known = tokenizer.encode(b"dog")[0], tokenizer.encode(b"CAT")[0]
    assert unknown.tolist() == [tokenizer.unknown_id]
    assert tokenizer.decode(unknown) == UNKNOWN
    assert tokenizer.decode(known) == "cat"
    assert tokenizer.decode(np.asarray([tokenizer.separator_id, -1, tokenizer.vocab_size])) == ""


def test_common_words_are_the_most_frequent_ones():
    assert common_words("a b b c C c", 2) == ["c", "b"]
