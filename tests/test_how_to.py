"""The how-to pages: each has one example of at most 30 lines, which runs and does what it says."""

import ast
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pretrained_cases import SIZES, configuration, reference, tensors_of
from safetensors.numpy import save_file

from nl_jax.modules import MIXERS
from nl_jax.training import OPTIMIZERS

PAGES = Path(__file__).parents[1] / "docs" / "how_to"
WORKED = ("add_a_level", "add_a_mixer", "add_a_pretrained_architecture", "add_a_task", "add_an_optimizer")
MOVES = ("from_nested_learning", "from_optax", "from_titans_pytorch")


def code_of(page):
    (code,) = re.findall(r"```python\n(.*?)```", (PAGES / f"{page}.md").read_text(encoding="utf-8"), re.DOTALL)
    return code


def run(page):
    names = {"__name__": "example"}
    exec(compile(code_of(page), f"{page}.md", "exec"), names)
    return names


@pytest.fixture(autouse=True)
def tables():
    """Restores the tables that examples add to."""
    before = [(table, dict(table)) for table in (MIXERS, OPTIMIZERS)]
    yield
    for table, content in before:
        table.clear()
        table.update(content)


def test_every_page_is_tested():
    assert sorted(path.stem for path in PAGES.glob("*.md")) == sorted((*WORKED, *MOVES))


@pytest.mark.parametrize("page", [*WORKED, *MOVES])
def test_examples_are_short(page):
    lines = [line for line in code_of(page).splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 140


def test_a_mixer_that_is_added_is_causal_and_any_split_is_the_same():
    names = run("add_a_mixer")
    model, tokens = names["model"], jnp.arange(12)[None]
    first, state = model(tokens[:, :5])
    second, state = model(tokens[:, 5:], state)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), names["logits"], atol=1e-5)
    np.testing.assert_allclose(state, names["state"], atol=1e-5)
    other = model(tokens.at[0, 7].set(30))[0]
    np.testing.assert_allclose(other[:, :7], names["logits"][:, :7], atol=1e-6)
    assert np.abs(other - names["logits"])[:, 8:].max() > 1e-3  # the memory has it


def test_an_optimizer_that_is_added_learns_and_skips_what_is_not_finite():
    names = run("add_an_optimizer")
    transformation, params = names["sign"](0.05), jnp.full(3, 2.0)
    state = transformation.init(params)
    for _ in range(100):
        updates, state = transformation.update(2 * params, state, params)
        params = optax.apply_updates(params, updates)
    assert np.abs(params).max() < 0.2
    updates, state = transformation.update(params * jnp.nan, state, params)
    assert not np.any(updates)
    matrices = names["levels"].of_period(1)
    weights = {"mlp": {"kernel": jnp.ones((4, 4))}}
    assert np.all(np.isfinite(matrices.update(weights, matrices.init(weights), weights)[0]["mlp"]["kernel"]))


def test_a_task_that_is_added_is_a_launcher(tmp_path, capsys):
    names = run("add_a_task")
    batch = names["reversal_batch"](0, 1, batch_size=3, length=4)
    np.testing.assert_array_equal(batch["inputs"][:, :4], batch["targets"][:, 4:][:, ::-1])
    again = names["reversal_batch"](0, 1, batch_size=3, length=4)
    assert all(np.array_equal(batch[name], again[name]) for name in batch)
    assert names["main"](["evals.reversal", "--help"]) == 0
    assert "--learning_rates" in capsys.readouterr().out


@pytest.mark.slow
def test_a_task_that_is_added_trains_and_reports(tmp_path):
    small = "--width=8 --num_layers=1 --chunk_size=4 --batch_size=4 --steps=3 --eval_every=3 --subtasks=4"
    assert run("add_a_task")["main"](["evals.reversal", f"--workdir={tmp_path}", *small.split()]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["subtasks"]["4"]) == {"hope", "transformer"}


def test_a_level_that_is_added_learns():
    names = run("add_a_level")
    losses = np.asarray(names["losses"])
    assert losses[-64:].mean() < 0.05 * losses[:64].mean()
    assert 45 < names["state"].levels["scale"]["mean"] < 55
    gradient = jax.grad(lambda scale: names["schedule"].run(names["state"], (scale * names["x"], names["x"]))[1].sum())
    assert np.isfinite(gradient(1.0))


def test_an_architecture_that_is_added_has_the_logits_of_the_same_model(tmp_path, monkeypatch):
    config = configuration("llama") | {"head_dim": SIZES["hidden_size"] // SIZES["num_attention_heads"]}
    tensors = tensors_of(config)
    fused = {}
    for name, array in tensors.items():
        if not re.search(r"\.(q|k|v|gate|up)_proj\.", name):
            fused[name] = array
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        parts = {"self_attn.qkv": [f"self_attn.{part}" for part in "qkv"], "mlp.gate_up": ["mlp.gate", "mlp.up"]}
        for name, group in parts.items():
            rows = [tensors[f"{at}{part}_proj.weight"] for part in group]
            fused[f"{at}{name}_proj.weight"] = np.concatenate(rows)
    (tmp_path / "phi").mkdir()
    save_file(fused, tmp_path / "phi" / "model.safetensors")
    (tmp_path / "phi" / "config.json").write_text(json.dumps(config | {"model_type": "phi3", "sliding_window": 4096}))
    monkeypatch.chdir(tmp_path)
    model = run("add_a_pretrained_architecture")["model"]
    ids = np.arange(9)
    np.testing.assert_allclose(model(ids[None])[0][0], reference(config, tensors, ids), atol=1e-3)


def test_the_snippet_for_users_of_optax_learns():
    losses = run("from_optax")["losses"]
    assert losses[-1] < 0.1 * losses[0]


def test_the_snippet_for_users_of_titans_pytorch_gives_the_same_in_two_calls():
    names = run("from_titans_pytorch")
    whole = jnp.concatenate([names["first"], names["second"]], axis=1)
    np.testing.assert_allclose(whole, names["retrieved"], atol=1e-4)


def test_the_snippet_for_users_of_nested_learning_learns_while_it_reads():
    names = run("from_nested_learning")
    assert names["logits"].shape == (1, 32, 257)
    assert names["report"].updated["cms_0"] == 10
    assert names["report"].updated["cms_1"] == 2


@pytest.mark.parametrize("page", MOVES)
def test_names_on_the_side_of_this_package_exist(page):
    lines = (PAGES / f"{page}.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split("|")[2] for line in lines if line.startswith("|")]
    rooms = ("optim", "levels", "modules", "memory", "models", "streaming", "training", "models.losses")
    rooms += ("streaming.generation",)
    modules = [__import__(f"nl_jax.{room}", fromlist=["_"]) for room in rooms]
    called = {name for row in rows for name in re.findall(r"(?<![.\w\"])([a-z_0-9A-Z]+)\(", row)}
    assert len(called) > 5
    known = {"mem"}
    assert {name for name in called - known if not any(hasattr(module, name) for module in modules)} == set()


def test_examples_parse():
    for page in (*WORKED, *MOVES):
        ast.parse(code_of(page))
