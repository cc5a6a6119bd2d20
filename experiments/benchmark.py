"""Measures speed, memory and gradients of training. The first argument is the subject:

    python -m experiments.benchmark mixers --workdir=runs/mixers
    python -m experiments.benchmark scaling --workdir=runs/scaling --models=hope
    python -m experiments.benchmark compile --workdir=runs/compile
    python -m experiments.benchmark remat --workdir=runs/remat --num_layers=6 --models=hope,transformer
    python -m experiments.benchmark gradients --workdir=runs/gradients --models=hope,titans
    python -m experiments.benchmark gpu --workdir=runs/gpu --matrix_size=8192
    python -m experiments.benchmark kernel --workdir=runs/kernel
    python -m experiments.benchmark pretrained --workdir=runs/pretrained --pretrained=default

mixers     a training step (forward, backward, AdamW) and the forward pass alone: tokens/s, FLOPs, memory
scaling    time and memory of a training step, and size of the model's state, against sequence length, with fitted
           exponents
compile    time to trace and compile a training step, and until the first step is done, by number of layers
remat      memory and operations of a training step by what its backward pass recomputes; compiled, not run
gradients  norm of the gradient of the loss at the memories' initial weights against sequence length, on text of the
           default corpus, before training
gpu        a training step of the models of --preset in bfloat16 beside PyTorch's Transformer with fused attention, as
           it is and by torch.compile; then other chunk sizes, and attention in blocks. It ends after --max_minutes.
kernel     a training step of the models of --preset in bfloat16 by XLA's scan over chunks and by the kernel that keeps
           the state on the chip, side by side; on a CPU by its interpreter, which says nothing about speed. It ends
           after --max_minutes.
pretrained tokens/s at which a pre-trained model reads a prompt and writes an answer, in float32, by itself and by
           transformers where that and torch are installed

The speeds of mixers are also given as ratios to two Transformers: that of this project, whose attention works in
blocks, and jax_attention, the same program with `jax.nn.dot_product_attention`, which holds all scores at once.

On gpu, utilisation is that of the model's own operations (three times those of its forward pass, without what is
computed again) as a share of the peak of bfloat16 matrix products: the maker's, and that of two random matrices. A
program is compiled with the first of --remat's policies none, dots and block whose step fits into memory.

All models have the same embedding and, in each layer, one feed-forward block of the same size; those of a --preset have
the same number of parameters instead, and competitors the sizes of its Transformer. They train in float32, or in
--dtype, on random tokens on one device. Models are measured in turn, round by round, so that ratios come from the same
minutes; gpu measures one after the other. Times are medians over the rounds. FLOPs are those of the matrix products in
the program, including recomputation. The peak is the speed of the fastest product of two large float32 matrices in the
same rounds. Memory is the memory that XLA allocates for a step: arguments, outputs and temporaries; of PyTorch it is
what it held at most.

The workdir gets config.json, results.json and a plot. The same command resumes a stopped run, and prints the tables
again when everything is measured. To measure again, use another workdir.
"""

import sys
from typing import Any

from absl import flags

from experiments.benchmarking.competitors import COMPETITORS
from experiments.benchmarking.compiling import end_process
from experiments.benchmarking.run import DEFAULTS, LENGTHS, Run
from experiments.benchmarking.subjects import SUBJECTS
from experiments.common import launcher
from experiments.common.compute_flags import define_dtype_flag, define_kernel_flag
from experiments.common.path_flags import define_path, define_workdir
from nl_jax.models import MODEL_NAMES, PRESETS
from nl_jax.pretrained.loading import DEFAULT


def define_flags() -> flags.FlagValues:
    """Defines the flags, without parsing them."""
    values = flags.FlagValues()

    def define(kind: Any, name: str, default: Any, text: str) -> None:
        kind(name, default, text, flag_values=values)

    gpu = ", ".join(DEFAULTS["gpu"]["models"])
    lengths = "; ".join(f"{subject} {','.join(pairs)}" for subject, pairs in LENGTHS.items())
    define_workdir(values)
    define(flags.DEFINE_list, "models", None, f"Models to measure. Default: {', '.join(MODEL_NAMES)}; for gpu {gpu}.")
    others = "Others' programs, for mixers; gpu has torch_transformer alone."
    define(flags.DEFINE_list, "competitors", list(COMPETITORS), others)
    define(flags.DEFINE_string, "preset", None, f"Size of the models: {', '.join(PRESETS)}. Default: for gpu base.")
    define(flags.DEFINE_float, "max_minutes", 8.0, "Minutes after which gpu and kernel start no other measurement.")
    define(flags.DEFINE_list, "lengths", None, f"Sequence lengths and batch sizes. Default: {lengths}.")
    define(flags.DEFINE_integer, "width", 256, "Width without --preset; a feed-forward block has twice as many units.")
    define(flags.DEFINE_integer, "num_heads", 4, "Heads of the mixers, without --preset.")
    define(flags.DEFINE_integer, "num_layers", 2, "Layers, without --preset; compile has --depths.")
    define(flags.DEFINE_list, "depths", ["2", "12"], "Numbers of layers, for compile.")
    define_dtype_flag(values)
    define_kernel_flag(values)
    define(flags.DEFINE_integer, "chunk_size", 64, "Tokens in a chunk of the memories.")
    define(flags.DEFINE_integer, "repeats", 5, "Number of rounds after one to warm up; compile measures once.")
    define(flags.DEFINE_float, "max_seconds", 60.0, "A step whose warm-up takes longer is timed by its warm-up alone.")
    define(
        flags.DEFINE_float,
        "memory_gib",
        None,
        "A step that needs more is not run. Default: 3/4 of memory; for gpu 95 % of JAX's.",
    )
    text = "Hugging Face directory or GGUF file, for pretrained, or 'default'."
    define(define_path, "pretrained", DEFAULT, text)
    define(flags.DEFINE_integer, "matrix_size", 4096, "Rows of the square matrices whose product gives the peak.")
    return values


def main(argv: list[str] | None = None) -> int:
    code = launcher.run_subject(benchmark, SUBJECTS, define_flags(), __doc__, argv)
    if argv is None:  # a command, which is over: programs that were not compiled in time would keep its process
        end_process(code)
    return code


def benchmark(subject: str, values: flags.FlagValues) -> None:
    """Measures all figures that are missing, and prints the tables."""
    run = Run(subject, values)
    SUBJECTS[subject](run)
    run.record.report()


if __name__ == "__main__":
    sys.exit(main())
