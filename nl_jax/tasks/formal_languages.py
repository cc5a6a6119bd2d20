"""Formal languages as sequence labelling: after each symbol, what is true of the string so far, or what may follow.

All strings are members of their language; the labels of their prefixes carry the signal. The languages are regular
(parity, (aa)*, (abab)*), or need one or two counters (a^n b^n, a^n b^n c^n, Shuffle-2).

References:
    Bhattamishra et al., `On the Ability and Limitations of Transformers to Recognize Formal Languages
    <https://arxiv.org/abs/2009.11264>`_, 2020, with one softmax over labels at each symbol as in Irie et al.,
    `Practical Computational Power of Linear Transformers <https://arxiv.org/abs/2310.16076>`_, 2023.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from nl_jax.errors import InputError
from nl_jax.tasks.parity import PARITY_VOCABULARY, parity_batch
from nl_jax.tasks.recall import Batch

NEST, SPLIT = 0.5, 0.25  # probabilities of S -> (S) and of S -> S S; else S is empty
MOST_DRAWS = 1000  # for each distinct string that is asked for

String = tuple[int, ...]
Window = tuple[int, int]
Draw = Callable[[np.random.Generator, Window], String | None]


@dataclasses.dataclass(frozen=True)
class Language:
    """A formal language.

    Attributes:
        symbols: size of the input alphabet, whose ids count from 0; the next id is padding.
        classes: number of labels.
        longest: ``longest(window)`` returns the length of the longest string.
        number: ``number(window)`` returns how many strings there are.
        batch: ``batch(seed, step, batch_size, window, distinct)`` returns what `formal_language_batch` says.
    """

    symbols: int
    classes: int
    longest: Callable[[Window], int]
    number: Callable[[Window], int]
    batch: Callable[[int, int, int, Window, bool], Batch]

    @property
    def vocabulary(self) -> int:
        """Number of ids of a model that reads symbols and padding, and answers with labels."""
        return max(self.symbols + 1, self.classes)


def formal_language_batch(
    language: str, seed: int, step: int, *, batch_size: int, window: Window, distinct: bool = False
) -> Batch:
    """Generates strings of a language, as a pure function of the arguments.

    Args:
        language: one of `LANGUAGES`.
        seed: random seed, 0 or more.
        step: index of the batch, 0 or more; each seed and step has its own random stream.
        batch_size: number of strings, B; at least 1.
        window: smallest and largest number of symbols of a string, from 1. For a^n b^n and a^n b^n c^n it is the
            smallest and largest n.
        distinct: whether to drop strings that the batch already has.

    Returns:
        ``{"inputs": int32 [B, T], "targets": int32 [B, T], "mask": float32 [B, T]}``, where T is the length of the
        longest string in the window. At each symbol the mask is 1 and the target is the label of the string up to and
        including this symbol. After the end of the string the input is the padding, and target and mask are 0.

        In the regular languages the label is 1 if the string so far belongs to the language, else 0. In a^n b^n and
        a^n b^n c^n it is the set of symbols that may follow: 0 is {a, b}, 1 is {b}, 2 is {c} in the latter, and the
        last label is the end. In Shuffle-2 it says which brackets may close: 1 if a square one, plus 2 if a round one.

    Raises:
        InputError: for an unknown language, sizes out of range, or fewer than ``batch_size`` distinct strings.

    Examples:
        >>> from nl_jax.tasks import formal_language_batch
        >>> batch = formal_language_batch("anbn", 0, 0, batch_size=2, window=(1, 3))
        >>> print(batch["inputs"])  # 0 is a, 1 is b, 2 follows the end
        [[0 0 0 1 1 1]
         [0 0 1 1 2 2]]
        >>> print(batch["targets"])
        [[0 0 0 1 1 2]
         [0 0 1 2 0 0]]
    """
    if language not in LANGUAGES:
        raise InputError(f"unknown language {language!r}; expected one of {', '.join(LANGUAGES)}")
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: expected at least 1")
    low, high = window
    exist = LANGUAGES[language].number(window) if 1 <= low <= high else 0
    needed = batch_size if distinct else 1
    if exist < needed:
        raise InputError(
            f"{needed} strings of {language} from {low} to {high}: expected at most {exist}, all there are"
        )
    return LANGUAGES[language].batch(seed, step, batch_size, window, distinct)


def number_of_strings(language: str, window: Window) -> int:
    """How many strings of one of `LANGUAGES` there are in a window."""
    return LANGUAGES[language].number(window)


def _drawn(
    symbols: int,
    classes: int,
    *,
    longest: Callable[[Window], int],
    number: Callable[[Window], int],
    draw: Draw,
    labels: Callable[[String], list[int]],
) -> Language:
    """A language whose strings are drawn one by one, by ``draw``, which returns None where it found none.

    ``labels`` returns a label for each symbol of a string.
    """

    def batch(seed: int, step: int, batch_size: int, window: Window, distinct: bool) -> Batch:
        strings = _strings(draw, np.random.default_rng((seed, step)), window, batch_size, distinct)
        shape = batch_size, longest(window)
        inputs, targets = np.full(shape, symbols, np.int32), np.zeros(shape, np.int32)
        for row, string in enumerate(strings):
            inputs[row, : len(string)], targets[row, : len(string)] = string, labels(string)
        return {"inputs": inputs, "targets": targets, "mask": (inputs != symbols).astype(np.float32)}

    return Language(symbols, classes, longest, number, batch)


def _strings(draw: Draw, random: np.random.Generator, window: Window, count: int, distinct: bool) -> list[String]:
    """Strings in the order of drawing; raises `InputError` if nearly all draws repeat others or leave the window."""
    strings: list[String] = []
    seen = set()
    for _ in range(MOST_DRAWS * count):
        string = draw(random, window)
        if string is not None and not (distinct and string in seen):
            seen.add(string)
            strings.append(string)
            if len(strings) == count:
                return strings
    found = f"found only {len(strings)} in {MOST_DRAWS * count} draws"
    raise InputError(f"{count} strings from {window[0]} to {window[1]} of a formal language: {found}")


def _repeated(symbols: int, word: String) -> Language:
    """The strings that repeat a word."""
    size = len(word)

    def draw(random: np.random.Generator, window: Window) -> String | None:
        times = int(random.integers(window[0], window[1] + 1)) // size
        return word * times if times * size >= window[0] else None

    return _drawn(
        symbols,
        classes=2,
        longest=lambda window: window[1] // size * size,
        number=lambda window: window[1] // size - (window[0] - 1) // size,
        draw=draw,
        labels=lambda string: [int(t % size == 0) for t in range(1, len(string) + 1)],
    )


def _counters(symbols: int) -> Language:
    """The strings with as many of each symbol, in order."""

    def draw(random: np.random.Generator, window: Window) -> String:
        n = int(random.integers(window[0], window[1] + 1))
        return tuple(symbol for symbol in range(symbols) for _ in range(n))

    def labels(string: String) -> list[int]:
        n = len(string) // symbols
        return [0] * n + [label for label in range(1, symbols) for _ in range(n)][1:] + [symbols]

    return _drawn(
        symbols,
        classes=symbols + 1,
        longest=lambda window: symbols * window[1],
        number=lambda window: window[1] - window[0] + 1,
        draw=draw,
        labels=labels,
    )


ROUND, SQUARE = (0, 1), (2, 3)  # ids of ( and ), of [ and ]


def _brackets(random: np.random.Generator, types: Sequence[tuple[int, int]], longest: int) -> String | None:
    """A string of the grammar S -> (S) | S S | empty, each bracket of a random type; None if it gets too long."""
    string: list[int] = []
    pairs = 0
    rest: list[int | None] = [None]  # what is still to be written, the next one last; None is an S
    while rest:
        if (symbol := rest.pop()) is not None:
            string.append(symbol)
        elif (number := random.random()) < NEST:
            pairs += 1
            if 2 * pairs > longest:
                return None
            opening, closing = types[int(number / NEST * len(types))]
            rest += [closing, None, opening]
        elif number < NEST + SPLIT:
            rest += [None, None]
    return tuple(string)


def _nested(random: np.random.Generator, window: Window) -> String | None:
    """A string of the reference's grammar, which closes brackets of both types in the order of a stack."""
    string = _brackets(random, (ROUND, SQUARE), window[1])
    return string if string and len(string) >= window[0] else None


