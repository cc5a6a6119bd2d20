"""Every method that reads text, with the settings that are tried on validation texts."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from experiments.continual_methods.candidates import Candidates
from experiments.continual_methods.table import grid
from experiments.continual_methods.text_learners import Elastic, InContext, Replay, TextLearner, ZeroShot
from nl_jax.pretrained.stacked_level import StackedLevel

LAST = 4  # blocks that learn, at most
NAMES = ("fast", "middle", "slow")
PERIODS = (1, 4, 16)  # batches between their updates
Blocks = tuple[int, ...]


class TextMethod(NamedTuple):
    """A method.

    Attributes:
        make: ``make(pretrained, levels, answered=, seed=, **options)`` returns the learner.
        levels: ``levels(blocks, **setting)`` returns the levels on these blocks of the model.
        settings: what is tried on validation texts; the first is used where nothing is tried.
        options: names in a setting that ``make`` takes, as it does ``batch``; the others are for ``levels``.
        like: the method whose chosen setting is taken over, so that controls differ in one thing only.
        shuffled: whether the examples of all tasks come in one random order.
    """

    make: Callable[..., TextLearner]
    levels: Callable[..., tuple[StackedLevel, ...]]
    settings: tuple[dict[str, Any], ...] = ({},)
    options: tuple[str, ...] = ()
    like: str | None = None
    shuffled: bool = False


def stacked(
    blocks: Blocks, rate: float, ridge: float = 1.0, slow: float = 1.0, count: int = 3, **fields: Any
) -> tuple[StackedLevel, ...]:
    """Levels that share the hidden units equally; ``slow`` multiplies the rates of all but the first.

    ``count`` is their number, up to 3, and ``fields`` are others of each level.
    """
    return tuple(
        StackedLevel(
            NAMES[i],
            PERIODS[i],
            rate * (slow if i else 1.0),
            blocks=blocks,
            units=(i / count, (i + 1) / count),
            ridge=ridge,
            **fields,
        )
        for i in range(count)
    )


def one_level(blocks: Blocks, rate: float, ridge: float) -> tuple[StackedLevel, ...]:
    """The same matrices on one level."""
    return (StackedLevel("fast", 1, rate, blocks=blocks, ridge=ridge),)


def fine_tuned(blocks: Blocks, rate: float) -> tuple[StackedLevel, ...]:
    """Adam on all matrices of the same MLPs."""
    return (StackedLevel("adam", 1, rate, blocks=blocks, matrices=("gate", "up", "down"), rule="adam"),)


FROZEN = partial(one_level, rate=0.0, ridge=1.0)
RATES = grid(batch=(8,), rate=(3e-4, 1e-4, 1e-3))
EWC = grid(batch=(8,), rate=(3e-4, 1e-3), penalty=(1e3, 1e2, 1e4))
INCA = grid(layer=(8,), ridge=(1e-2, 1e-1), shown=(3, 1))

TEXT_METHODS: dict[str, TextMethod] = {
    "levels": TextMethod(TextLearner, stacked, grid(batch=(16,), ridge=(1.0, 10.0), rate=(300.0, 100.0, 1000.0))),
    "finetune": TextMethod(TextLearner, fine_tuned, RATES),
    "replay_1": TextMethod(partial(Replay, every=100), fine_tuned, RATES),
    "ewc": TextMethod(Elastic, fine_tuned, EWC, ("penalty",)),
    "in_context": TextMethod(InContext, FROZEN),
    "inca": TextMethod(Candidates, FROZEN, INCA, ("layer", "ridge", "shown")),
    "levels_no_slow": TextMethod(TextLearner, partial(stacked, slow=0.0), like="levels"),
    "one_level": TextMethod(TextLearner, one_level, like="levels"),
    "replay_5": TextMethod(partial(Replay, every=20), fine_tuned, like="replay_1"),
    "joint": TextMethod(TextLearner, fine_tuned, like="finetune", shuffled=True),
    "zero_shot": TextMethod(ZeroShot, FROZEN),
    "joint_levels": TextMethod(TextLearner, stacked, like="levels", shuffled=True),
}
TEXT_NAMES = tuple(TEXT_METHODS)
