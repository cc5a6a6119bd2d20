"""The body of the launcher of lm-eval's tasks: which model and tasks, what is kept, what is printed."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.common import launcher
from experiments.common.launcher import CONFIG, RESULTS
from experiments.common.restoring import chosen_model, restore
from nl_jax import InputError
from nl_jax.evaluation.lm_eval import HarnessModel, check_installed
from nl_jax.pretrained import load_pretrained
from nl_jax.training.loop import CHECKPOINTS
from nl_jax.trees import content_digest

RESAMPLED = 1000  # times, for the standard errors of figures that are no means


def evaluate(values: flags.FlagValues) -> None:
    """Evaluates the tasks that are not in the output yet, and prints all. All checks come before any compilation."""
    _check(values)
    load = _source(values)
    if not values.tasks:
        raise InputError("--tasks: none given; expected tasks of lm-eval, or of --tasks_dir")
    check_installed()
    tasks = _tasks(values)
    adapter = load()
    results, save = _claim(values, adapter)
    for name in values.tasks:
        if name not in results["tasks"]:
            results["tasks"][name] = _evaluate(adapter, tasks, name, values)
            save()
    _report(results, values)


def _check(values: flags.FlagValues) -> None:
    for name, low in (("limit", 1), ("num_fewshot", 0), ("max_length", 2), ("batch_size", 1)):
        if values[name].value is not None:
            launcher.check_range(values, name, low)
    for name in ("output", "tasks_dir"):
        path = values[name].value
        if path and Path(path).exists() and not Path(path).is_dir():
            raise InputError(f"--{name}={path}: expected a directory, found a file")
    if values.tasks_dir and not Path(values.tasks_dir).is_dir():
        raise InputError(f"--tasks_dir={values.tasks_dir}: no such directory")


def _source(values: flags.FlagValues) -> Callable[[], HarnessModel]:
    """A function that reads the model; raises `InputError` if there is none."""
    options = {"max_length": values.max_length, "batch_size": values.batch_size}
    if values.workdir or not values.model:
        if not values.workdir:
            raise InputError("--workdir: missing; expected a run of experiments.language_model, or --model")
        directory, config, tokenizer = chosen_model(values)
        if values.chat:
            raise InputError("--chat: expected --model alone, since models of --workdir have no chat template")
        return lambda: HarnessModel(restore(directory / CHECKPOINTS, config), tokenizer, **options)
    if values.tokenizer:
        raise InputError(f"--tokenizer={values.tokenizer}: expected --workdir, since --model has its own")
    try:
        pretrained = load_pretrained(values.model)
    except InputError as error:
        raise InputError(f"--model={values.model}: {error}") from error
    if values.chat and pretrained.chat_template is None:
        raise InputError(f"--chat: {values.model} has no chat template; expected a model that was trained for chats")
    return lambda: HarnessModel(pretrained=pretrained, **options)


def _tasks(values: flags.FlagValues) -> Any:
    """The package's manager of tasks, which knows all that are asked for; loads their data."""
    from lm_eval.tasks import TaskManager

    try:
        manager = TaskManager(include_path=values.tasks_dir or None)
    except Exception as error:  # whatever a YAML file may hold
        raise InputError(f"--tasks_dir={values.tasks_dir}: cannot be read ({_line(error)})") from error
    unknown = [name for name in values.tasks if name not in manager.all_tasks]
    if unknown or len(set(values.tasks)) < len(values.tasks):
        where = f" or of --tasks_dir={values.tasks_dir}" if values.tasks_dir else ", or --tasks_dir"
        what = ",".join(unknown or values.tasks)
        raise InputError(f"--tasks={what}: expected tasks that lm-eval knows{where}, none twice")
    for name in values.tasks:
        try:
            manager.load([name])
        except Exception as error:  # from the network, from files, from the task's own code
            raise InputError(f"--tasks={name}: its data cannot be read ({_line(error)})") from error
    return manager


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def _claim(values: flags.FlagValues, adapter: HarnessModel) -> tuple[dict[str, Any], Callable[[], None]]:
    """The results so far, and a function that writes them; locks the output."""
    names = ("tasks_dir", "limit", "num_fewshot", "chat")
    model = adapter.model
    config: dict[str, Any] = {
        "launcher": "evals.lm_eval",
        "flags": {name: values[name].value for name in names} | {"max_length": adapter.max_length},
        "data": {"tokenizer": adapter.tokenizer_name},
        "models": {"model": {"sha256": content_digest(model)}},
    }
    if not values.output:
        return {"tasks": {}}, lambda: None
    output = Path(values.output)
    results = launcher.claim_workdir(output, config, {"tasks": {}})
    return results, lambda: launcher.write_json(output / RESULTS, results)


def _evaluate(adapter: HarnessModel, tasks: Any, name: str, values: flags.FlagValues) -> dict[str, Any]:
    """The figures of a task, by task of its group and by the package's name of the figure."""
    from lm_eval import simple_evaluate

    found = simple_evaluate(
        model=adapter,
        tasks=[name],
        task_manager=tasks,
        limit=values.limit,
        num_fewshot=values.num_fewshot,
        apply_chat_template=values.chat,
        log_samples=False,
        bootstrap_iters=RESAMPLED,
    )
    return {task: _plain(figures) for task, figures in found["results"].items()}


def _plain(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures as JSON holds them."""
    return {key: value if isinstance(value, str | int | None) else float(value) for key, value in figures.items()}


def _report(results: Mapping[str, Any], values: flags.FlagValues) -> None:
    rows: list[Sequence[str]] = [("task", "figure", "value", "standard error")]
    for tasks in results["tasks"].values():
        for task, figures in tasks.items():
            for key, value in figures.items():
                figure, comma, kind = key.partition(",")
                if comma and not figure.endswith("_stderr") and isinstance(value, float):
                    error = figures.get(f"{figure}_stderr,{kind}", "N/A")
                    shown = f"{error:.4f}" if isinstance(error, float) else "-"
                    rows.append((task, figure if kind == "none" else f"{figure} ({kind})", f"{value:.4f}", shown))
    launcher.print_table(rows)
    if values.output:
        print(f"Everything is in {values.output}: {RESULTS}, {CONFIG}")
