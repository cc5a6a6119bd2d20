"""Settings of comparisons: the best is chosen, and what was tried before a crash is not tried again."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.continual_methods.runs import choose_settings

SCORES = {"one": [1.0], "three": [0.5, 2.0, 2.0], "two": [-1.0, -3.0]}


class Killed(Exception):
    pass


def choose(workdir: Path, results: dict[str, Any], dies_at: tuple[str, int] | None = None) -> list[tuple[str, int]]:
    """Chooses settings, which are places in SCORES; returns those that were tried, and dies at one of them."""
    tried: list[tuple[str, int]] = []

    def outcome_of(name: str, setting: int) -> float:
        if (name, setting) == dies_at:
            raise Killed
        tried.append((name, setting))
        return SCORES[name][setting]

    choose_settings(list(SCORES), lambda name: range(len(SCORES[name])), outcome_of, float, workdir, results)
    return tried


def saved(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "results.json").read_text())


def test_the_first_of_the_best_settings_is_chosen_and_one_alone_is_not_tried(tmp_path):
    tried = choose(tmp_path, {"settings": {}})
    assert tried == [("three", 0), ("three", 1), ("three", 2), ("two", 0), ("two", 1)]
    settings = saved(tmp_path)["settings"]
    assert {name: found["setting"] for name, found in settings.items()} == {"one": 0, "three": 1, "two": 0}
    assert settings["three"] == {"validation": SCORES["three"], "setting": 1, "settings": [0, 1, 2]}


@pytest.mark.parametrize("place", [("three", 0), ("three", 2), ("two", 1)])
def test_a_stopped_choice_goes_on_where_it_was(tmp_path, place):
    whole = {"settings": {}}
    everything = choose(tmp_path, whole)
    (tmp_path / "results.json").write_text(json.dumps({"settings": {}}))
    with pytest.raises(Killed):
        choose(tmp_path, {"settings": {}}, dies_at=place)
    results = saved(tmp_path)
    assert choose(tmp_path, results) == everything[everything.index(place) :]
    assert saved(tmp_path) == json.loads(json.dumps(whole))
    assert choose(tmp_path, saved(tmp_path)) == []
