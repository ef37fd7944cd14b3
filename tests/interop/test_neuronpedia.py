"""The files that Neuronpedia's importer reads, against the columns of its database and the atlas they are made from."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cocomix.artifacts import MadeFromSomethingElse
from cocomix.evaluation import Run
from cocomix.interop import export_neuronpedia
from cocomix.interpret import AtlasSettings, ConceptAtlas, build_atlas
from cocomix.runtime.errors import CoCoMixError
from tests.command_line import Cli
from tests.workshop import BLOCK, CONCEPTS, Workshop

# apps/webapp/prisma/schema.prisma of hijohnnylin/neuronpedia at ebb8426: (type, whether a row must give it).
TEXTS, NUMBERS = list[str], list[float]
SCHEMA: dict[str, dict[str, tuple[Any, bool]]] = {
    "features": {
        **dict.fromkeys(("modelId", "layer", "index"), (str, True)),
        **dict.fromkeys(("sourceSetName", "creatorId"), (str, False)),
        **dict.fromkeys(("maxActApprox", "frac_nonzero"), (float, False)),
        **dict.fromkeys(("pos_str", "neg_str"), (TEXTS, False)),
        **dict.fromkeys(("pos_values", "neg_values", "topkCosSimIndices", "topkCosSimValues"), (NUMBERS, False)),
        **dict.fromkeys(("freq_hist_data_bar_heights", "freq_hist_data_bar_values"), (NUMBERS, False)),
    },
    "activations": {
        **dict.fromkeys(("id", "modelId", "layer", "index", "creatorId"), (str, True)),
        **dict.fromkeys(("dataIndex", "dataSource"), (str, False)),
        **dict.fromkeys(("maxValue", "minValue"), (float, True)),
        "maxValueTokenIndex": (int, True),
        "qualifyingTokenIndex": (int, False),
        **{"tokens": (TEXTS, True), "values": (NUMBERS, True)},
    },
    "explanations": {
        **dict.fromkeys(("id", "modelId", "layer", "index", "description", "authorId"), (str, True)),
        "notes": (str, False),
    },
    "model": {
        **dict.fromkeys(("id", "creatorId", "owner"), (str, True)),
        **dict.fromkeys(("displayName", "displayNameShort", "visibility"), (str, False)),
        **{"layers": (int, True), "neuronsPerLayer": (int, True), "inferenceEnabled": (bool, False)},
    },
    "release": {
        **dict.fromkeys(("name", "description", "creatorName", "creatorId"), (str, True)),
        **{"urls": (TEXTS, False), "visibility": (str, False)},
    },
    "sourceset": {
        **dict.fromkeys(("modelId", "name", "description", "creatorName", "creatorId"), (str, True)),
        **{"releaseName": (str, False), "visibility": (str, False), "allowInferenceSearch": (bool, False)},
    },
    "source": {
        **dict.fromkeys(("id", "modelId", "setName", "creatorId"), (str, True)),
        **{"visibility": (str, False), "hasDashboards": (bool, False), "inferenceEnabled": (bool, False)},
        **{"num_prompts": (int, False), "num_tokens_in_prompt": (int, False)},
    },
}
SETTINGS = AtlasSettings(tokens=60 * BLOCK, contexts=6, window=5, bins=8, effects=4, effect_tokens=64, effect_top=4)


def rows(folder: Path, table: str) -> list[dict[str, Any]]:
    """As the importer reads them: files in order; the columns are those of a file's first line."""
    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob(f"{table}/batch-*.jsonl.gz")) or [folder / f"{table}.jsonl"]:
        content = path.read_bytes()
        lines = (gzip.decompress(content) if path.suffix == ".gz" else content).decode().splitlines()
        parsed = [json.loads(line) for line in lines]
        assert all(row.keys() == parsed[0].keys() for row in parsed)
        found += parsed
    return found


def fits(value: Any, kind: Any) -> bool:
    if kind in (TEXTS, NUMBERS):
        return isinstance(value, list) and all(fits(one, str if kind is TEXTS else float) for one in value)
    return isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))


@pytest.fixture(scope="module")
def exported(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ConceptAtlas]:
    place = tmp_path_factory.mktemp("neuronpedia")
    build_atlas(Run.open(workshop.cocomix_run), place / "atlas", SETTINGS, device=torch.device("cpu"))
    folder = export_neuronpedia(workshop.cocomix_run, place / "out", atlas=place / "atlas")
    assert folder == place / "out" / "v1" / "mixed" / "1-cocomix"
    return folder, ConceptAtlas.open(place / "atlas")


