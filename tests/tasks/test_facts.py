"""Invented facts: pure, stated in other words than asked, and no two subjects alike."""

import pytest

from nl_jax import InputError
from nl_jax.tasks.facts import ANSWERS, RELATIONS, invented_facts


def test_facts_are_a_pure_function_of_the_seed():
    assert invented_facts(3, 12) == invented_facts(3, 12) != invented_facts(4, 12)
    assert invented_facts(3, 12) == invented_facts(3, 20)[:12]


def test_every_fact_is_stated_and_asked_in_its_own_words():
    facts = invented_facts(0, 200, 3)
    assert len({(fact.subject, fact.kind) for fact in facts}) == 200
    for fact in facts:
        assert len(set(fact.statements)) == 3
        assert fact.answer in ANSWERS[fact.kind]
        assert fact.answer not in fact.question
        assert fact.question not in fact.statements
        for text in (*fact.statements, fact.question):
            assert fact.subject in text
        assert all(fact.answer in text for text in fact.statements)
        assert not any(f" a {vowel}" in text for text in fact.statements for vowel in "aeiou")
    assert {fact.kind for fact in facts} == set(RELATIONS) == set(ANSWERS)


def test_subjects_have_names_of_their_own_and_two_facts():
    facts = invented_facts(1, 40)
    subjects = [fact.subject for fact in facts]
    assert sorted(subjects) == sorted(2 * list(dict.fromkeys(subjects)))


@pytest.mark.parametrize(
    ("options", "flag"), [((0, 2), "--facts=0"), ((577, 2), "--facts=577"), ((5, 4), "--statements=4")]
)
def test_sizes_out_of_range_are_refused(options, flag):
    with pytest.raises(InputError, match=flag):
        invented_facts(0, *options)
