"""The sum of two methods' log-likelihoods, as if their inputs were independent given the class."""

from experiments.continual_methods.learner import Examples, Learner, Scores


def weighted_sum(first: Learner, second: Learner, weight: float) -> Learner:
    """Scores ``first + weight * second``; each learns as it would alone."""

    def scores(state, examples: Examples) -> Scores:
        return first.scores(state[0], examples) + weight * second.scores(state[1], examples)

    return Learner(
        lambda sizes: (first.init(sizes), second.init(sizes)),
        lambda state, examples, labels: (
            first.learn(state[0], examples, labels),
            second.learn(state[1], examples, labels),
        ),
        scores,
    )
