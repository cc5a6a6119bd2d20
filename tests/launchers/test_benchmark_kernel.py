"""The subject kernel of the benchmark at a size where it takes seconds; a CPU interprets the kernel."""

import jax
import pytest
from launcher_cases import results_of

from experiments import benchmark
from experiments.benchmarking.kernel import table

TITLES = {"cpu": ("xla", "interpret")}.get(jax.default_backend(), ("xla", "pallas"))


@pytest.mark.slow
def test_both_programs_are_measured_beside_each_other(tmp_path, capsys):
    flags = ["--preset=tiny", "--models=delta_net", "--lengths=16:1", "--chunk_size=8", "--repeats=1"]
    assert benchmark.main(["benchmark", "kernel", f"--workdir={tmp_path / 'run'}", *flags]) == 0
    figures = results_of(tmp_path / "run")["figures"]
    assert list(figures) == [f"delta_net {title} 16:1" for title in TITLES]
    assert all(row["tokens_per_second"] > 0 for row in figures.values())
    assert f"16 tokens, batch 1; the kernel is {TITLES[1]}" in capsys.readouterr().out


def test_the_table_has_models_of_which_both_were_measured():
    row = {"parameters": 1000, "step_seconds": 1.0, "tokens_per_second": 10.0, "peak_memory_bytes": 2**30}
    row |= {"compile_seconds": 3.0}
    found = {
        "delta_net": [row, row | {"tokens_per_second": 25.0}],
        "gla": [row, None],
        "comba": [{"problem": "x"}, row],
    }
    *_, last = table(found)
    assert last == ("delta_net", "1,000", "10", "25", "2.50", "1.00", "1.00", "3", "3")
    assert len(table(found)) == 3
