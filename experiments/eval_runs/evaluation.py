"""What an evaluation consists of: its subtasks, which are the columns of the paper's table, and how they are shown."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import flags
from matplotlib.figure import Figure

from nl_jax.models import MODEL_NAMES, LanguageModel

Batch = dict[str, Any]
Figures = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Subtask:
    """One column of a table: models are trained for it alone, or for several with the same batches.

    Attributes:
        sizes: ``vocab_size`` and ``context_length`` of the models, and any other field of their configuration.
        batch: ``batch(seed, step)`` returns a training batch: ``inputs`` and ``targets`` int32 ``[B, T]``, and ``mask``
            float32 ``[B, T]``.
        validate: ``validate(model, mesh)`` returns figures by name on validation data.
        test: ``test(model, mesh)`` returns figures by name on test data.
        steps: optimizer steps of a run; None for the flag ``--steps``.
        build: ``build(config, rngs=rngs)`` returns a model; None for the evaluation's.
        options: options of all models' mixers, unless a model has its own.
    """

    sizes: Mapping[str, Any]
    batch: Callable[[int, int], Batch]
    validate: Callable[[Any, jax.sharding.Mesh], Figures]
    test: Callable[[Any, jax.sharding.Mesh], Figures]
    steps: int | None = None
    build: Callable[..., Any] | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def scored(subtask: Subtask, key: str, *, lower: bool = False, options: Mapping[str, Any] | None = None) -> Subtask:
    """The same subtask with ``score`` among its validation figures, and other options of mixers.

    The score is the figure of a key, negative where lower is better.
    """

    def validate(model: Any, mesh: jax.sharding.Mesh) -> Figures:
        figures = subtask.validate(model, mesh)
        return figures | {"score": -figures[key] if lower else figures[key]}

    return dataclasses.replace(subtask, validate=validate, options=options or subtask.options)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A launcher of the suite.

    Attributes:
        name: of the launcher, as in ``evals.mad``.
        models: default of ``--models``.
        names: the subtasks by name.
        subtasks: ``subtasks(flags)`` returns those of ``--subtasks``; raises `InputError` for flags that do not fit.
        score: the key of ``validate``'s figures by which learning rates are chosen; higher is better, unless ``lower``.
        chosen_on: what ``validate`` looks at, in words.
        shown: keys of ``test``'s figures by heading of the table.
        presets: defaults of flags under ``--preset=quick`` and ``--preset=full``.
        own_flags: integer flags of the launcher: default and help by name.
        more_flags: ``more_flags(flags)`` defines flags of the launcher that are no integers.
        data: ``data(flags)`` identifies the inputs that are read from files, for config.json.
        paper: the paper's figures as text, by model and subtask.
        departures: where the evaluation departs from the task's rules; printed, and kept in results.json.
        variants: further models by name, or own settings of known ones: fields of the configuration, of which
            ``mixer_options`` is a mapping, and ``model``, the model that has them, by default that of the name.
        lower: whether a lower score is better.
        goal: the score at which a run ends, once two evaluations in a row have reached it; None for no such end.
        build: ``build(config, rngs=rngs)`` returns a model.
        references: ``references(flags)`` returns figures without training, as those of ``test``, by name of the
            reference and subtask.
        figure: ``figure(results)`` draws results.json; None for bars of the first figure shown.
    """

    name: str
    models: Sequence[str]
    names: Sequence[str]
    subtasks: Callable[[flags.FlagValues], Mapping[str, Subtask]]
    score: str
    shown: Mapping[str, str]
    presets: Mapping[str, Mapping[str, Any]]
    own_flags: Mapping[str, tuple[int, str]] = dataclasses.field(default_factory=dict)
    more_flags: Callable[[flags.FlagValues], None] = lambda values: None
    data: Callable[[flags.FlagValues], Mapping[str, Any]] = lambda values: {}
    paper: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    chosen_on: str = "validation data"
    departures: Sequence[str] = ()
    variants: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    lower: bool = False
    goal: float | None = None
    build: Callable[..., Any] = LanguageModel
    references: Callable[[flags.FlagValues], Mapping[str, Mapping[str, Figures]]] = lambda values: {}
    figure: Callable[[Mapping[str, Any]], Figure] | None = None

    @property
    def all_models(self) -> tuple[str, ...]:
        """The names that ``--models`` can have."""
        return tuple(dict.fromkeys([*MODEL_NAMES, *self.variants]))

    def value(self, figures: Figures) -> float:
        """The score of figures of ``validate``, negative where a lower one is better, so that the highest is best."""
        return -figures[self.score] if self.lower else figures[self.score]
