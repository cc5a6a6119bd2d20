"""Stories about people, rooms and things with a question, by the rules of bAbI's first five tasks."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from nl_jax.errors import InputError

ROOMS = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
THINGS = {"apple": "kitchen", "football": "garden", "milk": "kitchen"}  # and where they are at first
_PEOPLE = ("Daniel", "John", "Mary", "Sandra")
_GIVERS = ("Bill", "Fred", "Jeff", "Mary")
LABELS = {
    **dict.fromkeys(("qa1", "qa2", "qa3", "qa4"), ROOMS),
    "qa5": (*_GIVERS, *THINGS),
}
"""The words that can be the answer of a task, by the name of the task."""
QUESTIONS = 5  # of a story, in all tasks but qa4
LONGEST_QA3 = 32  # facts
_MOVE = ("went to", "journeyed to", "travelled to", "moved to", "went back to")
_GET = ("picked up", "got", "grabbed", "took")
_DROP = ("dropped", "discarded", "put down", "left")
_GIVE = ("gave", "handed", "passed")
_OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}
_FRAME = "the there to where was before what is of did give who gave received"
WORDS = frozenset(
    " ".join([*ROOMS, *THINGS, *_PEOPLE, *_GIVERS, *_MOVE, *_GET, *_DROP, *_GIVE, *_OPPOSITE, _FRAME]).split()
)  # all that stories, questions and answers consist of


class Story(NamedTuple):
    """What happened, a question about it and its answer, one word of the task's `LABELS`.

    Examples:
        >>> from nl_jax.tasks import babi_story
        >>> story = babi_story(0, 0, "qa4")
        >>> len(story.facts)
        2
    """

    facts: tuple[str, ...]
    question: str
    answer: str


def babi_story(seed: int, index: int, task: str) -> Story:
    """One story with one question, as a pure function of the arguments; each seed and index has its own random stream.

    The stories of qa1, qa2, qa3 and qa5 ask `QUESTIONS` questions. One of them is drawn, with all facts before it;
    earlier questions are left out.

    - qa1: two random moves before each question, "Where is P?", about a person who has moved.
    - qa2: random moves, gets and drops; after more than one of them a question follows with probability 1/2, "Where is
      the O?", about a thing that somebody has taken and whose room can be told.
    - qa3: the same, "Where was the O before the R?", about the last time that the thing came to the room R from another
      room that can be told; R is drawn among its rooms. No story is longer than `LONGEST_QA3` facts.
    - qa4: two facts about three rooms on a line from north to south or from east to west, and a question about the
      middle one.
    - qa5: random moves, gets and gives until something is given; then 0 to 5 moves and gets, and a question about the
      giver, the receiver or the thing of that giving.

    Args:
        seed: random seed, 0 or more.
        index: index of the story, 0 or more.
        task: one of `LABELS`.

    Raises:
        InputError: for an unknown task.

    Examples:
        >>> from nl_jax.tasks import babi_story
        >>> story = babi_story(0, 0, "qa1")
        >>> print(*story.facts[-2:], story.question, story.answer)
        Sandra moved to the hallway. Sandra moved to the kitchen. Where is Sandra? kitchen

    References:
        Weston et al., `Towards AI-Complete Question Answering <https://arxiv.org/abs/1502.05698>`_, 2015, and its code.
    """
    if task not in _STORIES:
        raise InputError(f"unknown task {task!r}; expected one of {', '.join(_STORIES)}")
    random = np.random.default_rng((seed, index))
    return _STORIES[task](random)


class _World:
    """Where everybody is, who has what, and what a reader can know of it."""

    def __init__(self, random: np.random.Generator, people: tuple[str, ...]):
        self.random = random
        self.people = people
        self.room = {person: self.pick(ROOMS) for person in people}
        self.moved: set[str] = set()  # people whose room a reader knows
        self.holder: dict[str, str | None] = dict.fromkeys(THINGS)
        self.place = dict(THINGS)  # of things that nobody holds
        self.told: dict[str, list[str]] = {thing: [] for thing in THINGS}  # rooms of a thing that a reader can tell
        self.facts: list[str] = []
        self.given: tuple[str, str, str] | None = None  # giver, thing and receiver

    def pick(self, items):
        return items[self.random.integers(len(items))]

    def act(self, kinds: tuple[str, ...]) -> str:
        """One person does something that is possible; returns what kind of thing it was."""
        while True:
            person = self.pick(self.people)
            choices = [(kind, options) for kind in kinds if (options := self._possible(person, kind))]
            if choices:
                break
        kind, options = self.pick(choices)
        getattr(self, f"_{kind}")(person, self.pick(options))
        return kind

    def known_things(self) -> list[str]:
        """Things that somebody has taken and whose room a reader can tell."""
        return [thing for thing in THINGS if self.told[thing] and self._can_tell(thing)]

    def _can_tell(self, thing: str) -> bool:
        holder = self.holder[thing]
        return holder in self.moved if holder else self.told[thing][-1] == self.place[thing]

    def _possible(self, person: str, kind: str) -> list:
        room, holder = self.room[person], self.holder
        if kind == "move":
            return [other for other in ROOMS if other != room]
        if kind == "get":
            return [thing for thing in THINGS if holder[thing] is None and self.place[thing] == room]
        held = [thing for thing in THINGS if holder[thing] == person]
        if kind == "drop":
            return held
        return [
            (thing, other) for thing in held for other in self.people if other != person and self.room[other] == room
        ]

    def _move(self, person: str, room: str) -> None:
        self.facts.append(f"{person} {self.pick(_MOVE)} the {room}.")
        self.room[person] = room
        self.moved.add(person)
        for thing in THINGS:
            if self.holder[thing] == person:
                self._tell(thing, room)

    def _get(self, person: str, thing: str) -> None:
        self.facts.append(f"{person} {self.pick(_GET)} the {thing}{self.pick(('', ' there'))}.")
        self.holder[thing] = person
        if person in self.moved:
            self._tell(thing, self.room[person])

    def _drop(self, person: str, thing: str) -> None:
        self.facts.append(f"{person} {self.pick(_DROP)} the {thing}{self.pick(('', ' there'))}.")
        self.holder[thing], self.place[thing] = None, self.room[person]

    def _give(self, person: str, choice: tuple[str, str]) -> None:
        thing, other = choice
        self.facts.append(f"{person} {self.pick(_GIVE)} the {thing} to {other}.")
        self.holder[thing], self.given = other, (person, thing, other)

    def _tell(self, thing: str, room: str) -> None:
        if self.told[thing][-1:] != [room]:
            self.told[thing].append(room)


def _qa1(random: np.random.Generator) -> Story:
    world = _World(random, _PEOPLE)
    for _ in range(random.integers(1, QUESTIONS + 1)):
        world.act(("move",))
        world.act(("move",))
    person = world.pick(sorted(world.moved))
    return Story(tuple(world.facts), f"Where is {person}?", world.room[person])


def _qa2(random: np.random.Generator) -> Story:
    def ask(world: _World) -> tuple[str, str] | None:
        things = world.known_things()
        if not things:
            return None
        thing = world.pick(things)
        return f"Where is the {thing}?", world.told[thing][-1]

    return _asked(random, ask, 2)


def _qa3(random: np.random.Generator) -> Story:
    def ask(world: _World) -> tuple[str, str] | None:
        things = [thing for thing in THINGS if len(world.told[thing]) > 1]
        if not things:
            return None
        thing = world.pick(things)
        rooms = world.told[thing]
        room = world.pick(sorted(set(rooms[1:])))
        last = max(i for i in range(1, len(rooms)) if rooms[i] == room)
        return f"Where was the {thing} before the {room}?", rooms[last - 1]

    while True:
        story = _asked(random, ask, 4)
        if len(story.facts) <= LONGEST_QA3:
            return story


def _asked(random: np.random.Generator, ask: Callable[[_World], tuple[str, str] | None], least: int) -> Story:
    """Actions until a question that is drawn beforehand: each follows an action with probability 1/2."""
    world = _World(random, _PEOPLE)
    questions: list[tuple[str, str]] = []
    wanted = random.integers(1, QUESTIONS + 1)
    while len(questions) < wanted:
        world.act(("move", "get", "drop"))
        if len(world.facts) >= least and random.integers(2) and (found := ask(world)):
            questions.append(found)
    return Story(tuple(world.facts), *questions[-1])


def _qa4(random: np.random.Generator) -> Story:
    first, middle, last = (ROOMS[i] for i in random.permutation(len(ROOMS))[:3])
    way = ("north", "east")[random.integers(2)]  # the first room is north of the middle one, and that of the last

    def fact(one: str, other: str) -> str:
        if random.integers(2):
            return f"The {one} is {way} of the {other}."
        return f"The {other} is {_OPPOSITE[way]} of the {one}."

    facts = [fact(first, middle), fact(middle, last)]
    if random.integers(2):
        facts.reverse()
    of, answer = ((way, first), (_OPPOSITE[way], last))[random.integers(2)]
    if random.integers(2):
        return Story(tuple(facts), f"What is {of} of the {middle}?", answer)
    return Story(tuple(facts), f"What is the {middle} {_OPPOSITE[of]} of?", answer)


def _qa5(random: np.random.Generator) -> Story:
    world = _World(random, _GIVERS)
    for _ in range(random.integers(1, QUESTIONS + 1)):
        while world.act(("move", "get", "give")) != "give":
            pass
        for _ in range(random.integers(6)):
            world.act(("move", "get"))
    assert world.given
    giver, thing, receiver = world.given
    questions = (
        (f"What did {giver} give to {receiver}?", thing),
        (f"Who gave the {thing} to {receiver}?", giver),
        (f"Who did {giver} give the {thing} to?", receiver),
        (f"Who gave the {thing}?", giver),
        (f"Who received the {thing}?", receiver),
    )
    return Story(tuple(world.facts), *questions[random.integers(len(questions))])


_STORIES = {"qa1": _qa1, "qa2": _qa2, "qa3": _qa3, "qa4": _qa4, "qa5": _qa5}
