"""What is exported, ``transformers`` reads with equal logits; only where it is installed, with torch."""

import jax
import numpy as np
import pytest
from pretrained_cases import CASES, configuration, tensors_of, write_directory

from nl_jax.pretrained import export_pretrained, load_pretrained

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
IDS = np.random.default_rng(1).integers(0, 300, 13)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_equal(tmp_path, case):
    config = configuration(case)
    read = load_pretrained(write_directory(tmp_path / "given", config, tensors_of(config)))
    export_pretrained(read, tmp_path / "exported")
    ours = jax.jit(lambda model, ids: model(ids)[0])(read.model, IDS[None])[0]
    for directory in (tmp_path / "given", tmp_path / "exported"):
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        with torch.no_grad():
            theirs = model(torch.tensor(IDS[None])).logits[0].numpy()
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
