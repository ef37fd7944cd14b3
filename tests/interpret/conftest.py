from pathlib import Path

import pytest
import torch

from cocomix.evaluation import Run
from cocomix.interpret import AtlasSettings, ConceptAtlas, build_atlas
from tests.evaluation.small_world import World, build_world
from tests.workshop import BLOCK, Workshop

ATLAS = AtlasSettings(
    tokens=150 * BLOCK, contexts=6, window=6, bins=8, effects=5, effect_tokens=4 * BLOCK, effect_top=4
)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    torch.set_num_threads(1)
    return build_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def atlas_folder(workshop: Workshop, tmp_path_factory) -> Path:
    """The atlas of the workshop's CoCoMix run."""
    output = tmp_path_factory.mktemp("atlas") / "atlas"
    build_atlas(Run.open(workshop.cocomix_run), output, ATLAS, device=torch.device("cpu"))
    return output


@pytest.fixture
def atlas(atlas_folder: Path) -> ConceptAtlas:
    return ConceptAtlas.open(atlas_folder)
