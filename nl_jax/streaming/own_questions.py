"""Questions that a model asks itself about a text, and answers while it still sees it.

What a model reads as text it can often continue, but not find when it is asked (Allen-Zhu and Li, Physics of Language
Models 3.1, 2023). So it learns what it answers while the text is in context, and can then answer without it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from nl_jax.data import Tokenizer
from nl_jax.data.tokenizer import begin_ids, ids_of
from nl_jax.errors import InputError
from nl_jax.models.language_model import LanguageModel
from nl_jax.pretrained.stacked_level import StackedLevel
from nl_jax.streaming.generation import Sampling, checked_sampling
from nl_jax.streaming.together import written_lines

LONGEST = 40  # tokens of a question, and of an answer
RELATED = 8  # texts that are read before a question is answered
SHORTEST = 4  # letters of a word that says what a text without names is about


class Shown(NamedTuple):
    """An example of a question about a text.

    Examples:
      >>> Shown("Ada sings.", "What does Ada do?", "sings").answer
      'sings'
    """

    text: str
    question: str
    answer: str


# Examples for any document: a text, a question about it, and the answer, in the words of the text.
EXAMPLES = (
    Shown("Amara Lind repairs clocks in Oslo.", "What does Amara Lind repair?", "clocks"),
    Shown("The bridge over the Tavo was built in 1874.", "When was the bridge over the Tavo built?", "1874"),
    Shown("Since last spring Jonas Mbeki owns a bakery.", "What does Jonas Mbeki own?", "a bakery"),
    Shown("Most people in Velden speak Dutch.", "Which language do people in Velden speak?", "Dutch"),
    Shown("The sister of Irina Costa is called Paula.", "Who is Irina Costa's sister?", "Paula"),
    Shown("Harbor Street ends at the old mill.", "Where does Harbor Street end?", "at the old mill"),
    Shown("Every Friday the market in Karo sells fish.", "What is sold on the market in Karo?", "fish"),
)


def document_levels(blocks: int) -> list[StackedLevel]:
    """One level on the middle blocks of a model with this many blocks, where facts are found (Meng et al., 2022).

    Examples:
      >>> document_levels(30)[0].blocks
      (8, 9, 10, 11, 12, 13, 14, 15, 16, 17)
    """
    first, last = round(0.27 * blocks), round(0.6 * blocks)
    return [StackedLevel("middle", blocks=tuple(range(first, max(last, first + 1))), learning_rate=100.0)]


def self_questions(
    model: LanguageModel,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    examples: Sequence[Shown] = EXAMPLES,
    *,
    wanted: int = 3,
    rounds: int = 4,
    temperature: float = 0.6,
    seed: int = 0,
    batch_size: int = 16,
    told: Callable[[int], Any] = lambda count: None,
) -> list[tuple[str, str]]:
    """Questions about texts with their answers, as `ContinualLearner.learn` takes them.

    Questions are sampled after each text. Their answers are the likeliest ones after the text and those around it that
    have a name in common with it, so that no question about one fact is answered with another. A question is kept if a
    name in it stands in the text that it is about, and its answer, too, but not in the question; in a text without
    names its rarer long words take their place. Texts about which few were kept are asked about again.

    Args:
      model: a model that does not learn in context.
      tokenizer: its tokenizer.
      texts: the parts of a document, such as its sentences, in their order.
      examples: texts with a question and its answer, which the model reads before; one or more.
      wanted: questions about each text that are sampled in a round, and with which no more are asked for.
      rounds: number of rounds at most.
      temperature: of sampling.
      seed: random seed.
      batch_size: questions that are sampled together.
      told: gets, after each round, the number of texts about which no more is asked.

    Raises:
      InputError: for one text in place of a list, or a number below 1.

    Examples:
      >>> from nl_jax.pretrained import load_pretrained
      >>> from nl_jax.streaming import ContinualLearner
      >>> def taught(sentences):  # with SmolLM2, some minutes for 20 sentences
      ...     smollm2 = load_pretrained()
      ...     levels = document_levels(smollm2.model.config.num_layers)
      ...     options = {"before": before_questions(), "question": as_question("{text}")}
      ...     learner = ContinualLearner(smollm2.model, smollm2.tokenizer, levels, **options)
      ...     questions = self_questions(smollm2.model, smollm2.tokenizer, sentences)
      ...     for _ in range(4):
      ...         learner.learn(questions)
      ...     return learner  # learner.answer(["What does Anselm Kroy study?"])
    """
    if isinstance(texts, str):
        raise InputError("texts: one text; expected a list of texts")
    for name, value in (("wanted", wanted), ("rounds", rounds), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{name}={value}: expected at least 1")
    writer = _Writer(model, tokenizer, batch_size)
    how = checked_sampling(temperature, None, 1.0, model.config.vocab_size)
    likeliest = checked_sampling(0.0, None, 1.0, model.config.vocab_size)
    shown = "".join(f"Text: {one.text}\n{as_question(one.question)} {one.answer}\n\n" for one in examples)
    names, tried = _names(texts), set[str]()
    kept: dict[int, dict[str, str]] = {i: {} for i in range(len(texts))}
    for number in range(rounds):
        asked = [i for i, found in kept.items() if len(found) < wanted for _ in range(wanted)]
        sampled = writer.lines(shown, [f"Text: {texts[i]}\nQuestion:" for i in asked], how, seed + number)
        about = {q: i for i, q in zip(asked, sampled, strict=True) if q.endswith("?") and _is_about(q, names[i])}
        new = [question for question in about if question not in tried]
        prompts = [f"Text: {_related(texts, names, about[question])}\n{as_question(question)}" for question in new]
        answers = writer.lines(before_questions(examples), prompts, likeliest, 0)
        for question, answer in zip(new, answers, strict=True):
            if answer and answer in texts[about[question]] and answer not in question:
                kept[about[question]][question] = answer
        tried |= about.keys()
        told(len(texts) if number + 1 == rounds else sum(len(found) >= wanted for found in kept.values()))
    return [pair for found in kept.values() for pair in found.items()]


def before_questions(examples: Sequence[Shown] = EXAMPLES, document: Sequence[str] = ()) -> str:
    """What stands before a question: the examples' texts, those of a document, and the examples' questions.

    Examples:
      >>> print(before_questions([Shown("Ada sings.", "What does Ada do?", "sings")], ["It rains."]).rstrip())
      Ada sings. It rains.
      <BLANKLINE>
      Question: What does Ada do?
      Answer: sings
    """
    texts = " ".join([*(one.text for one in examples), *document])
    return f"{texts}\n\n" + "".join(f"{as_question(one.question)} {one.answer}\n\n" for one in examples)


def as_question(text: str) -> str:
    """A question in the form of those that stand before it; the answer follows after a space.

    Examples:
      >>> as_question("What does Ada do?")
      'Question: What does Ada do?\\nAnswer:'
    """
    return f"Question: {text}\nAnswer:"


class _Writer:
    """Writes lines after prompts."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, batch_size: int):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size

    def lines(self, before: str, prompts: Sequence[str], sampling: Sampling, seed: int) -> list[str]:
        """The line after each prompt; ``before`` stands before all of them."""
        return written_lines(
            self.model,
            self.tokenizer,
            [ids_of(self.tokenizer, prompt) for prompt in prompts],
            before=[*begin_ids(self.tokenizer), *ids_of(self.tokenizer, before)],
            num_tokens=LONGEST,
            sampling=sampling,
            batch_size=self.batch_size,
            seed=seed,
        )


