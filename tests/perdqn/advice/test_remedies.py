"""What is to be tried against a bottleneck are settings there are."""

from __future__ import annotations

import re

import yaml
from holdfast.timing.bottlenecks import LABELS, KnowsRemedies

from perdqn.__main__ import main
from perdqn.advice.remedies import REMEDIES
from perdqn.module import PERDQN


def test_bottlenecks_that_are_named_exist() -> None:
    assert set(REMEDIES) <= set(LABELS)
    assert isinstance(PERDQN(), KnowsRemedies)


def test_settings_that_are_named_exist(capsys) -> None:  # type: ignore[no-untyped-def]
    assert main(["fit", "--config", "cartpole", "--print_config"]) == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    named = re.findall(r"\b(?:model|trainer|checkpoint|scaler)(?:\.[a-z_]+)+", " ".join(REMEDIES.values()))
    assert len(named) > 8
    for name in named:
        value = settings
        for key in name.split("."):
            assert key in value, name
            value = value[key]
