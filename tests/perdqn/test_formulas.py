"""Formulas against numbers worked out by hand and slow oracles."""

import math

import numpy as np
import pytest
import torch

from perdqn import formulas


def test_a_unit_is_dormant_below_a_share_of_its_layers_mean():
    sizes = torch.tensor([0.0, 0.02, 0.03, 3.95])  # of mean 1
    assert formulas.dormant_fraction(sizes, 0.025) == 0.5
    assert formulas.dormant_fraction(sizes, 0.0) == 0.25
    assert formulas.dormant_fraction(torch.zeros(4), 0.025) == 1.0


@pytest.mark.parametrize(
    ("values", "rank"),
    [([1, 1, 1, 1], 4), ([100, 1, 0, 0], 1), ([98, 1, 1, 0], 2), ([97, 1, 1, 1], 3), ([0, 0, 0, 0], 0)],
)
def test_effective_rank_counts_singular_values_up_to_99_percent_of_their_sum(values, rank):
    features = torch.zeros(6, 4)
    features[:4] = torch.diag(torch.tensor(values, dtype=torch.float32))
    assert formulas.effective_rank(features) == rank
    assert formulas.effective_rank(features.T) == rank


@pytest.mark.parametrize("seed", range(5))
def test_effective_rank_is_that_of_the_singular_values(seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(40, 3, generator=generator) @ torch.randn(3, 60, generator=generator)
    features += 0.01 * torch.randn(40, 60, generator=generator)
    shares = torch.linalg.svdvals(features.double()).cumsum(0)
    assert formulas.effective_rank(features) == int((shares < 0.99 * shares[-1]).sum()) + 1


def test_returns_run_to_the_end_of_their_episode_and_no_further():
    rewards = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    terminated, truncated = np.array([0, 1, 0, 0, 0], bool), np.array([0, 0, 0, 1, 0], bool)
    returns, weights = formulas.realised_returns(rewards, terminated, truncated, 0.5)
    np.testing.assert_array_equal(returns, [2.0, 2.0, 5.0, 4.0, math.nan])
    np.testing.assert_array_equal(weights, [0.0, 0.0, 0.25, 0.5, math.nan])


@pytest.mark.parametrize("seed", range(3))
def test_returns_are_those_of_a_slow_oracle(seed):
    rng = np.random.default_rng(seed)
    rewards, gamma = rng.standard_normal(60), 0.9
    terminated = rng.random(60) < 0.1
    truncated = (rng.random(60) < 0.1) & ~terminated
    returns, weights = formulas.realised_returns(rewards, terminated, truncated, gamma)
    for start in range(60):
        ends = [i for i in range(start, 60) if terminated[i] or truncated[i]]
        if not ends:
            assert math.isnan(returns[start])
            continue
        steps = range(start, ends[0] + 1)
        assert returns[start] == pytest.approx(sum(gamma ** (i - start) * rewards[i] for i in steps))
        assert weights[start] == pytest.approx(0.0 if terminated[ends[0]] else gamma ** len(steps))


def test_weights_leave_all_of_a_batch_where_they_are_equal():
    skewed = np.array([0.5, 0.25, 0.25])
    assert formulas.weight_sample_size(skewed, 0.0) == pytest.approx(1.0)
    assert formulas.weight_sample_size(np.full(4, 0.25), 1.0) == pytest.approx(1.0)
    assert formulas.weight_sample_size(skewed, 1.0) == pytest.approx(3**2 / (2 + 4 + 4))


def test_entropy_is_1_where_all_are_alike():
    assert formulas.entropy(np.full(8, 0.125)) == pytest.approx(1.0)
    assert formulas.entropy(np.array([0.5, 0.5, 0.0, 0.0])) == pytest.approx(0.5)
    assert formulas.entropy(np.ones(1)) == 1.0
