"""What weight decay must leave alone, each router says by name."""

import pytest

from tests.moe.router_cases import BATCHWISE, ROW_BY_ROW, STATIC, random

ALL = ROW_BY_ROW | BATCHWISE | STATIC


@pytest.mark.parametrize("name", ALL)
def test_every_learnt_temperature_is_named_and_nothing_else(name: str) -> None:
    for module in random(ALL[name]).modules():
        own = dict(module.named_parameters(recurse=False))
        temperatures = {name for name in own if "temperature" in name}

        assert set(getattr(module, "no_weight_decay", ())) == temperatures


def test_there_is_one_to_find() -> None:
    assert random(ROW_BY_ROW["cosine"]).no_weight_decay == ("log_temperature",)
