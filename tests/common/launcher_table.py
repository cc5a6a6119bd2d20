"""Every launcher, and a run of each that takes seconds: the rows of tests/launchers/test_launcher_table.py."""

import contextlib
import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
from image_cases import write_images
from labelled_cases import write_labelled
from launcher_cases import no_compilation_cache, results_of
from pretrained_cases import configuration, tensors_of, write_directory

from experiments.common import launcher

ROOT = Path(launcher.__file__).parents[2]

# Of each launcher: the task that it wants before its flags.
LAUNCHERS = {
    "language_model": [],
    "compare": [],
    "context": [],
    "generate": [],
    "stream": [],
    "learn": [],
    "ask": [],
    "subjects": [],
    "recall": [],
    "parity": [],
    "optimizers": ["toy"],
    "benchmark": ["mixers"],
    "topology": [],
    "faults": [],
    "report": [],
    "continual.class_incremental": [],
    "continual.incorporate": [],
    "continual.new_languages": [],
    "evals.babilong": [],
    "evals.niah": [],
    "evals.recall": [],
    "evals.ablation": [],
    "evals.levels": [],
    "evals.language": [],
    "evals.few_shot": [],
    "evals.lm_eval": [],
    "evals.mad": [],
    "evals.formal_languages": [],
}
READERS = ("generate", "stream", "ask", "evals.lm_eval")  # of a run of language_model, or of learn
OTHERS = ("topology", "report")  # which train nothing: for machines that are not here, and of runs that are there

TEXT = "--data={inputs}/data.txt --batch_size=2 --eval_every=2"
TASK = "--width=8 --num_layers=1 --chunk_size=4 --batch_size=8 --steps=5 --eval_every=2 --seeds=2"
EVALUATED = "--width=8 --num_layers=1 --chunk_size=4 --batch_size=4 --steps=3 --eval_every=2 --seeds=2"
TIMED = "--width=8 --num_heads=2 --num_layers=1 --chunk_size=4 --matrix_size=8 --repeats=1 --models=transformer"

METRICS_ROW = "nl_jax.training.metrics MetricsWriter.write"
JSON_FILE = "experiments.common.launcher write_json"  # the first one is config.json


@dataclasses.dataclass(frozen=True)
class Run:
    """The smallest run of a launcher.

    Attributes:
        command: the launcher and its task.
        flags: all that it needs but --workdir; {inputs} is the folder that `write_inputs` fills.
        other: a flag that a run must not change, and how the line begins that says so.
        stops: what is about to happen when the run is killed, and for which time since the last kill; none for runs of
            the same code as another.
    """

    command: str
    flags: str
    other: tuple[str, str]
    stops: tuple[tuple[str, int], ...] = ()

    def arguments(self, inputs, workdir):
        """The command line without the program's name and the launcher's."""
        _, *task = self.command.split()
        return [*task, *self.flags.format(inputs=inputs).split(), f"--workdir={workdir}"]

    @property
    def name(self):
        """The launcher's."""
        return self.command.split()[0]

    def __call__(self, inputs, workdir, *more):
        """Exit code of the run in this process."""
        cache = no_compilation_cache if self.command == "benchmark compile" else contextlib.nullcontext
        with cache():
            return module_of(self.name).main([self.name, *self.arguments(inputs, workdir), *more])


