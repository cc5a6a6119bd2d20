"""Needles in a haystack, by the rules of RULER: find values by their keys in a long text."""

import re
import uuid
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from nl_jax.errors import InputError
from nl_jax.tasks.words import ADJECTIVES, NOUNS


class Variant(NamedTuple):
    """What a task of the family hides, and where."""

    haystack: str  # "noise", "essay" or "needle"
    key: str  # type of the keys: "words" or "uuids"
    value: str  # type of the values: "numbers" or "uuids"
    keys: int = 1  # keys in the text, those of a haystack of needles aside
    values: int = 1  # values of each key
    queries: int = 1  # keys that are asked for


VARIANTS = {
    "s_1": Variant("noise", "words", "numbers"),
    "s_2": Variant("essay", "words", "numbers"),
    "s_3": Variant("essay", "words", "uuids"),
    "mk_1": Variant("essay", "words", "numbers", keys=4),
    "mk_2": Variant("needle", "words", "numbers"),
    "mk_3": Variant("needle", "uuids", "uuids"),
    "mq": Variant("essay", "words", "numbers", keys=4, queries=4),
    "mv": Variant("essay", "words", "numbers", values=4),
}
"""What each task of the family hides, and in what, by the name of the task (RULER)."""
GENERATED = 128  # tokens that RULER leaves for the answer
DEPTHS = np.linspace(0, 100, 40).round().astype(int)  # in per cent of an essay's sentences
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic {type} for {key} is: {value}."
_MANY = (
    "Some special magic {type} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {type} afterwards.",
    "What are all the special magic {type} for {query} mentioned in the provided text?"
    " The special magic {type} for {query} mentioned in the provided text are",
)
_ONE = (
    "A special magic {type} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {type} afterwards.",
    "What is the special magic {type} for {query} mentioned in the provided text?"
    " The special magic {type} for {query} mentioned in the provided text is",
)
WORDS = frozenset(
    re.findall(r"[A-Za-z]+", " ".join([NOISE, NEEDLE, *_MANY, *_ONE, *ADJECTIVES, *NOUNS, "number numbers uuid uuids"]))
)  # all that samples consist of, an essay and codes aside


class Sample(NamedTuple):
    """One question.

    Examples:
        >>> from nl_jax.tasks import Sample
        >>> Sample("One number is 7. The number is", ("7",)).answers
        ('7',)
    """

    prompt: str  # instruction, text, question and the beginning of the answer
    answers: tuple[str, ...]  # all values that are asked for; those of a key in the order in which the text has them


def niah_sample(
    seed: int,
    index: int,
    variant: str,
    *,
    length: int,
    count: Callable[[str], int],
    essay: Sequence[str] = (),
    generated: int = GENERATED,
) -> Sample:
    """One sample, as a pure function of the arguments; each seed and index has its own random stream.

    The haystack is as long as possible: lines of noise, words of the essay (from its beginning, which is repeated if it
    is too short), or needles with other keys. Needles stand in random lines or, in an essay, after sentences at depths
    that are drawn without replacement from `DEPTHS`. No two keys of a sample are equal, and no two values.

    Args:
        seed: random seed, 0 or more.
        index: index of the sample, 0 or more.
        variant: one of `VARIANTS`.
        length: largest number of tokens of the prompt and the answer together.
        count: the number of tokens of a text, such as ``lambda text: len(tokenizer.encode(text.encode())[0])``.
        essay: words of the essay, in their order; for variants whose haystack is one.
        generated: number of tokens that are left for the answer.

    Raises:
        InputError: if the variant is unknown, needs an essay, or does not fit the length.

    Examples:
        >>> from nl_jax.tasks import niah_sample
        >>> sample = niah_sample(0, 0, "s_1", length=300, count=lambda text: len(text.split()))
        >>> sample.answers[0] in sample.prompt, len(sample.prompt.split()) <= 300
        (True, True)

    References:
        Hsieh et al., `RULER <https://arxiv.org/abs/2404.06654>`_, 2024, and its code.
    """
    if variant not in VARIANTS:
        raise InputError(f"unknown task {variant!r}; expected one of {', '.join(VARIANTS)}")
    rules = VARIANTS[variant]
    if rules.haystack == "essay" and not essay:
        raise InputError(f"task {variant}: its haystack is an essay, and there is no word in the one that is given")

    def made(size: int) -> Sample:
        return _made(np.random.default_rng((seed, index)), rules, size, essay)

    def used(size: int) -> int:
        return count(made(size).prompt) + generated

    least = rules.keys * rules.values if rules.haystack != "essay" else 1  # needles stand in different lines
    if used(least) > length:
        raise InputError(f"length {length}: task {variant} needs at least {used(least)} tokens")
    return made(_largest(used, least, length))


