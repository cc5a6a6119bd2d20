"""Two languages learned one after the other: their sentences, the ways in which a model learns them, and chrF."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from experiments.continual_methods.table import grid
from experiments.continual_methods.text_table import stacked
from nl_jax import Diverged, InputError
from nl_jax.data.tokenizer import begin_tokens, ids_of
from nl_jax.files import decoded, local_path
from nl_jax.models import LanguageModel
from nl_jax.pretrained import Pretrained, StackedLevel
from nl_jax.pretrained.optional import needed
from nl_jax.streaming import ContinualLearner
from nl_jax.streaming.answers import PIECE, read_prefix
from nl_jax.streaming.greedy import continuations
from nl_jax.tasks.languages import invented_languages, most_sentences, sentences

VALIDATION_SEED = 2_000_003  # of the languages on which settings are chosen
QUESTION = "{text}\nEnglish:"
TOGETHER = 20  # sentences that are translated together
BATCH = 8  # sentences of a step; with more, the slow level of a short stream is hardly updated
Pair = tuple[str, str]  # a sentence, and its English
Setting = dict[str, Any]


class ParallelText(NamedTuple):
    """Sentences of one language with their English."""

    learned: tuple[Pair, ...]
    tested: tuple[Pair, ...]  # others than those that are learned


def most_pairs(words: int) -> int:
    """Number of sentences of each of two invented languages."""
    return most_sentences(words) // 2


def generated(seed: int, learned: int, tested: int, words: int) -> list[ParallelText]:
    """Two invented languages. No two sentences, of either language, mean the same.

    Raises:
        InputError: for more sentences than the words can make.
    """
    most = most_pairs(words)
    if learned + tested > most:
        raise InputError(f"--sentences={learned}, --tests={tested}: expected at most {most} together of {words} words")
    found = sentences(seed, 2 * (learned + tested), words)
    texts = []
    for i, language in enumerate(invented_languages(seed, 2, words)):
        pairs = [(language.said(sentence), sentence.english) for sentence in found[i::2]]
        texts.append(ParallelText(tuple(pairs[:learned]), tuple(pairs[learned:])))
    return texts


def read_pairs(path: str, number: int) -> list[Pair]:
    """The pairs in a file of lines with a sentence, a tab and its English; none twice.

    Raises:
        InputError: for a file that cannot be read, a line of another form, or fewer than ``number`` pairs; the message
            names the file and the line.
    """
    try:
        content = local_path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a file") from error
    text = decoded(content, path)
    pairs: dict[str, str] = {}
    for line, row in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        columns = [column.strip() for column in row.split("\t")]
        if columns == [""]:
            continue
        if len(columns) != 2 or not all(columns):
            raise InputError(f"{path}:{line}: {len(columns)} columns; expected a sentence, a tab and its English")
        pairs.setdefault(*columns)
    if len(pairs) < number:
        raise InputError(f"{path}: {len(pairs)} different sentences; expected {number}, --sentences and --tests")
    return list(pairs.items())


def drawn(languages: Sequence[Sequence[Pair]], seed: int, learned: int, tested: int) -> list[ParallelText]:
    """Random pairs of files, one a language. No tested sentence has the English of one that is learned in any of them.

    Raises:
        InputError: for too few such sentences.
    """
    random = np.random.default_rng((seed, 41))
    shuffled = [[pairs[i] for i in random.permutation(len(pairs))] for pairs in languages]
    known = {english for pairs in shuffled for _, english in pairs[:learned]}
    texts = []
    for pairs in shuffled:
        others = [pair for pair in pairs[learned:] if pair[1] not in known]
        if len(others) < tested:
            raise InputError(
                f"--tests={tested}: {len(others)} sentences are left whose English no language learns; expected more "
                "pairs, or fewer --sentences"
            )
        texts.append(ParallelText(tuple(pairs[:learned]), tuple(others[:tested])))
    return texts


def chrf(translations: Sequence[str], references: Sequence[str]) -> float:
    """chrF of all sentences together, 0 to 100 (Popović, 2015; sacrebleu's, with its defaults: chrF2)."""
    metric = needed("sacrebleu.metrics", "chrF").CHRF()
    return float(metric.corpus_score(list(translations), [list(references)]).score)


class Translator:
    """Asks a model for the English of sentences, as `ContinualLearner` asks, and greedily.

    Args:
        pretrained: the model's tokenizer.
        texts: what is learned and tested; decides how long questions and answers can be.
    """

    def __init__(self, pretrained: Pretrained, texts: Sequence[ParallelText]):
        self._tokenizer = pretrained.tokenizer
        learned = [pair for text in texts for pair in text.learned]
        tested = [pair for text in texts for pair in text.tested]
        answers = {english: len(self._ids(f" {english}")) for _, english in learned + tested}
        longest = max(self._filled(source) + answers[english] for source, english in learned)
        self.chunk = min(128, 16 * -(-longest // 16))  # of a learner, that most examples fill
        self._length = max(self._filled(source) for source, _ in tested)
        self._num_tokens = max(answers.values()) + 4
        self._line = self._ids("\n")[-1]
        self._ends = {self._tokenizer.separator_id, self._line, self._ids("\n\n")[-1]}

    def translations(self, model: LanguageModel, sources: Sequence[str], prefix: Sequence[int] = ()) -> list[str]:
        """The model's translations of sentences, after the tokens of examples."""
        fill = self._line if prefix else self._tokenizer.separator_id
        prompts = [self._ids(QUESTION.format(text=source)) for source in sources]
        rows = [[fill] * (self._length - len(prompt)) + prompt for prompt in prompts]
        before = read_prefix(model, prefix, self._length + self._num_tokens)
        size = min(TOGETHER, len(rows))
        found = continuations(before, rows, num_tokens=self._num_tokens, ends=self._ends, batch_size=size)
        return [self._tokenizer.decode(np.asarray(row, int)).strip() for row in found]

    def score(self, model: LanguageModel, text: ParallelText, examples: Sequence[int] = ()) -> float:
        """chrF of the model's translations of the test sentences."""
        found = self.translations(model, [source for source, _ in text.tested], examples)
        return chrf(found, [english for _, english in text.tested])

    def examples(self, pairs: Sequence[Pair], room: int) -> list[int]:
        """Tokens of the last pairs that fit into a window of this many tokens."""
        tokens: list[int] = []
        for source, english in reversed(pairs):
            row = self._ids(f"{QUESTION.format(text=source)} {english}\n\n")
            if len(row) + len(tokens) > room:
                break
            tokens = row + tokens
        tokens = [*begin_tokens(self._tokenizer), *tokens]
        return [self._line] * (-len(tokens) % PIECE) + tokens  # few lengths, since each is compiled

    def window(self, model: LanguageModel, tokens: int) -> int:
        """How many of these tokens of examples the model can read before a question and its answer."""
        return max(0, min(tokens, model.config.context_length - self._length - self._num_tokens) // PIECE * PIECE)

    def _filled(self, source: str) -> int:
        """Number of tokens of a question after separators that make it a multiple of 16, at least one."""
        return 16 * (1 + len(self._ids(QUESTION.format(text=source))) // 16)

    def _ids(self, text: str) -> list[int]:
        return ids_of(self._tokenizer, text)


class Method(NamedTuple):
    """A way in which a model's weights learn languages."""

    levels: Callable[..., tuple[StackedLevel, ...]]  # ``levels(blocks, **setting)``
    settings: tuple[Setting, ...] = ()
    like: str | None = None  # the method whose chosen setting is taken over


RATES = grid(rate=(3e-4, 1e-3))
adam_levels = partial(stacked, matrices=("gate", "up", "down"), rule="adam")
METHODS = {
    "levels_1": Method(partial(adam_levels, count=1), RATES),
    "levels_2": Method(partial(adam_levels, count=2), like="levels_3"),
    "levels_3": Method(partial(adam_levels, count=3), RATES),
    "levels_1_protected": Method(partial(adam_levels, count=1, protects=True), RATES),
    "levels_3_protected": Method(partial(adam_levels, count=3, protects=True), like="levels_3"),
    "levels_3_no_slow": Method(partial(adam_levels, count=3, slow=0.0), like="levels_3"),
}


def learned_by(
    method: Method,
    setting: Setting,
    pretrained: Pretrained,
    texts: Sequence[ParallelText],
    passes: int,
    seed: int,
    told: Callable[[int, dict[str, float]], None],
    b_alone: bool = True,
) -> dict[str, Any]:
    """chrF on languages A and B, each learned alone, and after A and then B: ``alone`` and ``sequence``.

    ``told`` gets the number of each pass, and its loss: of those over A, over B after A, and over B alone. Without
    ``b_alone`` the last are left out, and ``alone`` has only A.
    """
    model, started, diverged, number = pretrained.model, time.perf_counter(), 0, 0
    levels = method.levels(tuple(range(model.config.num_layers)), **setting)
    translator, tokenizer = Translator(pretrained, texts), pretrained.tokenizer
    learner = ContinualLearner(model, tokenizer, levels, chunk=translator.chunk, batch_size=BATCH, question=QUESTION)
    start = learner.snapshot()

    def learn(language: int) -> None:
        nonlocal diverged, number
        pairs = texts[language].learned
        for repeat in range(passes):
            order = np.random.default_rng((seed, language, repeat)).permutation(len(pairs))
            number += 1
            try:
                told(number, {"loss": learner.learn([pairs[i] for i in order]).loss})
            except Diverged:  # what was learned before is kept
                diverged += 1

    learn(0)
    alone = [translator.score(learner.model, texts[0])]
    if any(level.protects for level in levels):
        learner.protect(texts[0].learned)
    learn(1)
    sequence = [translator.score(learner.model, text) for text in texts]
    if b_alone:
        learner.rollback(start)
        learn(1)
        alone.append(translator.score(learner.model, texts[1]))
    seconds = time.perf_counter() - started
    return {"alone": alone, "sequence": sequence, "seconds": seconds, "diverged": diverged}


def in_context(pretrained: Pretrained, texts: Sequence[ParallelText], window: int) -> dict[str, Any]:
    """As `learned_by`: the sentences are read before each question, the last that fit into ``window`` tokens."""
    model, translator, started = pretrained.model, Translator(pretrained, texts), time.perf_counter()
    room = translator.window(model, window)
    alone = [translator.score(model, text, translator.examples(text.learned, room)) for text in texts]
    both = translator.examples([*texts[0].learned, *texts[1].learned], room)
    sequence = [translator.score(model, text, both) for text in texts]
    return {"alone": alone, "sequence": sequence, "seconds": time.perf_counter() - started, "diverged": 0}


def without_learning(pretrained: Pretrained, texts: Sequence[ParallelText]) -> dict[str, Any]:
    """As `learned_by`, of the model as it is."""
    translator, started = Translator(pretrained, texts), time.perf_counter()
    found = [translator.score(pretrained.model, text) for text in texts]
    return {"alone": found, "sequence": found, "seconds": time.perf_counter() - started, "diverged": 0}


def guessed(texts: Sequence[ParallelText], seed: int) -> dict[str, Any]:
    """As `learned_by`, of random English sentences of those that are learned: what knowing only English reaches."""
    random, found = np.random.default_rng((seed, 43)), []
    for text in texts:
        guesses = [text.learned[i][1] for i in random.integers(len(text.learned), size=len(text.tested))]
        found.append(chrf(guesses, [english for _, english in text.tested]))
    return {"alone": found, "sequence": found, "seconds": 0.0, "diverged": 0}