RATE = ("--learning_rate=0.5", "learning_rate 0.003 there, 0.5 here")
REPEATS = ("--width=16", "width 8 there, 16 here")
RUNS = {
    run.command: run
    for run in (
        Run(
            "language_model",
            f"{TEXT} --models=transformer --steps=6 --seq_len=16 --checkpoint_every=2",
            RATE,
            ((METRICS_ROW, 1), (METRICS_ROW, 4), (METRICS_ROW, 2)),
        ),
        Run(
            "compare",
            f"{TEXT} --models=transformer --steps=2 --seq_len=16 --checkpoint_every=2 --seeds=1 --points=2"
            " --learning_rate=0.003",
            RATE,
            ((METRICS_ROW, 2), (METRICS_ROW, 5)),
        ),
        Run(
            "context",
            f"{TEXT} --models=transformer --steps=4 --seq_len=16 --checkpoint_every=2 --seeds=2",
            RATE,
            ((METRICS_ROW, 3), (METRICS_ROW, 5)),
        ),
        Run(
            "subjects",
            f"{TEXT} --model=hope_attention --regimes=outer --texts={{inputs}}/prose.txt,{{inputs}}/code.txt --steps=2"
            " --seq_len=64 --cms_levels=64,128 --part=512 --streams=1 --seeds=2",
            ("--part=1024", "part 512 there, 1024 here"),
            ((METRICS_ROW, 2), (METRICS_ROW, 3)),
        ),
        Run(
            "recall",
            f"{TASK} --models=transformer --pairs=2 --seq_len=8 --vocab_size=12",
            RATE,
            ((METRICS_ROW, 3), (METRICS_ROW, 8)),
        ),
        Run(
            "parity",
            f"{TASK} --models=linear_attention --max_length=8 --long_length=12 --validation_sequences=20",
            RATE,
            ((METRICS_ROW, 8),),
        ),
        Run(
            "optimizers toy",
            "--optimizers=sgd,momentum",
            ("--optimizers=sgd", "optimizers"),
            ((JSON_FILE, 2), (JSON_FILE, 2)),
        ),
        Run(
            "optimizers continual",
            "--optimizers=sgd,momentum --num_tasks=2 --task_steps=3 --seeds=1",
            ("--task_steps=4", "task_steps 3 there, 4 here"),
        ),
        Run(
            "optimizers training",
            "--images={inputs}/images --image_size=8 --batch_size=4 --optimizers=momentum --steps=2 --eval_every=1"
            " --points=2 --seeds=2 --rounds=1",
            ("--weight_decay=0.2", "weight_decay 0.1 there, 0.2 here"),
            ((JSON_FILE, 2), (JSON_FILE, 3)),
        ),
        Run(
            "optimizers speed",
            "--sizes=1e4,1e5 --rounds=1 --optimizers=momentum",
            ("--rounds=2", "rounds 1 there, 2 here"),
        ),
        Run("benchmark scaling", f"{TIMED} --lengths=8:1,16:1", REPEATS),
        Run(
            "benchmark mixers", f"{TIMED} --lengths=8:1,16:1 --competitors=", REPEATS, ((JSON_FILE, 3), (JSON_FILE, 1))
        ),
        Run("benchmark compile", f"{TIMED} --lengths=8:1 --depths=1,2", REPEATS),
        Run(
            "benchmark gpu",
            "--preset=tiny --matrix_size=8 --repeats=1 --models=transformer --lengths=8:1 --competitors=",
            ("--chunk_size=8", "chunk_size 64 there, 8 here"),
        ),
        Run(
            "benchmark kernel",
            "--preset=tiny --repeats=1 --models=delta_net --lengths=16:1 --chunk_size=8 --competitors=",
            ("--chunk_size=16", "chunk_size 8 there, 16 here"),
        ),
        Run(
            "benchmark pretrained",
            "--pretrained={inputs}/llama --lengths=8:1 --repeats=1",
            ("--repeats=2", "repeats 1 there, 2 here"),
        ),
        Run("faults", "--rounds=1 --kinds=kill_step", ("--rounds=2", "rounds 1 there, 2 here")),
        Run(
            "continual.class_incremental",
            "--data_dir={inputs}/labelled --pretrained={inputs}/llama --dataset=banking77 --tasks=3 --layer=1 --seeds=2"
            " --methods=class_mean,joint_svm --quick",
            ("--layer=0", "layer 1 there, 0 here"),
            ((JSON_FILE, 2), (JSON_FILE, 2)),
        ),
        Run(
            "continual.incorporate",
            "--pretrained={inputs}/llama --quick --facts=4 --passes=2 --seeds=2 --other_texts=1"
            " --methods=without,in_context,levels_text",
            ("--passes=3", "passes 2 there, 3 here"),
            ((METRICS_ROW, 2), (JSON_FILE, 2)),
        ),
        Run(
            "continual.new_languages",
            "--pretrained={inputs}/llama --quick --sentences=4 --tests=2 --passes=1 --seeds=2 --window=64"
            " --methods=guess,without,levels_2",
            ("--sentences=5", "sentences 4 there, 5 here"),
            ((METRICS_ROW, 2), (JSON_FILE, 2)),
        ),
        Run(
            "learn",
            "{inputs}/facts.txt {inputs}/labels.csv --pretrained={inputs}/llama --batch_size=2 --chunk=8 --save_every=4"
            " --levels=fast:blocks=1,units=0..0.5;slow:period=2,blocks=1,units=0.5..1",
            ("--chunk=16", "chunk 8 there, 16 here"),
            ((METRICS_ROW, 3), (METRICS_ROW, 4)),
        ),
        Run(
            "evals.recall",
            f"{EVALUATED} --models=linear_attention --subtasks=32x4 --learning_rates=1e-3,1e-2 --vocab_size=12",
            ("--width=16", "width 8 there, 16 here"),
            ((METRICS_ROW, 5), (JSON_FILE, 3)),
        ),
        Run(
            "evals.language",
            f"{EVALUATED} --models=linear_attention --subtasks=1024 --data={{inputs}}/prose.txt --learning_rates=1e-3"
            " --batch_size=8 --test_tokens=1024 --seeds=1 --parameters=4000",
            ("--test_tokens=2048", "test_tokens 1024 there, 2048 here"),
        ),
        Run(
            "evals.ablation",
            f"{EVALUATED} --models=without_cms --data={{inputs}}/prose.txt --subtasks=language --learning_rates=1e-3"
            " --batch_size=8 --test_tokens=1024 --seeds=1 --parameters=8000",
            ("--test_tokens=2048", "test_tokens 1024 there, 2048 here"),
        ),
        Run(
            "evals.levels",
            f"{EVALUATED} --models=levels_2 --data={{inputs}}/prose.txt --subtasks=language --learning_rates=1e-3"
            " --window=64 --batch_size=8 --test_tokens=1024 --seeds=1 --parameters=8000",
            ("--window=128", "window 64 there, 128 here"),
        ),
        Run(
            "evals.few_shot",
            f"{EVALUATED} --models=linear_attention --subtasks=sparse_linear --dimensions=3 --examples=4"
            " --learning_rates=1e-3 --seeds=1",
            ("--examples=5", "examples 4 there, 5 here"),
        ),
        Run(
            "evals.mad",
            f"{EVALUATED} --models=linear_attention --subtasks=copying --copying_len=8 --copied=2",
            ("--copied=1", "copied 2 there, 1 here"),
        ),
        Run(
            "evals.formal_languages",
            f"{EVALUATED} --models=linear_attention --subtasks=aa --learning_rates=1e-3 --max_length=8 --long_length=12"
            " --train_strings=20",
            ("--long_length=14", "long_length 12 there, 14 here"),
        ),
        Run(
            "evals.babilong",
            f"{EVALUATED} --models=linear_attention --subtasks=qa4 --learning_rates=1e-3 --length=64 --longest=1024"
            " --samples=2 --haystack={inputs}/prose.txt",
            ("--longest=2048", "longest 1024 there, 2048 here"),
        ),
        Run(
            "evals.niah",
            f"{EVALUATED} --models=linear_attention --subtasks=s_1 --learning_rates=1e-3 --length=128 --longest=512"
            " --samples=2 --haystack={inputs}/prose.txt",
            ("--samples=3", "samples 2 there, 3 here"),
        ),
        Run("benchmark remat", f"{TIMED} --lengths=8:1", REPEATS),
        Run("benchmark gradients", f"{TIMED} --models=linear_attention_pp --lengths=8:1,16:1", REPEATS),
    )
}


