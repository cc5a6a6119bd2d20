"""Needles in a haystack against RULER's table and rules: counts, places, lengths, answers."""

import re
import uuid
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nl_jax import InputError
from nl_jax.data import ByteTokenizer
from nl_jax.tasks.niah import DEPTHS, NOISE, VARIANTS, niah_sample, split_sentences
from nl_jax.tasks.word_tokenizer import WordTokenizer, common_words
from nl_jax.tasks.words import ADJECTIVES, NOUNS

ESSAY = [word for i in range(200) for word in f"Sentence number {i} has some {{words}} of its own.".split()]
NEEDLE = re.compile(r"One of the special magic (\w+) for ([\w-]+) is: ([\w-]+)\.")
# RULER's table: haystack, type of keys and of values, keys, values of each, queries.
TABLE = {
    "s_1": ("noise", "words", "numbers", 1, 1, 1),
    "s_2": ("essay", "words", "numbers", 1, 1, 1),
    "s_3": ("essay", "words", "uuids", 1, 1, 1),
    "mk_1": ("essay", "words", "numbers", 4, 1, 1),
    "mk_2": ("needle", "words", "numbers", 1, 1, 1),
    "mk_3": ("needle", "uuids", "uuids", 1, 1, 1),
    "mq": ("essay", "words", "numbers", 4, 1, 4),
    "mv": ("essay", "words", "numbers", 1, 4, 1),
}
words = WordTokenizer([*ADJECTIVES, *NOUNS, *common_words(" ".join([NOISE, *ESSAY]), 100)])


def count_words(text):
    return len(words.encode(text.encode())[0])


def count_bytes(text):
    return len(ByteTokenizer().encode(text.encode())[0])


def is_of(kind, text):
    if kind == "numbers":
        return re.fullmatch(r"[1-9]\d{6}", text)
    if kind == "uuids":
        return str(uuid.UUID(text)) == text and uuid.UUID(text).version == 4
    adjective, noun = text.split("-")
    return adjective in ADJECTIVES and noun in NOUNS


def test_the_table_is_rulers():
    assert {name: tuple(variant) for name, variant in VARIANTS.items()} == TABLE


@pytest.mark.parametrize("name", TABLE)
@settings(max_examples=25)
@given(seed=st.integers(0, 2**31 - 1), index=st.integers(0, 2**31 - 1), length=st.integers(1100, 3000))
def test_samples_keep_the_rules(name, seed, index, length):
    haystack, key, value, keys, values, queries = TABLE[name]
    sample = niah_sample(seed, index, name, length=length, count=count_bytes, essay=ESSAY)
    assert sample == niah_sample(seed, index, name, length=length, count=count_bytes, essay=ESSAY)
    assert count_bytes(sample.prompt) + 128 <= length
    instruction, *context, question = sample.prompt.split("\n")
    needles = [needle.groups() for needle in NEEDLE.finditer("\n".join(context))]
    assert {kind for kind, _, _ in needles} == {value}
    assert all(is_of(key, k) and is_of(value, v) for _, k, v in needles)
    assert len({v for _, _, v in needles}) == len(needles)
    asked = {k for _, k, _ in needles if k in question}
    assert len(asked) == queries
    assert len(sample.answers) == queries * values
    assert set(sample.answers) == {v for _, k, v in needles if k in asked}
    if haystack == "needle":
        assert context == [NEEDLE.search(line)[0] for line in context]
        assert len({k for _, k, _ in needles}) == len(needles) > 4
    else:
        assert Counter(k for _, k, _ in needles) == Counter({k: values for _, k, _ in needles})
        assert len(needles) == keys * values
    if values > 1:  # in the order of the text
        assert list(sample.answers) == [v for _, _, v in needles]
    if haystack == "noise":
        assert [line for line in context if line != NOISE] == [NEEDLE.search("\n".join(context))[0]]
    if haystack == "essay":
        rest = re.sub(r"\s+", " ", NEEDLE.sub("", " ".join(context))).strip()
        repeated = " ".join(ESSAY * 20)
        assert repeated.startswith(rest)
        sentences = split_sentences(rest)
        places = {int(len(sentences) * (depth / 100)) for depth in DEPTHS}
        for needle in NEEDLE.finditer(" ".join(context)):
            before = NEEDLE.sub("", " ".join(context)[: needle.start()])
            assert len(split_sentences(before.strip())) in places
    kind = value[:-1] if queries * values == 1 else value
    verb = "is" if queries * values == 1 else "are"
    assert instruction.startswith("A special" if verb == "is" else "Some special")
    assert question.endswith(f" The special magic {kind} for {question.split(' for ')[-1][:-len(verb) - 32]}"
                             f" mentioned in the provided text {verb}")  # fmt: skip


@pytest.mark.parametrize("name", ["s_1", "s_2", "mk_2"])
@pytest.mark.parametrize(("count", "spare"), [(count_words, 40), (count_bytes, 120)])
def test_the_haystack_is_as_long_as_fits(name, count, spare):
    for length in (600, 1000, 5000):
        sample = niah_sample(0, 1, name, length=length, count=count, essay=ESSAY, generated=16)
        assert length - spare < count(sample.prompt) + 16 <= length


def test_needles_stand_everywhere():
    lines, depths = Counter(), Counter()
    for index in range(400):
        _, *context, _ = niah_sample(0, index, "s_1", length=250, count=count_words, generated=8).prompt.split("\n")
        lines[next(i for i, line in enumerate(context) if line != NOISE), len(context)] += 1
        text = niah_sample(0, index, "s_2", length=500, count=count_words, essay=ESSAY, generated=8).prompt
        depths[text.index("One of the special") > len(text) // 2] += 1
    (size,) = {size for _, size in lines}
    assert size >= 5
    assert {place for place, _ in lines} == set(range(size - 1))  # before each line of noise
    assert all(abs(count - 400 / (size - 1)) < 45 for count in lines.values())
    assert abs(depths[True] - 200) < 50


def test_values_and_keys_are_uniform():
    numbers, keys = Counter(), Counter()
    for index in range(800):
        sample = niah_sample(5, index, "s_1", length=160, count=count_words, generated=8)
        numbers[sample.answers[0][0]] += 1
        keys[NEEDLE.search(sample.prompt)[2].split("-")[0]] += 1
    assert set(numbers) == set("123456789")
    assert all(abs(count - 800 / 9) < 40 for count in numbers.values())
    assert len(keys) > 0.9 * len(ADJECTIVES)


def test_a_longer_essay_begins_alike_and_one_with_braces_is_kept():
    short, long = (niah_sample(1, 2, "s_2", length=n, count=count_words, essay=ESSAY) for n in (400, 800))
    assert short.answers == long.answers
    assert "{words}" in short.prompt


def test_word_lists_have_no_entry_twice():
    assert len(set(ADJECTIVES)) == len(ADJECTIVES) >= 200
    assert len(set(NOUNS)) == len(NOUNS) >= 300
    assert all(word.isalpha() and word.islower() for word in (*ADJECTIVES, *NOUNS))


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("s_4", {}, "unknown task 's_4'; expected one of s_1, s_2"),
        ("s_2", {"essay": ()}, "task s_2: its haystack is an essay"),
        ("mq", {"length": 300}, r"length 300: task mq needs at least \d+ tokens"),
    ],
)
def test_what_does_not_fit_is_refused(name, options, problem):
    with pytest.raises(InputError, match=problem):
        niah_sample(0, 0, name, **{"length": 2000, "count": count_bytes, "essay": ESSAY, **options})
