"""bAbI stories: pure, of the right lengths, and with the answer that a second reading of their sentences gives."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nl_jax import InputError
from nl_jax.tasks.babi import LABELS, THINGS, WORDS, babi_story

FACTS = {"qa1": (2, 10), "qa2": (2, 120), "qa3": (4, 32), "qa4": (2, 2), "qa5": (2, 250)}
GO = re.compile(r"(\w+) (?:went to|journeyed to|travelled to|moved to|went back to) the (\w+)\.")
TAKE = re.compile(r"(\w+) (?:picked up|got|grabbed|took) the (\w+)(?: there)?\.")
LEAVE = re.compile(r"(\w+) (?:dropped|discarded|put down|left) the (\w+)(?: there)?\.")
GIVE = re.compile(r"(\w+) (?:gave|handed|passed) the (\w+) to (\w+)\.")
LIES = re.compile(r"The (\w+) is (north|south|east|west) of the (\w+)\.")
STEP = {"north": (0, 1), "south": (0, -1), "east": (1, 0), "west": (-1, 0)}


def rooms_of(thing, facts):
    """The rooms in which a thing is, one after the other, as far as somebody's moves tell."""
    where, has, rooms = {}, None, []
    for fact in facts:
        if go := GO.fullmatch(fact):
            where[go[1]] = go[2]
        elif (take := TAKE.fullmatch(fact)) and take[2] == thing:
            has = take[1]
        elif (leave := LEAVE.fullmatch(fact)) and leave[2] == thing:
            assert has == leave[1]
            has = None
        if has in where and rooms[-1:] != [where[has]]:
            rooms.append(where[has])
    return rooms


def answers_again(task, story):
    """The answer to the question from the sentences alone."""
    facts, question = story.facts, story.question
    if task == "qa1":
        (person,) = re.fullmatch(r"Where is (\w+)\?", question).groups()
        return [go[2] for fact in facts if (go := GO.fullmatch(fact)) and go[1] == person][-1]
    if task == "qa2":
        (thing,) = re.fullmatch(r"Where is the (\w+)\?", question).groups()
        return rooms_of(thing, facts)[-1]
    if task == "qa3":
        thing, room = re.fullmatch(r"Where was the (\w+) before the (\w+)\?", question).groups()
        rooms = rooms_of(thing, facts)
        return [before for before, after in itertools.pairwise(rooms) if after == room][-1]
    if task == "qa4":
        at = {}
        relations = [LIES.fullmatch(fact).groups() for fact in facts]
        at[relations[0][2]] = np.zeros(2, int)
        for one, way, other in [*relations, *relations]:
            if other in at:
                at.setdefault(one, at[other] + STEP[way])
            elif one in at:
                at.setdefault(other, at[one] - STEP[way])
        if asked := re.fullmatch(r"What is (\w+) of the (\w+)\?", question):
            place = at[asked[2]] + STEP[asked[1]]
        else:
            room, way = re.fullmatch(r"What is the (\w+) (\w+) of\?", question).groups()
            place = at[room] - STEP[way]
        (found,) = [room for room in at if (at[room] == place).all()]
        return found
    gifts = [gift.groups() for fact in facts if (gift := GIVE.fullmatch(fact))]
    for pattern, wanted, named in [
        (r"What did (\w+) give to (\w+)\?", 1, (0, 2)),
        (r"Who gave the (\w+) to (\w+)\?", 0, (1, 2)),
        (r"Who did (\w+) give the (\w+) to\?", 2, (0, 1)),
        (r"Who gave the (\w+)\?", 0, (1,)),
        (r"Who received the (\w+)\?", 2, (1,)),
    ]:
        if asked := re.fullmatch(pattern, question):
            return [gift[wanted] for gift in gifts if tuple(gift[i] for i in named) == asked.groups()][-1]
    raise AssertionError(question)


@pytest.mark.parametrize("task", LABELS)
@settings(max_examples=60)
@given(seed=st.integers(0, 2**31 - 1), index=st.integers(0, 2**31 - 1))
def test_the_answer_is_what_the_sentences_say(task, seed, index):
    story = babi_story(seed, index, task)
    assert story == babi_story(seed, index, task)
    assert story.answer == answers_again(task, story)
    assert story.answer in LABELS[task]
    assert set(re.findall(r"\w+", " ".join([*story.facts, story.question]))) - {"The", "Where", "Who", "What"} <= WORDS
    low, high = FACTS[task]
    assert low <= len(story.facts) <= high


@pytest.mark.parametrize("task", LABELS)
def test_stories_differ_and_all_labels_and_lengths_occur(task):
    stories = [babi_story(0, index, task) for index in range(1500)]
    assert len(set(stories)) > (100 if task == "qa4" else 1400)
    assert {story.answer for story in stories} == set(LABELS[task])
    lengths = Counter(len(story.facts) for story in stories)
    if task == "qa1":  # two facts a question, and each of five questions is drawn equally often
        assert set(lengths) == {2, 4, 6, 8, 10}
        assert all(abs(count - 300) < 80 for count in lengths.values())
    assert min(lengths) <= FACTS[task][0] + 2


@pytest.mark.parametrize("task", ["qa1", "qa2", "qa3", "qa5"])
def test_nobody_goes_where_he_is_or_takes_what_is_not_there(task):
    for index in range(300):
        room, holder, place = {}, dict.fromkeys(THINGS), dict(THINGS)
        for fact in babi_story(1, index, task).facts:
            if go := GO.fullmatch(fact):
                assert room.get(go[1]) != go[2]
                room[go[1]] = go[2]
            elif take := TAKE.fullmatch(fact):
                assert holder[take[2]] is None
                assert room.setdefault(take[1], place[take[2]]) == place[take[2]]
                holder[take[2]] = take[1]
            elif leave := LEAVE.fullmatch(fact):
                assert holder[leave[2]] == leave[1]
                holder[leave[2]], place[leave[2]] = None, room[leave[1]]
            else:
                giver, thing, receiver = GIVE.fullmatch(fact).groups()
                assert holder[thing] == giver != receiver
                assert room.setdefault(receiver, room[giver]) == room[giver]
                holder[thing] = receiver


def test_synonyms_and_pauses_after_a_giving_are_drawn_uniformly():
    facts = [fact for index in range(1000) for fact in babi_story(2, index, "qa1").facts]
    verbs = Counter(" ".join(fact.split()[1:-2]) for fact in facts)
    assert len(verbs) == 5
    assert all(abs(count / len(facts) - 0.2) < 0.03 for count in verbs.values())
    pauses = Counter()
    for index in range(1200):
        facts = babi_story(3, index, "qa5").facts
        pauses[len(facts) - 1 - max(i for i, fact in enumerate(facts) if GIVE.fullmatch(fact))] += 1
    assert set(pauses) == set(range(6))
    assert all(abs(count - 200) < 70 for count in pauses.values())


def test_an_unknown_task_is_refused():
    with pytest.raises(InputError, match="unknown task 'qa6'; expected one of qa1, qa2"):
        babi_story(0, 0, "qa6")