def module_of(name):
    return importlib.import_module(f"experiments.{name}")


def flags_of(name):
    """A launcher's flags, not yet parsed."""
    return module_of(name).define_flags()


def run_of(name):
    """The first run of a launcher."""
    return next(run for run in RUNS.values() if run.name == name)


def call(name, *arguments):
    """Exit code of a launcher run in this process with its usual task."""
    return module_of(name).main([name, *LAUNCHERS[name], *map(str, arguments)])


def write_inputs(directory):
    """Texts and images that the runs read."""
    (directory / "data.txt").write_bytes(Path(launcher.__file__).read_bytes())
    for i, name in enumerate(("prose", "code")):
        (directory / f"{name}.txt").write_text(" ".join(str(7919 * n % 300 + 1000 * i) for n in range(3000)))
    write_images(directory / "images", size=8)
    write_labelled(directory / "labelled")
    (directory / "facts.txt").write_text("\n\n".join(f"The number {n} is {n % 3}." for n in range(7)))
    (directory / "pairs.tsv").write_text("".join(f"mot {n}\tword {n}\n" for n in range(12)))
    (directory / "questions.jsonl").write_text('{"question": "What is number 1?", "answer": "1"}\n')
    (directory / "labels.csv").write_text("text,label\n" + "".join(f"point {n},{'ab'[n % 2]}\n" for n in range(6)))
    llama = configuration("llama")
    write_directory(directory / "llama", llama, tensors_of(llama))
    return directory


KILLED = """
import importlib, os, signal, sys
module, path, count, name, *arguments = sys.argv[1:]
*owners, attribute = path.split(".")
owner, left = importlib.import_module(module), int(count)
for each in owners:
    owner = getattr(owner, each)
original = getattr(owner, attribute)

def counted(*positional, **named):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*positional, **named)

setattr(owner, attribute, counted)
sys.exit(importlib.import_module(f"experiments.{name}").main([name, *arguments]))
"""


def kill(name, arguments, place, count, stdin=None):
    """Runs a launcher in a process that gets SIGKILL when it does something for the time ``count``; its exit code."""
    devices = f"--xla_force_host_platform_device_count={jax.device_count()}"  # a command would take every core
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {devices}"}
    command = [sys.executable, "-c", KILLED, *place.split(), str(count), name, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=600, stdin=stdin)
    return done.returncode


SPEEDS = re.compile(r"second|gflops|tokens_per|ratio|compile s")


def without_speeds(content):
    """Figures that are the same in every run."""
    if isinstance(content, dict):
        return {key: without_speeds(value) for key, value in content.items() if not SPEEDS.search(key)}
    return [without_speeds(item) for item in content] if isinstance(content, list) else content


def figures_of(workdir):
    """What a run has written, speeds aside: results.json, and metrics.jsonl by run where there are any."""
    metrics = sorted(workdir.rglob("metrics.jsonl"))
    rows = [json.loads(line) for file in metrics for line in file.read_text().splitlines()]
    rows.sort(key=lambda row: row.get("model", ""))  # a run that starts again comes last
    return without_speeds(results_of(workdir)), without_speeds(rows)


def files(directory):
    """Every file's path and content."""
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
