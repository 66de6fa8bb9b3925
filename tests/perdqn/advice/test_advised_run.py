"""Runs of PERDQN that holdfast's TuningAdvisor looks at."""

import json

import pytest
from holdfast import TuningAdvisor
from holdfast.advising.general import general_rules
from lightning.pytorch.loggers import CSVLogger
from small_runs import assert_same, fingerprint, small, trainer

from perdqn.module import PERDQN


def advised(tmp_path, advisor, **overrides):
    module = small(**overrides)
    logger = CSVLogger(tmp_path, name="", version="run")
    trainer(advisor, logger=logger, log_every_n_steps=10).fit(module)
    lines = (tmp_path / "run" / "monitor" / "advice.jsonl").read_text().splitlines()
    return module, [json.loads(line) for line in lines]


def test_a_run_is_advised_by_the_rules_of_values(tmp_path):
    advisor = TuningAdvisor(every_n_steps=2)
    _, told = advised(tmp_path, advisor, learner={"learning_rate": 0.3})
    rules = {line["advice"]["rule"]: line["advice"] for line in told}
    assert rules["learning_rate_high"]["changes"][0]["setting"] == "model.learner.learning_rate"
    assert rules["learning_rate_high"]["changes"][0]["value"] == 0.3
    assert not {*PERDQN.advice_ignores} & rules.keys()


def test_advice_changes_nothing_in_a_run(tmp_path):
    module, _ = advised(tmp_path, TuningAdvisor(every_n_steps=2), learner={"learning_rate": 0.3})
    alone = small(learner={"learning_rate": 0.3})
    trainer(log_every_n_steps=10).fit(alone)  # a log counts as a look at the largest priority
    assert_same(fingerprint(alone), fingerprint(module))


def test_rules_that_are_ignored_exist():
    assert {*PERDQN.advice_ignores} <= {rule.name for rule in general_rules()}


def test_advice_can_be_followed_while_the_run_goes_on(tmp_path):
    advisor = TuningAdvisor("adapt", every_n_steps=2, monitor="rollout/return_mean", monitor_mode="max")
    module, told = advised(tmp_path, advisor, learner={"learning_rate": 0.3})
    (applied, *_) = [line["advice"] for line in told if line["event"] == "applied"]
    assert applied["rule"] == "learning_rate_high"
    now = module.trainer.optimizers[0].param_groups[0]["lr"]
    assert now == pytest.approx(applied["changes"][0]["proposed"])
    assert now < 0.3
