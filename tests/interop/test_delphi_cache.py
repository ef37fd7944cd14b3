"""The cache that Delphi reads: by its own loader where it is installed, and by its layout."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from cocomix.evaluation import Run
from cocomix.interop import delphi_cache, export_delphi
from cocomix.runtime.errors import CoCoMixError
from tests.command_line import Cli
from tests.workshop import BLOCK, CONCEPTS, Workshop

BLOCKS = 12


@pytest.fixture(scope="module")
def exported(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("delphi") / "latents"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delphi_cache, "_CONCEPTS_A_FILE", 20)
        return export_delphi(workshop.cocomix_run, output, tokens=BLOCKS * BLOCK)


def test_what_the_student_predicts(exported: Path, workshop: Workshop) -> None:
    model = Run.open(workshop.cocomix_run).model()
    names = [f"{start}_{min(start + 20, CONCEPTS) - 1}.safetensors" for start in (0, 20, 40)]
    assert sorted(path.name for path in (exported / "predictor").iterdir()) == sorted([*names, "config.json"])
    found = np.zeros((BLOCKS, BLOCK, CONCEPTS), dtype=np.float32)
    for name in names:
        arrays = load_file(exported / "predictor" / name)
        block, position, concept = arrays["locations"].astype(np.int64).T
        found[block, position, concept + int(name.split("_")[0])] = arrays["activations"]
    said = model(torch.from_numpy(arrays["tokens"]))
    expected = torch.zeros(BLOCKS, BLOCK, CONCEPTS).scatter(-1, said.concept_ids, said.concept_values)
    assert np.allclose(found, expected.detach().numpy(), atol=1e-5)
    config = json.loads((exported / "predictor" / "config.json").read_text())
    assert (config["cache_ctx_len"], config["n_tokens"], config["n_splits"]) == (BLOCK, BLOCKS * BLOCK, 3)


def test_delphi_reads_it(exported: Path) -> None:
    pytest.importorskip("delphi", reason="Delphi brings vLLM; pip install --no-deps eai-delphi and what it imports")
    from delphi.config import CacheConfig, ConstructorConfig, SamplerConfig
    from delphi.latents import LatentDataset

    config = json.loads((exported / "predictor" / "config.json").read_text())
    config.pop("model_name")
    CacheConfig(**config)
    constructor = ConstructorConfig(example_ctx_len=8, min_examples=2, n_non_activating=2)
    sampler = SamplerConfig(n_examples_train=2, n_examples_test=2, n_quantiles=2)
    dataset = LatentDataset(exported, sampler, constructor)
    assert dataset.tokens.shape == (BLOCKS, BLOCK)
    records = list(dataset)
    assert records
    for record in records:
        assert 0 <= record.latent.latent_index < CONCEPTS
        assert len(record.train) == 2
        assert record.examples[0].max_activation > 0


def test_the_verb(workshop: Workshop, cli: Cli, exported: Path, tmp_path: Path) -> None:
    arguments = ("export", workshop.cocomix_run, "--to", "delphi", "-o")
    done = cli(*arguments, tmp_path / "out", "--tokens", 2 * BLOCK, "--json")
    assert json.loads(done.out)["folder"] == str(tmp_path / "out")
    assert str(tmp_path / "out") in done.err
    assert load_file(tmp_path / "out" / "predictor" / f"0_{CONCEPTS - 1}.safetensors")["tokens"].shape == (2, BLOCK)
    cli.refuses(*arguments, exported, says="already exists")
    cli.refuses(*arguments, tmp_path / "no", "--tokens", 0, says="tokens=0")
    cli.refuses(*arguments, tmp_path / "no", "--atlas", tmp_path, says="--atlas")
    cli.refuses("export", workshop.ntp_run, "--to", "delphi", "-o", tmp_path / "no", says="concepts")
    with pytest.raises(CoCoMixError, match="concepts"):
        export_delphi(workshop.ntp_run, tmp_path / "no")
    assert not (tmp_path / "no").exists()
