"""Flags whose values are paths: ``~`` is expanded, and a URL such as gs://bucket/run is refused."""

from typing import Any

from absl import flags

from nl_jax.files import local_path

# Flags with the paths of a run's inputs. They may change when it resumes, since "data" holds digests of the contents.
INPUT_FLAGS = (
    *("data", "text_key", "skip_bad", "texts", "haystack", "tokenizer"),
    *("images", "start_from", "data_dir", "pretrained"),
)


class PathParser(flags.ArgumentParser):
    """Parses a path."""

    syntactic_help = "a path on this machine"

    def parse(self, argument: str) -> str:
        """Returns the path with ``~`` expanded; raises ``InputError``, a bad flag to absl, for URLs and invalid paths.

        Empty text is returned as it is; the code that needs the flag reports that it is missing.
        """
        return str(local_path(argument)) if argument else ""

    def flag_type(self) -> str:
        """The name of the type in absl's help."""
        return "path"


class PathListParser(flags.ListParser):
    """Parses paths separated by commas."""

    def parse(self, argument: str | list[str]) -> list[str]:
        """Parses each path as `PathParser` does."""
        return [str(local_path(path)) for path in super().parse(argument)]


def define_path(name: str, default: str | None, text: str, *, flag_values: flags.FlagValues) -> Any:
    """Adds a flag whose value is a path; the arguments are those of absl's ``DEFINE_string``."""
    return flags.DEFINE(PathParser(), name, default, text, flag_values)


def define_workdir(values: flags.FlagValues) -> None:
    """Adds the flag --workdir of a launcher that makes runs."""
    define_path("workdir", None, "Directory of the run, created if it does not exist. Required.", flag_values=values)


def define_paths(name: str, default: list[str] | None, text: str, *, flag_values: flags.FlagValues) -> Any:
    """Adds a flag whose value is a list of paths; the arguments are those of absl's ``DEFINE_list``."""
    return flags.DEFINE(PathListParser(), name, default, text, flag_values, flags.CsvListSerializer(","))
