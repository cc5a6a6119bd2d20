"""BABILong: the facts of a bAbI question hidden in a long text, as a stream of tokens that is never held as a whole."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from nl_jax.errors import InputError
from nl_jax.tasks.babi import Story, babi_story

SHORTEST = 10  # tokens of a background sentence that counts
TOKENS_PER_FACT = 8  # a sample of n tokens has at most n / 8 facts
_TRIES = 1000

Tokens = Int32[np.ndarray, " N"]
IdsLike = Sequence[int] | np.ndarray


class Hidden(NamedTuple):
    """A question whose facts are hidden in a text of exactly ``length`` tokens, the question included.

    Examples:
        >>> from nl_jax.tasks import babilong_sample
        >>> background = [[0] * 12]  # one sentence of 12 tokens
        >>> def encode(text):
        ...     return [1] * len(text.split())
        >>> hidden = babilong_sample(0, 0, "qa1", length=200, encode=encode, background=background)
        >>> hidden.story.answer, sum(len(sentence) for sentence in hidden.sentences())
        ('bathroom', 200)
    """

    story: Story
    length: int
    sentences: Callable[[], Iterator[Tokens]]  # the text sentence by sentence, each time anew; the question is the last


def babilong_sample(
    seed: int,
    index: int,
    task: str,
    *,
    length: int,
    encode: Callable[[str], IdsLike],
    background: Sequence[IdsLike],
    begin: str = "",
) -> Hidden:
    """One sample, as a pure function of the arguments; each seed and index has its own random stream.

    The text consists of sentences of the background from a random one on (after the last comes the first again) and of
    the facts. Each fact stands before a background sentence that is drawn uniformly with replacement; the facts keep
    their order. The last sentence of the background is cut so that the length is met exactly. Stories with more than
    ``length / 8`` facts are drawn anew.

    Args:
        seed: random seed, 0 or more.
        index: index of the sample, 0 or more.
        task: one of ``LABELS``.
        length: number of tokens of text and question together.
        encode: the token ids of a text.
        background: token ids of each sentence; those with fewer than `SHORTEST` are left out.
        begin: what follows the question, and begins the answer.

    Raises:
        InputError: if the task is unknown, no story fits the length, or no sentence is long enough.

    Examples:
        >>> from nl_jax.tasks import WordTokenizer, babilong_sample
        >>> words = "it rained and rained so that nobody left the house that day ."
        >>> tokenizer = WordTokenizer(["mary", *words[:-2].split()])
        >>> def encode(text):
        ...     return tokenizer.encode(text.encode())[0]
        >>> hidden = babilong_sample(0, 0, "qa1", length=100, encode=encode, background=[encode(words)])
        >>> sum(len(sentence) for sentence in hidden.sentences()), hidden.story.question
        (100, 'Where is Mary?')

    References:
        Kuratov et al., `BABILong <https://arxiv.org/abs/2406.10149>`_, 2024, and its code.
    """
    sentences = [np.asarray(ids, np.int32) for ids in background if len(ids) >= SHORTEST]
    if not sentences:
        raise InputError(f"background of {task}: expected a sentence of at least {SHORTEST} tokens")
    random = np.random.default_rng((seed, index))
    for _ in range(_TRIES):
        story = babi_story(int(random.integers(2**31)), 0, task)
        facts = [np.asarray(encode(fact), np.int32) for fact in story.facts]
        question = np.asarray(encode(f"{story.question}{begin}"), np.int32)
        left = length - len(question) - sum(map(len, facts))
        if len(facts) <= length / TOKENS_PER_FACT and left >= 0:
            break
    else:
        raise InputError(f"length {length}: too few tokens for a story of {task}, its question included")
    first = int(random.integers(len(sentences)))
    number = _count(sentences, first, left)
    slots = np.sort(random.integers(max(number, 1), size=len(facts)))

    def text() -> Iterator[Tokens]:
        told, missing = 0, left
        for place in range(max(number, 1)):
            while told < len(facts) and slots[told] == place:
                yield facts[told]
                told += 1
            sentence = sentences[(first + place) % len(sentences)][:missing]
            missing -= len(sentence)
            if len(sentence):
                yield sentence
        yield question

    return Hidden(story, length, text)


def _count(sentences: Sequence[Tokens], first: int, tokens: int) -> int:
    """The number of sentences from ``first`` on that hold a number of tokens, the last one perhaps in part."""
    lengths = np.roll([len(sentence) for sentence in sentences], -first)
    rounds, rest = divmod(tokens, int(lengths.sum()))
    return rounds * len(sentences) + (int(np.searchsorted(np.cumsum(lengths), rest)) + 1 if rest else 0)


def in_parts(texts: Iterable[Iterable[Tokens]], size: int) -> Iterator[Int32[np.ndarray, "batch part"]]:
    """Reads texts of equal length side by side in parts of ``size`` tokens; the last part may be shorter.

    No more than a part and a sentence of each text is held.

    Raises:
        ValueError: if the texts differ in length.

    Examples:
        >>> import numpy as np
        >>> from nl_jax.tasks import in_parts
        >>> texts = [[np.arange(3), np.arange(3, 5)], [np.zeros(5, int)]]
        >>> [part.tolist() for part in in_parts(texts, 2)]
        [[[0, 1], [0, 0]], [[2, 3], [0, 0]], [[4], [0]]]
    """
    rows = [_parts(text, size) for text in texts]
    for parts in itertools.zip_longest(*rows, fillvalue=np.zeros(0, np.int32)):
        if len({len(part) for part in parts}) > 1:
            raise ValueError("texts of different lengths; expected all equally long")
        yield np.stack(parts)


def _parts(text: Iterable[Tokens], size: int) -> Iterator[Tokens]:
    held, count = [], 0
    for sentence in text:
        held.append(sentence)
        count += len(sentence)
        while count >= size:
            joined = np.concatenate(held)
            yield joined[:size]
            held, count = [joined[size:]], count - size
    if count:
        yield np.concatenate(held)
