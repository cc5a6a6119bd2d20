"""Formal languages: strings and labels against the languages' definitions, and the shares of the grammars' strings."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nl_jax import InputError
from nl_jax.tasks import LANGUAGES, formal_language_batch, parity_batch
from nl_jax.tasks.formal_languages import number_of_strings

ALPHABETS = {
    "parity": "01",
    "aa": "a",
    "abab": "ab",
    "anbn": "ab",
    "anbncn": "abc",
    "shuffle_2": "()[]",
    "shuffle_2_interleaved": "()[]",
}
every_language = pytest.mark.parametrize("name", LANGUAGES)
SHUFFLES = ("shuffle_2", "shuffle_2_interleaved")


def strings_of(name, batch):
    """The strings of a batch as text, and the labels of each."""
    alphabet = ALPHABETS[name]
    for inputs, targets, mask in zip(*(array.tolist() for array in batch.values()), strict=True):
        length = int(sum(mask))
        assert mask == [1] * length + [0] * (len(mask) - length)
        assert set(inputs[length:]) <= {len(alphabet)}
        assert set(targets[length:]) <= {0}
        yield "".join(alphabet[symbol] for symbol in inputs[:length]), targets[:length]


def closed(string, kind):
    """Whether the brackets of a kind are balanced, whatever stands between them."""
    own = "".join(symbol for symbol in string if symbol in kind)
    while kind in own:
        own = own.replace(kind, "")
    return own == ""


def member(name, string):
    n = len(string)
    return {
        "parity": string.count("1") % 2 == 0,
        "aa": n % 2 == 0,
        "abab": string == "abab" * (n // 4),
        "anbn": string == "a" * (n // 2) + "b" * (n // 2),
        "anbncn": string == "a" * (n // 3) + "b" * (n // 3) + "c" * (n // 3),
        "shuffle_2": closed(string, "()") and closed(string, "[]"),
        "shuffle_2_interleaved": closed(string, "()") and closed(string, "[]"),
    }[name]


def labels(name, string):
    """The labels of all prefixes by the definition of the language."""
    if name in ("parity", "aa", "abab"):
        return [int(member(name, string[:t])) for t in range(1, len(string) + 1)]
    if name == "anbn":
        n = len(string) // 2
        return [int(x) for x in "0" * n + "1" * (n - 1) + "2"]
    if name == "anbncn":
        n = len(string) // 3
        return [int(x) for x in "0" * n + "1" * (n - 1) + "2" * n + "3"]
    found = []
    for t in range(1, len(string) + 1):
        prefix = string[:t]
        round_open, square_open = prefix.count("(") > prefix.count(")"), prefix.count("[") > prefix.count("]")
        found.append(2 * round_open + square_open)
    return found


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from(list(LANGUAGES)),
    st.integers(1, 5),
    st.integers(1, 12),
    st.integers(4, 14),
    st.integers(0, 2**31 - 1),
    st.integers(0, 10**6),
    st.booleans(),
)
def test_every_prefix_has_its_label(name, count, low, more, seed, step, distinct):
    window = low, low + more
    count = min(count, number_of_strings(name, window))
    batch = formal_language_batch(name, seed, step, batch_size=count, window=window, distinct=distinct)
    language = LANGUAGES[name]
    shape = count, language.longest(window)
    assert {key: (array.shape, array.dtype) for key, array in batch.items()} == {
        "inputs": (shape, np.int32),
        "targets": (shape, np.int32),
        "mask": (shape, np.float32),
    }
    assert batch["inputs"].max() < language.vocabulary
    assert batch["targets"].max() < language.classes <= language.vocabulary
    assert language.symbols == len(ALPHABETS[name])
    strings = list(strings_of(name, batch))
    for string, targets in strings:
        assert member(name, string)
        assert targets == labels(name, string)
        size = {"anbn": 2, "anbncn": 3}.get(name, 1)  # their windows are of n
        assert window[0] <= len(string) / size <= window[1]
        assert not (name == "shuffle_2" and crossing(string))  # the grammar nests what the labels only count
    if distinct:
        assert len({string for string, _ in strings}) == count
    np.testing.assert_equal(
        formal_language_batch(name, seed, step, batch_size=count, window=window, distinct=distinct), batch
    )


@every_language
def test_as_many_strings_as_there_are(name):
    """All strings over the alphabet, tried one by one; and all of them are drawn."""
    low, high = {"abab": (3, 9), "anbn": (1, 2), "anbncn": (1, 2)}.get(name, (1, 4))
    size = {"anbn": 2, "anbncn": 3}.get(name, 1)  # their windows are of n
    words = (
        "".join(word)
        for length in range(low * size, high * size + 1)
        for word in itertools.product(ALPHABETS[name], repeat=length)
    )
    found = {word for word in words if member(name, word)}
    if name == "shuffle_2":
        found = {word for word in found if not crossing(word)}
    assert number_of_strings(name, (low, high)) == len(found)
    batch = formal_language_batch(name, 0, 0, batch_size=len(found), window=(low, high), distinct=True)
    assert {string for string, _ in strings_of(name, batch)} == found


def crossing(word):
    """Whether brackets of the two types are closed in another order than that of a stack."""
    while "()" in word or "[]" in word:
        word = word.replace("()", "").replace("[]", "")
    return word != ""


def test_parity_is_the_one_generator():
    for distinct in (False, True):
        np.testing.assert_equal(
            formal_language_batch("parity", 3, 4, batch_size=9, window=(2, 20), distinct=distinct),
            parity_batch(3, 4, batch_size=9, min_length=2, max_length=20, distinct=distinct),
        )


@pytest.mark.parametrize(("name", "size"), [("aa", 2), ("abab", 4), ("anbn", 1), ("anbncn", 1)])
def test_lengths_are_uniform_and_rounded_down(name, size):
    count, low, high = 6000, 5, 18
    batch = formal_language_batch(name, 0, 0, batch_size=count, window=(low, high))
    scale = {"anbn": 2, "anbncn": 3}.get(name, 1)
    found = Counter(int(length) // scale for length in batch["mask"].sum(1))
    rounded = Counter(n // size * size for n in range(low, high + 1) if n // size * size >= low)
    for length, times in rounded.items():
        share = times / rounded.total()
        assert found.pop(length) / count == pytest.approx(share, abs=5 * (share / count) ** 0.5)
    assert not found


def grammar(types, longest):
    """The probability of every string up to a length in the grammar S -> (S) | S S | empty: the least fixed point."""
    chances = {}
    for _ in range(60):
        new = Counter({"": 0.25})
        for string, p in chances.items():
            for kind in types:
                if len(string) + 2 <= longest:
                    new[kind[0] + string + kind[1]] += 0.5 * p / len(types)
        for (a, p), (b, q) in itertools.product(chances.items(), repeat=2):
            if len(a) + len(b) <= longest:
                new[a + b] += 0.25 * p * q
        chances = dict(new)
    return chances


@pytest.mark.parametrize("name", SHUFFLES)
def test_brackets_follow_the_grammar(name):
    longest, count = 4, 20_000
    if name == "shuffle_2":
        expected = grammar(("()", "[]"), longest)
    else:
        expected = Counter()
        for (a, p), (b, q) in itertools.product(grammar(("()",), longest).items(), grammar(("[]",), longest).items()):
            if len(a) + len(b) <= longest:
                merged = merges(a, b)
                for word in merged:
                    expected[word] += p * q / len(merged)
    expected = {word: p for word, p in expected.items() if len(word) >= 2}
    batch = formal_language_batch(name, 0, 0, batch_size=count, window=(2, longest))
    found = Counter(string for string, _ in strings_of(name, batch))
    assert set(found) == set(expected)
    for word, p in expected.items():
        share = p / sum(expected.values())
        assert found[word] / count == pytest.approx(share, abs=5 * (share / count) ** 0.5), word
    assert any(crossing(word) for word in found) == (name == "shuffle_2_interleaved")


def merges(a, b):
    """All ways to merge two strings, one entry for each choice of places."""
    found = []
    for places in itertools.combinations(range(len(a) + len(b)), len(a)):
        left, right = iter(a), iter(b)
        found.append("".join(next(left) if i in places else next(right) for i in range(len(a) + len(b))))
    return found


@pytest.mark.parametrize(
    ("name", "size", "window", "problem"),
    [
        ("dyck", 1, (2, 4), "unknown language 'dyck'; expected one of parity, aa, "),
        ("aa", 0, (2, 4), "batch_size=0: expected at least 1"),
        ("aa", 3, (2, 4), "3 strings of aa from 2 to 4: expected at most 2, all there are"),
        ("abab", 1, (1, 3), "1 strings of abab from 1 to 3: expected at most 0"),
        ("anbn", 1, (0, 3), "expected at most 0"),
        ("shuffle_2", 1, (4, 3), "expected at most 0"),
    ],
)
def test_what_does_not_exist_is_refused(name, size, window, problem):
    with pytest.raises(InputError, match=problem):
        formal_language_batch(name, 0, 0, batch_size=size, window=window, distinct=True)