def _words(text: str) -> list[str]:
    return [word.strip(".,;:!?'\"()").removesuffix("'s") for word in text.split()]


def _names(texts: Sequence[str]) -> list[set[str]]:
    """What each text is about: words that some text has with a capital inside of it, or else its other long words.

    The latter are in lower case, and without those that stand in more than half of several texts.
    """
    inside = {word for text in texts for word in _words(text)[1:] if word[:1].isupper()}
    lower = [{word.lower() for word in _words(text)} for text in texts]
    counts = Counter(word for words in lower for word in words)
    most = max(1, len(texts) // 2)
    long = [{w for w in words if len(w) >= SHORTEST and counts[w] <= most} or words for words in lower]
    return [set(_words(text)) & inside or long[i] for i, text in enumerate(texts)]


def _is_about(question: str, names: set[str]) -> bool:
    """Whether one of the names is a word of the question; one in lower case may have a capital there."""
    words = set(_words(question))
    return bool(names & (words | {word.lower() for word in words}))


def _related(texts: Sequence[str], names: Sequence[set[str]], index: int) -> str:
    """The text and the nearest others with a name in common, in their order."""
    own = [i for i in range(len(texts)) if names[i] & names[index]]
    nearest = sorted(own, key=lambda i: abs(i - index))[:RELATED]
    return " ".join(texts[i] for i in sorted(nearest))
