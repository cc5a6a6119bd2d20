"""Invented languages: pure, taken apart again, with nothing in common."""

import pytest

from nl_jax import InputError
from nl_jax.tasks.languages import (
    INTRANSITIVE,
    NOUNS,
    TRANSITIVE,
    Phrase,
    Sentence,
    invented_languages,
    most_sentences,
    sentences,
)

SEEDS = range(12)


def stem_of(language, form, marks):
    """The English of a word and which of the marks it carries, found by taking every combination off."""
    stems = {stem: english for english, stem in language.lexicon.items()}
    found = []
    for chosen in range(2 ** len(marks)):
        on = [mark for i, mark in enumerate(marks) if chosen >> i & 1]
        for stem, english in stems.items():
            marked = stem
            for mark in on:
                marked = language.affixes[mark].on(marked)
            if marked == form:
                found.append((english, set(on)))
    return found


def understood(language, text):
    """The sentence that a text says, from the language's rules alone."""
    subject = spoken = verb = None
    adjectives, nouns = {}, {}
    for place, form in enumerate(text.split()):
        verbs = [(e, on) for e, on in stem_of(language, form, ["past"]) if e in TRANSITIVE + INTRANSITIVE]
        if verbs:
            ((verb, on),) = verbs
            past = "past" in on
            continue
        ((english, on),) = [
            (e, on)
            for e, on in stem_of(language, form, ["plural", "object"])
            if e not in TRANSITIVE + INTRANSITIVE and (language.agrees or e in NOUNS or not on)
        ]
        (nouns if english in NOUNS else adjectives)[place] = (english, on)
    for place, (noun, on) in nouns.items():
        beside = adjectives.get(place - 1 if language.adjective_first else place + 1, (None,))[0]
        phrase = Phrase(noun, "plural" in on, beside)
        if "object" in on:
            spoken = phrase
        else:
            subject = phrase
    return Sentence(subject, verb, past, spoken)


def test_languages_and_sentences_are_pure_functions_of_the_seed():
    assert invented_languages(3) == invented_languages(3) != invented_languages(4)
    assert sentences(3, 20) == sentences(3, 20) == sentences(3, 30)[:20] != sentences(4, 20)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_sentence_is_understood_again(seed):
    for language in invented_languages(seed):
        for sentence in sentences(seed, 60):
            assert understood(language, language.said(sentence)) == sentence


@pytest.mark.parametrize("seed", SEEDS)
def test_no_word_is_of_two_languages_and_no_order_of_two(seed):
    languages = invented_languages(seed, 6, 40)
    forms = [set(language.forms()) for language in languages]
    assert len(set.union(*forms)) == sum(map(len, forms))
    assert len({language.order for language in languages}) == 6
    said = {word for language in languages for s in sentences(seed, 200, 40) for word in language.said(s).split()}
    assert said <= set.union(*forms)


def test_seeds_vary_all_parts_of_the_grammar():
    languages = [language for seed in SEEDS for language in invented_languages(seed)]
    assert {language.order for language in languages} == {"SVO", "SOV", "VSO", "VOS", "OSV", "OVS"}
    for name in ("adjective_first", "agrees"):
        assert {getattr(language, name) for language in languages} == {False, True}
    assert {affix.before for language in languages for affix in language.affixes.values()} == {False, True}


def test_english_is_of_three_to_six_words_and_says_all():
    found = sentences(0, 3000)
    assert len({sentence.english for sentence in found}) == len(set(found)) == 3000
    assert {len(sentence.english.split()) for sentence in found} == {3, 4, 5, 6}
    old, small = Phrase("dog", False, "old"), Phrase("bird", True, None)
    assert Sentence(old, "love", True, small).english == "the old dog loved the birds"
    assert Sentence(old, "love", False, small).english == "the old dog loves the birds"
    assert Sentence(small, "walk", False, None).english == "the birds walk"


def test_as_many_sentences_as_allowed_are_found():
    assert len(sentences(0, most_sentences(10), 10)) == most_sentences(10)


@pytest.mark.parametrize(
    ("call", "flag"),
    [
        (lambda: invented_languages(0, 7), "--languages=7: expected 1 to 6"),
        (lambda: invented_languages(0, 2, 9), "--words=9: expected 10 to 60"),
        (lambda: sentences(0, 0), "--sentences=0"),
        (lambda: sentences(0, 10**6), "--sentences=1000000: expected 1 to"),
    ],
)
def test_sizes_out_of_range_are_refused(call, flag):
    with pytest.raises(InputError, match=flag):
        call()
