"""Invented languages with a grammar and a lexicon of their own, and sentences in them with their English."""

from itertools import permutations
from typing import NamedTuple

import numpy as np

from nl_jax.errors import InputError


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NOUNS = _words(
    "dog bird girl boy cat horse teacher doctor farmer king queen sailor bear duck goat frog friend baker painter "
    "soldier driver lion tiger neighbor"
)
ADJECTIVES = _words("old young small big happy tired hungry angry rich poor strange quiet")
TRANSITIVE = _words("follow help call paint pull visit clean kick fear hate love greet")
INTRANSITIVE = _words("walk jump laugh wait shout work play rest smile dance talk snore")
SIZES = (10, 60)  # words of a lexicon, fewest and most
ORDERS = tuple("".join(order) for order in permutations("SVO"))
AFFIXES = ("plural", "object", "past")
_CONSONANTS, _VOWELS = _words("b d f g h k l m n p r s t v z"), _words("a e i o u")


class Phrase(NamedTuple):
    """A noun with what stands beside it."""

    noun: str
    plural: bool
    adjective: str | None

    @property
    def english(self) -> str:
        """The phrase in English, with an article."""
        adjective = f"{self.adjective} " if self.adjective else ""
        return f"the {adjective}{self.noun}{'s' if self.plural else ''}"


class Sentence(NamedTuple):
    """What a sentence says: the same in every language."""

    subject: Phrase
    verb: str
    past: bool
    object: Phrase | None  # of transitive verbs

    @property
    def english(self) -> str:
        """The sentence in English: 3 to 6 words, without a stop."""
        if self.past:
            verb = self.verb + ("d" if self.verb.endswith("e") else "ed")
        else:
            verb = self.verb if self.subject.plural else f"{self.verb}s"
        return " ".join([self.subject.english, verb, *([self.object.english] if self.object else [])])


class Affix(NamedTuple):
    """A syllable that marks a word."""

    form: str
    before: bool  # whether it is a prefix

    def on(self, stem: str) -> str:
        """The marked word."""
        return self.form + stem if self.before else stem + self.form


class Language(NamedTuple):
    """An invented language. It has no articles.

    Each sentence can be taken apart again: all forms of all words differ, and an affix marks the object.
    """

    order: str  # of subject, verb and object, such as "SOV"
    adjective_first: bool
    agrees: bool  # whether adjectives take the plural and the mark of the object, too
    affixes: dict[str, Affix]  # by name in `AFFIXES`
    lexicon: dict[str, str]  # from English words, without endings

    def said(self, sentence: Sentence) -> str:
        """The sentence in this language."""
        verb = self.lexicon[sentence.verb]
        parts = {
            "S": self._phrase(sentence.subject, False),
            "V": [self.affixes["past"].on(verb) if sentence.past else verb],
            "O": self._phrase(sentence.object, True) if sentence.object else [],
        }
        return " ".join(word for part in self.order for word in parts[part])

    def forms(self) -> list[str]:
        """All forms of all words."""
        forms = []
        for english, stem in self.lexicon.items():
            if english in TRANSITIVE + INTRANSITIVE:
                forms += [stem, self.affixes["past"].on(stem)]
            elif english in NOUNS or self.agrees:
                forms += [self._marked(stem, plural, case) for plural in (False, True) for case in (False, True)]
            else:
                forms.append(stem)
        return forms

    def _phrase(self, phrase: Phrase, is_object: bool) -> list[str]:
        noun = self._marked(self.lexicon[phrase.noun], phrase.plural, is_object)
        if phrase.adjective is None:
            return [noun]
        adjective = self.lexicon[phrase.adjective]
        if self.agrees:
            adjective = self._marked(adjective, phrase.plural, is_object)
        return [adjective, noun] if self.adjective_first else [noun, adjective]

    def _marked(self, stem: str, plural: bool, is_object: bool) -> str:
        stem = self.affixes["plural"].on(stem) if plural else stem
        return self.affixes["object"].on(stem) if is_object else stem