def _interleaved(random: np.random.Generator, window: Window) -> String | None:
    """Two strings of the grammar, one of each type of bracket, merged so that all ways to merge are equally likely."""
    parts = [_brackets(random, (kind,), window[1]) for kind in (ROUND, SQUARE)]
    if parts[0] is None or parts[1] is None or not window[0] <= len(parts[0]) + len(parts[1]) <= window[1]:
        return None
    sources = random.permutation([0] * len(parts[0]) + [1] * len(parts[1]))
    left = [iter(part) for part in parts if part is not None]
    return tuple(next(left[source]) for source in sources)


def _may_close(string: String) -> list[int]:
    depth = [0, 0]  # of open round and square brackets
    labels = []
    for symbol in string:
        depth[symbol // 2] += -1 if symbol % 2 else 1
        labels.append(2 * (depth[0] > 0) + (depth[1] > 0))
    return labels


def _catalan(n: int) -> int:
    return math.comb(2 * n, n) // (n + 1)


def _pairs(window: Window) -> range:
    """The numbers of pairs of brackets of strings in a window."""
    return range(max(1, -(-window[0] // 2)), window[1] // 2 + 1)


def _shuffle(draw: Draw, number: Callable[[int], int]) -> Language:
    """Shuffle-2 with strings drawn by ``draw``, of which there are ``number(n)`` with n pairs of brackets."""
    return _drawn(
        symbols=4,
        classes=4,
        longest=lambda window: window[1] // 2 * 2,
        number=lambda window: sum(map(number, _pairs(window))),
        draw=draw,
        labels=_may_close,
    )


def _parity() -> Language:
    """Parity, which has a generator of its own."""

    def batch(seed: int, step: int, batch_size: int, window: Window, distinct: bool) -> Batch:
        low, high = window
        return parity_batch(seed, step, batch_size=batch_size, min_length=low, max_length=high, distinct=distinct)

    return Language(
        symbols=PARITY_VOCABULARY - 1,
        classes=2,
        longest=lambda window: window[1],
        number=lambda window: 2 ** window[1] - 2 ** (window[0] - 1),
        batch=batch,
    )


LANGUAGES: dict[str, Language] = {
    "parity": _parity(),
    "aa": _repeated(1, (0, 0)),
    "abab": _repeated(2, (0, 1, 0, 1)),
    "anbn": _counters(2),
    "anbncn": _counters(3),
    "shuffle_2": _shuffle(_nested, lambda n: 2**n * _catalan(n)),
    "shuffle_2_interleaved": _shuffle(_interleaved, lambda n: _catalan(n) * _catalan(n + 1)),
}
"""The languages of the paper's Table 5, in its order, and a variant of Shuffle-2 that closes brackets in any order."""
