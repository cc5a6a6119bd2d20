"""Every method that the class-incremental comparison knows, with the settings that are tried on validation texts."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.continual_methods.counting import complement_naive_bayes, naive_bayes, tfidf_mean
from experiments.continual_methods.heads import fine_tuned, replayed
from experiments.continual_methods.joint import joint_logistic, joint_svm
from experiments.continual_methods.learner import Learner
from experiments.continual_methods.memories import matrix_memory, preconditioned_memory, two_levels
from experiments.continual_methods.moments import FourierMap, class_mean, discriminant_analysis, least_squares
from experiments.continual_methods.sums import weighted_sum

FOURIER = 2048  # random Fourier features


class Method(NamedTuple):
    """A method that learns from a stream.

    Attributes:
        make: ``make(**setting)`` returns the learner.
        settings: what is tried on validation texts; the first is used where nothing is tried.
    """

    make: Callable[..., Learner]
    settings: tuple[dict[str, Any], ...] = ({},)


class Joint(NamedTuple):
    """A method that sees all classes at once: ``scores(setting, train, labels, test, classes)``."""

    scores: Callable[..., Any]
    settings: tuple[float, ...]


def grid(**values: tuple) -> tuple[dict[str, Any], ...]:
    """All combinations of the values of each name."""
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values()))


def _klda(scale: float, ridge: float) -> Learner:
    return discriminant_analysis(ridge, fourier=FourierMap(FOURIER, scale))


def _fourier_rls(scale: float, ridge: float) -> Learner:
    return least_squares(ridge, fourier=FourierMap(FOURIER, scale))


def _levels(scale: float, ridge: float, period: int, inputs: str = "features", **switches: Any) -> Learner:
    return two_levels(ridge, period, FourierMap(FOURIER, scale), inputs, **switches)


def _ours(smoothing: float, weight: float, memory: str = "levels", **rest: Any) -> Learner:
    if memory == "levels":
        features = _levels(period=512, **rest)
    else:
        fourier = None if memory == "lda" else FourierMap(FOURIER, rest["scale"])
        features = discriminant_analysis(1e-2 if memory == "lda" else 1e-3, rest["inputs"], fourier)
    return weighted_sum(naive_bayes(smoothing), features, weight)


RATES = (1e-3, 3e-3, 1e-2)
KERNEL = grid(ridge=(1e-3,), scale=(0.01, 0.005, 0.02))
LEVELS = grid(ridge=(1e-5,), scale=(0.01, 0.02), period=(512,))

METHODS: dict[str, Method] = {
    # ours: memories of the engine
    "hebbian": Method(lambda rate: matrix_memory(rate, delta=False), grid(rate=(0.1,))),
    "delta_rule": Method(matrix_memory, grid(eta=(0.1, 0.03, 0.3, 1.0))),
    "momentum": Method(matrix_memory, grid(eta=(0.1, 0.03, 0.3), mu=(0.9,))),
    "retention": Method(matrix_memory, grid(eta=(0.1, 0.3), alpha=(0.9999, 0.999))),
    "rls": Method(preconditioned_memory, grid(ridge=(0.1, 0.01, 1.0))),
    "fourier_rls": Method(_fourier_rls, grid(ridge=(1e-5, 1e-4), scale=(0.01, 0.02))),
    "levels": Method(_levels, LEVELS),
    "levels_no_slow": Method(lambda **s: _levels(**s, slow=False), grid(ridge=(1e-5,), scale=(0.01,), period=(512,))),
    "levels_no_fast": Method(lambda **s: _levels(**s, fast=False), LEVELS),
    "ours": Method(
        _ours,
        (
            *grid(memory=("levels",), ridge=(1e-5,), scale=(0.01,), smoothing=(0.05,), weight=(100.0, 50.0, 200.0)),
            *grid(
                memory=("levels",), ridge=(1e-5,), scale=(0.01,), smoothing=(0.05,), weight=(100.0,), inputs=("both",)
            ),
            *grid(memory=("klda",), scale=(0.01,), smoothing=(0.05,), weight=(0.5, 1.0), inputs=("features", "both")),
            *grid(memory=("lda",), smoothing=(0.05,), weight=(0.5, 1.0), inputs=("features", "both")),
        ),
    ),
    # baselines on the same features
    "finetune_sgd": Method(lambda rate: fine_tuned(rate, "sgd"), grid(rate=RATES)),
    "finetune_adam": Method(fine_tuned, grid(rate=RATES)),
    "finetune_mlp": Method(lambda rate: fine_tuned(rate, hidden=512), grid(rate=(1e-3, 3e-4, 3e-3))),
    "ewc": Method(fine_tuned, grid(rate=(3e-3,), penalty=(1e3, 1e1, 1e2, 1e4, 1e5))),
    "replay_1": Method(lambda rate: replayed(rate, 100), grid(rate=RATES)),
    "replay_5": Method(lambda rate: replayed(rate, 20), grid(rate=RATES)),
    "class_mean": Method(class_mean),
    "lda": Method(discriminant_analysis, grid(ridge=(1e-2, 1e-3, 1e-1))),
    "klda": Method(_klda, KERNEL),
    # baselines that do not use the layers of the model
    "tfidf_mean": Method(tfidf_mean),
    "naive_bayes": Method(naive_bayes, grid(smoothing=(0.05, 0.02, 0.1))),
    "complement_naive_bayes": Method(complement_naive_bayes, grid(smoothing=(1.0, 0.3))),
    "naive_bayes_lda": Method(
        lambda smoothing, weight: weighted_sum(
            naive_bayes(smoothing), discriminant_analysis(1e-2, "embeddings"), weight
        ),
        grid(smoothing=(0.05, 0.1), weight=(0.5, 0.25, 1.0)),
    ),
}
JOINT: dict[str, Joint] = {
    "joint_logistic": Joint(joint_logistic, (1e-6, 1e-5, 1e-4)),
    "joint_svm": Joint(joint_svm, (1.0, 0.3)),
}
NAMES = (*METHODS, *JOINT)
EXACT = "rls"  # forgets no example; what it loses on old tasks it loses because more classes compete
