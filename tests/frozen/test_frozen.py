"""The code computes what it computed before the rebuild; see `tests.frozen` for what is compared, and how closely."""

import pytest

from tests.frozen.comparison import KINDS, check, golden_is_there
from tests.frozen.world import World

CASES = [(kind, name) for kind, cases in KINDS.items() for name in cases.names]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("frozen"))


@pytest.mark.parametrize(("kind", "name"), CASES, ids=[f"{kind}-{name}" for kind, name in CASES])
def test_frozen(world: World, kind: str, name: str) -> None:
    if kind == "golden" and not golden_is_there():
        pytest.skip("the released code's golden files are not here; set COCOMIX_GOLDEN to their folder")
    verdict = check(world, kind, name)
    assert verdict.ok, verdict.found