def _largest(used: Callable[[int], int], low: int, most: int) -> int:
    """The largest size that uses at most ``most``, found by interpolation, since use grows about evenly with size.

    ``low`` is a size that fits. If use does not grow with every step, some size that fits is found whose next one does
    not.
    """
    at_low, high = used(low), low + 8
    while (at_high := used(high)) <= most:
        growth = max((at_high - at_low) / (high - low), 1e-3)
        low, at_low, high = high, at_high, high + 1 + min(int((most - at_high) / growth), 16 * high)
    while high - low > 1:
        guess = low + (most - at_low) * (high - low) // (at_high - at_low)
        guess = min(max(guess, low + 1), high - 1)
        at_guess = used(guess)
        if at_guess <= most:
            low, at_low = guess, at_guess
        else:
            high, at_high = guess, at_guess
    return low


def _made(random: np.random.Generator, rules: Variant, size: int, essay: Sequence[str]) -> Sample:
    """A sample whose haystack has ``size`` lines or words. The needles do not depend on the size."""
    keys = _distinct(random, rules.key, rules.keys)
    values = _distinct(random, rules.value, rules.keys * rules.values)
    pairs = [(key, values[i * rules.values + j]) for i, key in enumerate(keys) for j in range(rules.values)]
    pairs = [pairs[i] for i in random.permutation(len(pairs))]
    asked = [keys[i] for i in random.choice(len(keys), rules.queries, replace=False)]
    needles = [NEEDLE.format(type=rules.value, key=key, value=value) for key, value in pairs]
    if rules.haystack == "essay":
        depths = np.sort(random.choice(DEPTHS, len(needles), replace=False))
        context = _in_essay(essay, size, needles, depths.tolist())
    else:
        if rules.haystack == "noise":
            lines = [NOISE] * size
        else:
            others = _others(random, rules, size, {*keys, *values})
            lines = [NEEDLE.format(type=rules.value, key=key, value=value) for key, value in others]
        places = np.sort(random.choice(size, len(needles), replace=False))
        for place, needle in zip(places[::-1], needles[::-1], strict=True):  # from the end, so that places stay
            lines.insert(place, needle)
        context = "\n".join(lines)
    instruction, question = _ONE if rules.queries * rules.values == 1 else _MANY
    kind = rules.value[:-1] if rules.queries * rules.values == 1 else rules.value
    query = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])}, and {asked[-1]}"
    prompt = "\n".join([instruction.format(type=kind), context, question.format(type=kind, query=query)])
    return Sample(prompt, tuple(value for name in asked for key, value in pairs if key == name))


def _in_essay(words: Sequence[str], size: int, needles: Sequence[str], depths: Sequence[int]) -> str:
    """The first words of an essay, with needles between its sentences at depths in per cent."""
    repeated = list(words) * (-(-size // len(words)))
    sentences = split_sentences(" ".join(repeated[:size]))
    pieces, begin = [], 0
    for needle, depth in zip(needles, depths, strict=True):
        end = int(len(sentences) * (depth / 100))
        pieces += [*sentences[begin:end], needle]
        begin = end
    return " ".join([*pieces, *sentences[begin:]])


def split_sentences(text: str) -> list[str]:
    """The sentences of a text: each ends with a full stop, a question mark or an exclamation mark before a space."""
    return [sentence for sentence in re.split(r"(?<=[.!?])\s+", text) if sentence]


def _others(random: np.random.Generator, rules: Variant, size: int, used: set[str]) -> list[tuple[str, str]]:
    """Keys and values of needles that are not asked for, line by line, so that more lines begin alike."""
    found: list[tuple[str, str]] = []
    while len(found) < size:
        pair = _drawn(random, rules.key), _drawn(random, rules.value)
        if not used & set(pair):
            used.update(pair)
            found.append(pair)
    return found


def _distinct(random: np.random.Generator, kind: str, number: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < number:
        found.setdefault(_drawn(random, kind))
    return list(found)


def _drawn(random: np.random.Generator, kind: str) -> str:
    if kind == "words":
        return f"{ADJECTIVES[random.integers(len(ADJECTIVES))]}-{NOUNS[random.integers(len(NOUNS))]}"
    if kind == "numbers":
        return str(random.integers(10**6, 10**7))
    return str(uuid.UUID(bytes=random.bytes(16), version=4))
