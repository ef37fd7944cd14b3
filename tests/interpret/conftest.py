import pytest
import torch

from tests.evaluation.small_world import World, build_world


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    torch.set_num_threads(1)
    return build_world(tmp_path_factory.mktemp("world"))
