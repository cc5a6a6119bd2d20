"""Finished runs made up for the page of all results."""

from experiments.reporting.runs import Run


def evaluation(workdir, name, figures, key="bits_per_byte", subtask="1024", wanted=None, **results):
    """A run of an evaluation: figures of each seed by model; ``wanted`` seeds, by default the most that a model has."""
    cells = {
        model: {"parameters": 9, "learning_rate": 1e-3, "seeds": [seed({key: figure}) for figure in seeds]}
        for model, seeds in figures.items()
    }
    seeds = max(map(len, figures.values())) if wanted is None else wanted
    flags = {"seeds": seeds, "models": list(figures)}
    return Run(
        workdir,
        name,
        {"shown": {"bits": key}, "paper": {}, "departures": ["smaller | models"], "device": "2 x cpu"}
        | {"subtasks": {subtask: cells}, "configuration": {"flags": flags}, **results},
    )


def seed(figures):
    """The entry of a seed."""
    return {"test": figures, "test_at_best": figures, "steps": 3}


def stream(workdir, figures, form="features", wanted=2):
    """A run of classes one after the other: (last accuracy, forgetting) of each seed by method."""
    found = {
        name: [dict(zip(("last_accuracy", "forgetting"), pair, strict=True)) for pair in pairs]
        for name, pairs in figures.items()
    }
    flags = {"form": form, "methods": list(figures), "seeds": wanted}
    return Run(
        workdir, "continual.class_incremental", {"figures": found, "configuration": {"flags": flags}, "settings": {}}
    )
