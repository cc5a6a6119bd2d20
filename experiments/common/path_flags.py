"""Flags that are paths, read alike by all launchers: ``~`` is expanded, a URL such as gs://bucket/run is refused."""

from typing import Any

from absl import flags

from nl_jax.files import local_path


class PathParser(flags.ArgumentParser):
    """Reads one path."""

    syntactic_help = "a path on this machine"

    def parse(self, argument: str) -> str:
        """The path with ``~`` expanded; ``InputError``, which absl takes for a bad flag, for what is no local path.

        Empty text stays as it is: whoever needs the flag says that it is missing.
        """
        return str(local_path(argument)) if argument else ""

    def flag_type(self) -> str:
        """Names the type in absl's help."""
        return "path"


class PathListParser(flags.ListParser):
    """Reads paths with commas between them."""

    def parse(self, argument: str | list[str]) -> list[str]:
        """As for one path, each."""
        return [str(local_path(path)) for path in super().parse(argument)]


def define_path(name: str, default: str | None, text: str, *, flag_values: flags.FlagValues) -> Any:
    """Adds a flag that is one path; called as absl's ``DEFINE_string`` is."""
    return flags.DEFINE(PathParser(), name, default, text, flag_values)


def define_paths(name: str, default: list[str] | None, text: str, *, flag_values: flags.FlagValues) -> Any:
    """Adds a flag that is a list of paths; called as absl's ``DEFINE_list`` is."""
    return flags.DEFINE(PathListParser(), name, default, text, flag_values, flags.CsvListSerializer(","))
