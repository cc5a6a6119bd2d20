"""Questions that a model asks itself: what is sampled, what is answered in which context, and what is kept."""

import re

import pytest
from flax import nnx

from nl_jax import InputError
from nl_jax.data import ByteTokenizer
from nl_jax.models import LanguageModel, named_config
from nl_jax.streaming import own_questions as module
from nl_jax.streaming.generation import checked_sampling
from nl_jax.streaming.own_questions import Shown, as_question, before_questions, self_questions

EXAMPLES = [Shown("Ada sings.", "What does Ada do?", "sings"), Shown("Rex barks.", "Who is Rex?", "a dog")]
TEXTS = ["Nia plays the harp.", "The town of Zel makes salt.", "At home Nia keeps a cat.", "Nia was born in May."]


class Pupil:
    """Writes lines in place of a model, and keeps its prompts."""

    def __init__(self, sampled, answers):
        self.sampled, self.answers, self.asked, self.read, self.before = sampled, answers, [], [], []

    def __call__(self, model, tokenizer, batch_size):
        return self

    def lines(self, before, prompts, sampling, seed):
        self.before.append(before)
        if float(sampling.temperature) == 0:
            self.read.append(prompts)
            questions = [prompt.rsplit("Question: ", 1)[1].removesuffix("\nAnswer:") for prompt in prompts]
            return [self.answers.get(question, "no idea") for question in questions]
        self.asked.append([prompt.removeprefix("Text: ").removesuffix("\nQuestion:") for prompt in prompts])
        return [self.sampled.get(text, ["What?"])[seed % len(self.sampled.get(text, [0]))] for text in self.asked[-1]]


@pytest.fixture(scope="module")
def model():
    return LanguageModel(named_config("transformer", "tiny", context_length=512), rngs=nnx.Rngs(0))


def ask(model, monkeypatch, pupil, **options):
    monkeypatch.setattr(module, "_Writer", pupil)
    return self_questions(model, ByteTokenizer(), TEXTS, EXAMPLES, **options)


def test_a_question_names_what_its_text_is_about_and_its_answer_stands_there(model, monkeypatch):
    sampled = {
        TEXTS[0]: ["What does Nia play?", "Who is Ada?"],
        TEXTS[1]: ["What does Zel make?", "Does Zel make salt?"],
        TEXTS[2]: ["What is Nia's pet?", "What does Nia do for a living?"],
        TEXTS[3]: ["When was Nia born?", "Nia was born."],
    }
    answers = {
        "What does Nia play?": "harp",
        "Who is Ada?": "harp",  # another name
        "What does Zel make?": "sugar",  # not in the text
        "Does Zel make salt?": "salt",  # in the question
        "What is Nia's pet?": "cat",
        "What does Nia do for a living?": "harp",  # not in this text, but in another one of the same name
        "When was Nia born?": "May",
        "Nia was born.": "May",  # no question
    }
    pupil = Pupil(sampled, answers)
    found = ask(model, monkeypatch, pupil, wanted=1, rounds=3)
    assert found == [("What does Nia play?", "harp"), ("What is Nia's pet?", "cat"), ("When was Nia born?", "May")]
    assert pupil.asked == [TEXTS, [TEXTS[1]], [TEXTS[1]]]  # only where too few were kept


def test_answers_are_given_with_the_texts_of_the_same_name_in_view(model, monkeypatch):
    pupil = Pupil({TEXTS[0]: ["What does Nia play?"]}, {"What does Nia play?": "harp"})
    ask(model, monkeypatch, pupil, wanted=1, rounds=1)
    own = " ".join((TEXTS[0], TEXTS[2], TEXTS[3]))
    assert pupil.read == [[f"Text: {own}\n{as_question('What does Nia play?')}"]]
    assert pupil.before[1] == before_questions(EXAMPLES)


def test_the_examples_texts_stand_before_a_document_and_before_their_questions():
    assert before_questions(EXAMPLES, ["It rains."]) == (
        "Ada sings. Rex barks. It rains.\n\n"
        "Question: What does Ada do?\nAnswer: sings\n\nQuestion: Who is Rex?\nAnswer: a dog\n\n"
    )


def test_a_model_writes_one_line_after_each_prompt(model):
    """A random model's bytes; the same seed gives the same ones, whatever the others are."""
    writer, how = module._Writer(model, ByteTokenizer(), 2), checked_sampling(1.0, None, 1.0, model.config.vocab_size)
    prompts = ["a", "bc", "a"]
    lines = writer.lines("before ", prompts, how, 0)
    assert len(lines) == 3
    assert not any(re.search("\n", line.strip()) for line in lines)
    assert lines == writer.lines("before ", prompts, how, 0)
    assert lines != writer.lines("before ", prompts, how, 1)
    assert writer.lines("before ", [], how, 0) == []


@pytest.mark.parametrize("options", [{"wanted": 0}, {"rounds": 0}, {"batch_size": 0}])
def test_bad_numbers_are_one_clear_error(model, options):
    with pytest.raises(InputError, match=next(iter(options))):
        self_questions(model, ByteTokenizer(), TEXTS, EXAMPLES, **options)
    with pytest.raises(InputError, match="one text; expected a list"):
        self_questions(model, ByteTokenizer(), TEXTS[0], EXAMPLES)


@pytest.mark.slow
def test_a_random_model_asks_nothing_of_use(model):
    assert self_questions(model, ByteTokenizer(), TEXTS[:1], EXAMPLES, rounds=1) == []


def test_a_text_without_names_is_asked_about_by_its_rarer_long_words(model, monkeypatch):
    texts = ["Press the red button.", "The filter must be cleaned every month.", "Water must never reach the motor."]
    sampled = {texts[1]: ["How often must the filter be cleaned?"], texts[2]: ["How often must it be?"]}
    pupil = Pupil(sampled, {"How often must the filter be cleaned?": "every month", "How often must it be?": "never"})
    monkeypatch.setattr(module, "_Writer", pupil)
    found = self_questions(model, ByteTokenizer(), texts, EXAMPLES, wanted=1, rounds=1)
    assert found == [("How often must the filter be cleaned?", "every month")]
    assert pupil.read[0][0].startswith(f"Text: {texts[1]}\n")  # the others have no such word in common with it