def test_every_row_is_one_of_its_table(exported: tuple[Path, ConceptAtlas]) -> None:
    for table, columns in SCHEMA.items():
        for row in rows(exported[0], table):
            assert row.keys() <= columns.keys(), table
            assert {name for name, (_, needed) in columns.items() if needed} <= row.keys(), table
            assert all(fits(value, columns[name][0]) for name, value in row.items()), row
    (model,), (source,) = rows(exported[0], "model"), rows(exported[0], "source")
    (release,), (sources,) = rows(exported[0], "release"), rows(exported[0], "sourceset")
    assert (source["modelId"], source["setName"]) == (sources["modelId"], sources["name"])
    assert (sources["modelId"], sources["releaseName"]) == (model["id"], release["name"])
    for table in ("features", "activations", "explanations"):
        assert {(row["modelId"], row["layer"]) for row in rows(exported[0], table)} == {(model["id"], source["id"])}


def test_the_atlas_can_be_read_back(exported: tuple[Path, ConceptAtlas], workshop: Workshop) -> None:
    folder, atlas = exported
    features, names = rows(folder, "features"), rows(folder, "explanations")
    assert [row["index"] for row in features] == [str(concept) for concept in range(CONCEPTS)]
    for row in features:
        card = atlas.card(int(row["index"]))
        assert row["frac_nonzero"] == card.density
        assert row["freq_hist_data_bar_heights"] == list(card.histogram.counts)
        assert row["pos_str"] == [token for token, _ in card.raised or ()]
        assert len(row["topkCosSimIndices"]) == len(row["topkCosSimValues"])
    assert sum(bool(row["pos_str"]) for row in features) == atlas.manifest.effects
    assert {int(row["index"]): row["description"] for row in names} == {
        concept: atlas.name(concept) for concept in range(CONCEPTS) if atlas.card(concept).named_from != "nothing"
    }

    activations = rows(folder, "activations")
    assert len({row["id"] for row in activations + names}) == len(activations + names)
    assert len(activations) == sum(len(atlas.card(concept).predicted_contexts) for concept in range(CONCEPTS))
    tokenizer = Run.open(workshop.cocomix_run).tokenizer()
    by_concept = [iter(atlas.card(concept).predicted_contexts) for concept in range(CONCEPTS)]
    for row in activations:
        context, at = next(by_concept[int(row["index"])]), row["qualifyingTokenIndex"]
        assert len(row["tokens"]) == len(row["values"]) <= 2 * SETTINGS.window + 1
        assert row["values"][at] == pytest.approx(context.strength, abs=1e-6)
        assert row["maxValue"] == row["values"][row["maxValueTokenIndex"]] != 0
        assert row["minValue"] == min(row["values"])
        assert context.token in ("\n", "�", row["tokens"][at]) or "�" in row["tokens"][at]
    text = "".join(activations[0]["tokens"])
    assert "".join(tokenizer.batch_decode([[one] for one in tokenizer(text)["input_ids"]])).strip() == text.strip()
    assert max(max(row["values"]) for row in activations) == np.float32(max(row["maxActApprox"] for row in features))


def test_what_does_not_belong_together_is_refused(
    exported: tuple[Path, ConceptAtlas], workshop: Workshop, cli: Cli, tmp_path: Path
) -> None:
    atlas = exported[1].path
    with pytest.raises(CoCoMixError, match="already exists"):
        export_neuronpedia(workshop.cocomix_run, exported[0].parents[2], atlas=atlas)
    with pytest.raises(MadeFromSomethingElse, match="other"):
        export_neuronpedia(workshop.ntp_run, tmp_path / "no", atlas=atlas)
    cli.refuses("export", workshop.cocomix_run, "-o", tmp_path / "no", "--to", "neuronpedia", says="cocomix atlas")
    cli.refuses("export", workshop.cocomix_run, "-o", tmp_path / "no", "--atlas", atlas, says="--atlas")
    arguments = ("export", workshop.cocomix_run, "-o", tmp_path / "no", "--to", "neuronpedia")
    cli.refuses(*arguments, "--license", "mit", says="--license")
    assert not (tmp_path / "no").exists()
    done = cli("export", workshop.cocomix_run, "-o", tmp_path / "yes", *arguments[4:], "--atlas", atlas, "--json")
    folder = str(tmp_path / "yes" / "v1" / "mixed" / "1-cocomix")
    assert json.loads(done.out)["folder"] == folder
    assert folder in done.err
