"""The figures of a run of measurements, each written to ``results.json`` as soon as it is known."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax

from experiments.common import launcher
from experiments.common.launcher import RESULTS


class Record:
    """The figures of a run, written to ``results.json`` as soon as they are known, so that the run can resume.

    Args:
        workdir: the workdir, which is created when the first figures are written.
        config: as for `launcher.claim_workdir`.
        metadata: further initial entries of ``results.json``.
        written: as for `launcher.claim_workdir`.

    Raises:
        InputError: if the workdir holds another run.
    """

    def __init__(
        self,
        workdir: Path,
        config: Mapping[str, Any],
        metadata: Mapping[str, Any] = MappingProxyType({}),
        written: Iterable[str] = (),
    ):
        self.workdir = workdir
        self._written = tuple(written)
        launcher.check_workdir(workdir, config, (RESULTS, *self._written))
        self._claimed = False
        self._config = config
        device = f"1 x {jax.devices()[0].device_kind}, {os.cpu_count()} cores"
        self._results = launcher.results_of(workdir, config, {"figures": {}, "device": device, **metadata})

    def get(self, name: str) -> Any:
        """Returns the figures with this name, or None if there are none yet."""
        return self._results["figures"].get(name)

    def keep(self, name: str, figures: Any) -> None:
        """Writes figures, in place of earlier ones with the same name."""
        if not self._claimed:
            launcher.claim_workdir(self.workdir, self._config, {}, self._written)
            self._claimed = True
        self._results["figures"][name] = figures
        launcher.write_json(self.workdir / RESULTS, self._results)

    def figures(self, name: str, measure: Callable[[], Any]) -> Any:
        """Returns the figures with this name, measuring and writing them first if there are none."""
        if self.get(name) is None:
            self.keep(name, measure())
        return self.get(name)

    def report(self) -> None:
        """Prints where the results are."""
        files = [RESULTS, *sorted(path.name for path in self.workdir.glob("*.png"))]
        print(f"Everything is in {self.workdir}: {', '.join(files)}")