def invented_languages(seed: int, number: int = 2, words: int = 20) -> list[Language]:
    """Languages with different word orders that have no form of a word in common, as a pure function of the arguments.

    Args:
        seed: random seed, 0 or more.
        number: number of languages, 1 to 6, the number of word orders.
        words: size of each lexicon, 10 to 60: two fifths each are nouns and verbs, a fifth is adjectives.

    Raises:
        InputError: for a number out of range.
    """
    _check("words", words, *SIZES)
    _check("languages", number, 1, len(ORDERS))
    random = np.random.default_rng((seed, 31))
    orders = random.permutation(ORDERS)[:number]
    languages: list[Language] = []
    used: set[str] = set()
    for order in orders:
        while True:
            language = _invented(random, str(order), words)
            forms = language.forms()
            if len(set(forms)) == len(forms) and not used & set(forms):
                break
        used |= set(forms)
        languages.append(language)
    return languages


def sentences(seed: int, number: int, words: int = 20) -> list[Sentence]:
    """Different sentences in random order, as a pure function of the arguments.

    Args:
        seed: random seed, 0 or more.
        number: number of sentences, at most `most_sentences`.
        words: as for `invented_languages`.

    Raises:
        InputError: for a number out of range.
    """
    _check("words", words, *SIZES)
    _check("sentences", number, 1, most_sentences(words))
    nouns, adjectives, transitive, intransitive = _vocabulary(words)
    random = np.random.default_rng((seed, 37))
    found: dict[Sentence, None] = {}

    def phrase(adjective: bool) -> Phrase:
        return Phrase(
            str(random.choice(nouns)),
            bool(random.integers(2)),
            str(random.choice(adjectives)) if adjective else None,
        )

    while len(found) < number:
        described_one = random.integers(3)  # the subject, the object or none has an adjective
        subject, past = phrase(described_one == 0), bool(random.integers(2))
        if random.integers(3) == 0:
            sentence = Sentence(subject, str(random.choice(intransitive)), past, None)
        else:
            sentence = Sentence(subject, str(random.choice(transitive)), past, phrase(described_one == 1))
        found.setdefault(sentence)
    return list(found)


def most_sentences(words: int) -> int:
    """Half of the number of sentences that a lexicon of ``words`` can make, so that few are drawn twice."""
    nouns, adjectives, transitive, intransitive = map(len, _vocabulary(words))
    bare, described = 2 * nouns, 2 * nouns * adjectives
    return intransitive * (bare + described) + transitive * (bare**2 + 2 * bare * described)  # in each of two tenses


def _vocabulary(words: int) -> tuple[tuple[str, ...], ...]:
    """Nouns, adjectives, transitive and intransitive verbs."""
    verbs, adjectives = 2 * words // 5, words // 5
    nouns = words - verbs - adjectives
    return NOUNS[:nouns], ADJECTIVES[:adjectives], TRANSITIVE[: -(-verbs // 2)], INTRANSITIVE[: verbs // 2]


def _invented(random: np.random.Generator, order: str, words: int) -> Language:
    """A language whose forms may coincide."""
    consonants = random.permutation(_CONSONANTS)[:9]
    vowels = random.permutation(_VOWELS)[:4]

    def syllable() -> str:
        return str(random.choice(consonants)) + str(random.choice(vowels))

    lexicon = {
        english: syllable() + syllable() + str(random.choice(["", random.choice(consonants)]))
        for part in _vocabulary(words)
        for english in part
    }
    affixes = {}
    for name in AFFIXES:
        before = bool(random.integers(2))
        affixes[name] = Affix(syllable() if before else syllable()[::-1], before)
    return Language(order, bool(random.integers(2)), bool(random.integers(2)), affixes, lexicon)


def _check(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InputError(f"--{name}={value}: expected {low} to {high}")
