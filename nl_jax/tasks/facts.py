"""Facts about invented people and places: a document that no model has read, and questions about it."""

from typing import NamedTuple

import numpy as np

from nl_jax.errors import InputError


class Fact(NamedTuple):
    """One fact: how the document states it, and a question that asks for it in other words."""

    subject: str  # who or what the fact is about
    kind: str  # of the answer, a key of `ANSWERS`
    statements: tuple[str, ...]  # sentences that state the fact, each in its own words
    question: str
    answer: str


class Relation(NamedTuple):
    """How facts of one kind are put; ``{s}`` stands for the subject and ``{a}`` for the answer."""

    of: str  # "person" or "place"
    statements: tuple[str, ...]
    question: str


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ANSWERS = {
    "profession": _words("baker carpenter dentist farmer lawyer nurse painter pilot plumber tailor teacher sailor"),
    "instrument": _words("banjo cello clarinet drums flute guitar harp organ piano trumpet tuba violin"),
    "pet": _words("cat dog donkey goat horse owl parrot rabbit snake spider turtle goose"),
    "month": _words("January February March April May June July August September October November December"),
    "product": _words("butter candles carpets cheese chocolate glass honey paper salt silk soap wine"),
    "metal": _words("aluminum bronze copper gold iron lead nickel platinum silver steel tin zinc"),
    "emblem": _words("bear bull crow deer dragon eagle fish lion ship sun tree wolf"),
    "color": _words("black blue brown gray green orange pink purple red silver white yellow"),
}
RELATIONS = {
    "profession": Relation(
        "person",
        ("{s} works as a {a}.", "For many years {s} has earned a living as a {a}.", "The profession of {s} is {a}."),
        "What is {s}'s job?",
    ),
    "instrument": Relation(
        "person",
        (
            "In the evenings {s} plays the {a}.",
            "The instrument that {s} loves most is the {a}.",
            "{s} has learned to play the {a}.",
        ),
        "Which musical instrument does {s} play?",
    ),
    "pet": Relation(
        "person",
        ("At home {s} keeps a {a}.", "The pet of {s} is a {a}.", "{s} has owned a {a} since last year."),
        "What animal does {s} have as a pet?",
    ),
    "month": Relation(
        "person",
        ("{s} was born in {a}.", "The birthday of {s} is in {a}.", "Every year {s} turns one year older in {a}."),
        "In which month is {s}'s birthday?",
    ),
    "product": Relation(
        "place",
        (
            "The town of {s} is famous for its {a}.",
            "People travel to {s} to buy {a}.",
            "Most workshops in {s} make {a}.",
        ),
        "What product is {s} known for?",
    ),
    "metal": Relation(
        "place",
        (
            "Miners dig for {a} in the hills near {s}.",
            "The mines of {s} produce {a}.",
            "{s} has lived on {a} from its mine for centuries.",
        ),
        "Which metal is mined in {s}?",
    ),
    "emblem": Relation(
        "place",
        (
            "The flag of {s} shows a {a}.",
            "On the coat of arms of {s} there is a {a}.",
            "A {a} is the old symbol of {s}.",
        ),
        "What can be seen on the flag of {s}?",
    ),
    "color": Relation(
        "place",
        (
            "By law, every roof in {s} is {a}.",
            "The houses of {s} all have {a} roofs.",
            "From the air {s} looks {a}, because of its roofs.",
        ),
        "What color are the roofs in {s}?",
    ),
}
MOST = 144 * 4  # facts that a document can have
_ONSETS = _words("b br d dr f g gr h j k kl l m n p r s st t tr v z")
_VOWELS = _words("a e i o u")
_CODAS = _words("l n r s m k")
_PLACE_ENDS = ("holm", "wick", "mere", "burg", "dale", "vik")


def invented_facts(seed: int, number: int = 40, statements: int = 2) -> list[Fact]:
    """Facts about invented people and places, as a pure function of the arguments.

    Half of the facts are about people, half about places; of each subject there are two facts of different kinds. All
    names are put together from syllables. Answers are common words, drawn from `ANSWERS` of the fact's kind.

    Args:
        seed: random seed, 0 or more.
        number: number of facts, 1 to 576.
        statements: number of sentences that state each fact, 1 to 3; the question is none of them.

    Raises:
        InputError: for a number out of range.
    """
    for name, value, high in (("facts", number, MOST), ("statements", statements, 3)):
        if not 1 <= value <= high:
            raise InputError(f"--{name}={value}: expected 1 to {high}")
    random = np.random.default_rng((seed, 25))
    facts: list[Fact] = []
    used: set[str] = set()
    while len(facts) < number:
        of = ("person", "place")[len(used) % 2]
        subject = _name(random, of)
        if subject in used:
            continue
        used.add(subject)
        kinds = [kind for kind, relation in RELATIONS.items() if relation.of == of]
        for kind in random.permutation(kinds)[: min(2, number - len(facts))]:
            relation, answer = RELATIONS[kind], str(random.choice(ANSWERS[kind]))
            told = (_sentence(text, subject, answer) for text in relation.statements[:statements])
            facts.append(Fact(subject, str(kind), tuple(told), relation.question.format(s=subject), answer))
    return facts


def _sentence(text: str, subject: str, answer: str) -> str:
    if answer[0].lower() in "aeiou":
        text = text.replace("a {a}", "an {a}").replace("A {a}", "An {a}")
    return text.format(s=subject, a=answer)


def _name(random: np.random.Generator, of: str) -> str:
    def syllables(count: int) -> str:
        return "".join(random.choice(_ONSETS) + random.choice(_VOWELS) for _ in range(count)) + random.choice(_CODAS)

    if of == "person":
        return f"{syllables(2).title()} {syllables(2).title()}"
    return syllables(2).title() + str(random.choice(_PLACE_ENDS))
