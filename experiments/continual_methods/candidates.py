"""InCA: Gaussians of the classes choose a few candidates, among which the language model chooses (Momeni et al., 2025).

Departures from the source (arXiv 2412.15563): in place of tags that the model makes for a text stand the text's own
features, and in place of summaries that it makes of a class stand the class's newest examples.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from experiments.continual_methods.learner import Sizes
from experiments.continual_methods.moments import Moments, add_moments, discriminants, init_moments, mapped_features
from experiments.continual_methods.streams import FIRST, mean_and_spread
from experiments.continual_methods.text_learners import InContext, Pair, example_of, question_of
from nl_jax.data.tokenizer import begin_tokens
from nl_jax.pretrained import Pretrained, mean_features
from nl_jax.pretrained.stacked_level import StackedLevel
from nl_jax.streaming.answers import likeliest

CANDIDATES = 3  # classes, of which the model chooses one
LENGTHS = 32  # prompts are filled up to multiples of it, since each length is compiled


class Candidates(InContext):
    """Means of the classes and one covariance, of frozen features; the model reads examples of the nearest classes.

    Args:
        pretrained: the model and its tokenizer.
        levels: those of the model, which learn nothing here.
        answered: number of texts that are answered together.
        layer: blocks of the model that are run for features.
        ridge: on the covariance, as a share of its mean diagonal element.
        shown: examples of each candidate that the model reads before a text.
        seed: of random draws.
    """

    def __init__(
        self,
        pretrained: Pretrained,
        levels: Sequence[StackedLevel],
        *,
        answered: int,
        layer: int,
        ridge: float,
        shown: int,
        seed: int = 0,
    ):
        super().__init__(pretrained, levels, answered=answered, seed=seed)
        config = pretrained.model.config
        self.layer, self.ridge, self.shown = min(layer, config.num_layers), ridge, shown
        self.moments = init_moments(Sizes(0, config.width, seed), "features", None)
        self.standard: tuple[np.ndarray, ...] = ()  # mean and spread of the stream's first features

    def learn(self, examples: Sequence[Pair]) -> None:
        """Adds examples to the moments of their classes, and keeps the newest of each class."""
        super().learn(examples)
        new = len(self.newest) - len(self.moments.number)
        number, sums = (np.pad(u, [(0, new)] + [(0, 0)] * (u.ndim - 1)) for u in self.moments[:2])
        features = self._features([text for text, _ in examples])
        if not self.standard:
            self.standard = mean_and_spread(features[:FIRST])
        labels = self._rows([label for _, label in examples])
        self.moments = add_moments(Moments(number, sums, *self.moments[2:]), self._mapped(features), labels)

    def predict(self, texts: Sequence[str], labels: Sequence[str]) -> list[str]:
        """The likeliest, to the model, of the nearest labels for each text."""
        scores = self.scores(texts)[:, self._rows(labels)]
        nearest = np.argsort(-scores, axis=1, kind="stable")[:, :CANDIDATES]
        return [self._choose(text, [labels[i] for i in row]) for text, row in zip(texts, nearest, strict=True)]

    def scores(self, texts: Sequence[str]) -> Float[np.ndarray, "texts classes"]:
        """How near each text is to each class, in the order in which they came."""
        weights, biases = discriminants(self.moments, self.ridge)
        return self._mapped(self._features(texts)) @ weights + biases

    def _choose(self, text: str, candidates: Sequence[str]) -> str:
        """The likeliest of the candidates after examples of them."""
        examples = [example_of(shown, c) for c in candidates for shown in self.newest[c][-self.shown :]]
        order = self.random.permutation(len(examples))
        ids = self.encode("".join(examples[i] for i in order) + question_of(text))
        begin, answers = begin_tokens(self.tokenizer), self.answers(candidates)
        room = self.model.config.context_length - len(begin) - max(map(len, answers)) - LENGTHS
        ids = ids[-max(1, room) :]  # what is furthest back is left out
        fill = self.encode("\n") * (-(len(begin) + len(ids)) % LENGTHS)
        found = likeliest(self.model, [[*begin, *fill, *ids]], answers, batch_size=len(candidates))
        return candidates[found.choice[0]]

    def _rows(self, labels: Sequence[str]) -> Int[np.ndarray, "labels"]:
        """The row of each label in the moments: classes stand in the order in which they came."""
        row = {label: i for i, label in enumerate(self.newest)}
        return np.asarray([row[label] for label in labels])

    def _features(self, texts: Sequence[str]) -> Float[np.ndarray, "texts width"]:
        return mean_features(self.model, [self.encode(text) for text in texts], self.layer)

    def _mapped(self, features: Float[np.ndarray, "N width"]) -> Float[np.ndarray, "N mapped"]:
        mean, spread = self.standard
        return mapped_features(self.moments, (features - mean) / spread)

    @property
    def state(self) -> Any:
        """All arrays that the method keeps beside the model."""
        return self.moments[:3], self.standard
