"""Rows by hand: windows at the ends of episodes, stacks, ids and the ring's seam.

Random operations are held against `slow_replay` in test_prioritized.py.
"""

import numpy as np
import pytest

from perdqn.replay.rows import FINAL, TERMINATED, TRUNCATED, Rows
from perdqn.transition import OBS, Column, EnvSpec

GOING_ON = 0


def rows_of(*flags, length=20, n_step=3, frame_stack=1, padding="zero", reward_clip=np.inf):
    """Row i shows frame i + 1, takes action i, earns i + 1, and ended as ``flags[i]`` says. gamma is 1/2."""
    spec = EnvSpec((Column(OBS, (), np.dtype(np.int64)),), False, 100, 0, frame_stack, padding)
    rows = Rows(spec, 1, length, n_step=n_step, gamma=0.5, reward_clip=reward_clip)
    for i, flag in enumerate(flags):
        append(rows, i, flag)
    return rows


def append(rows, i, flag=GOING_ON):
    one = np.array([i])
    return rows.append(np.array([0]), {OBS: one + 1}, one, one + 1.0, np.array([flag], np.uint8))


def starts(rows):
    ids = np.arange(-5, int(rows.heads[0]) + 5)
    return ids[rows.may_start(ids)].tolist()


def window(rows, item):
    """(reward, discount, id reached) of one start."""
    found = rows.windows(np.array([item]))
    return found.reward[0], found.discount[0], found.next_id[0]


def test_a_full_window_sums_discounted_rewards_and_bootstraps_n_steps_on():
    rows = rows_of(*[GOING_ON] * 4)
    assert starts(rows) == [0]
    assert window(rows, 0) == (1 + 2 / 2 + 3 / 4, 1 / 8, 3)


def test_a_terminated_tail_is_shorter_and_does_not_bootstrap():
    rows = rows_of(GOING_ON, GOING_ON, TERMINATED, FINAL)
    assert starts(rows) == [0, 1, 2]
    assert window(rows, 0) == (2.75, 0.0, 3)
    assert window(rows, 1) == (2 + 3 / 2, 0.0, 3)
    assert window(rows, 2) == (3.0, 0.0, 3)


def test_a_truncated_tail_still_bootstraps_from_the_final_observation():
    rows = rows_of(GOING_ON, GOING_ON, TRUNCATED, FINAL)
    assert starts(rows) == [0, 1, 2]
    assert window(rows, 0) == (2.75, 1 / 8, 3)
    assert window(rows, 1) == (3.5, 1 / 4, 3)
    assert window(rows, 2) == (3.0, 1 / 2, 3)


def test_an_end_that_is_both_counts_as_terminated():
    assert window(rows_of(TERMINATED | TRUNCATED, FINAL), 0) == (1.0, 0.0, 1)


def test_rewards_are_clipped_one_by_one_before_they_are_summed():
    assert window(rows_of(*[GOING_ON] * 4, reward_clip=2.0), 0)[0] == 1 + 2 / 2 + 2 / 4


def test_no_window_reaches_into_the_next_episode():
    rows = rows_of(GOING_ON, TRUNCATED, FINAL, GOING_ON, GOING_ON, GOING_ON, GOING_ON)
    assert starts(rows) == [0, 1, 3]
    assert window(rows, 1) == (2.0, 1 / 2, 2)


def test_the_newest_n_rows_wait_for_what_follows():
    rows = rows_of(*[GOING_ON] * 10)
    assert starts(rows) == list(range(7))


def test_an_append_names_the_slots_that_became_ready_and_those_retired():
    rows = rows_of(*[GOING_ON] * 7, length=7)
    retired, ready = append(rows, 7)
    assert (retired.tolist(), ready.tolist()) == ([0], [4])


def test_an_end_makes_the_whole_tail_ready_at_once():
    rows = rows_of(GOING_ON, GOING_ON, TERMINATED)
    assert append(rows, 3, FINAL).ready.tolist() == [0, 1, 2]


def test_overwriting_a_row_retires_those_whose_stack_reached_into_it():
    rows = rows_of(*[GOING_ON] * 10, length=10, n_step=1, frame_stack=3)
    assert starts(rows)[0] == 0, "the first row of an episode needs no history"
    retired, _ = append(rows, 10)
    assert retired.tolist() == [0, 1, 2]
    assert starts(rows)[0] == 3


def test_a_first_row_keeps_its_padding_when_everything_before_it_is_gone():
    flags = [*[GOING_ON] * 5, TERMINATED, FINAL, *[GOING_ON] * 3]
    rows = rows_of(*flags, length=7, n_step=1, frame_stack=4)
    for i in range(10, 14):
        append(rows, i)
    assert starts(rows)[0] == 7
    assert rows.observations(np.array([7]))[OBS].tolist() == [[0, 0, 0, 8]]
    append(rows, 14)
    assert starts(rows)[0] == 11


@pytest.mark.parametrize(("padding", "expected"), [("zero", [0, 0, 1, 2]), ("repeat", [1, 1, 1, 2])])
def test_a_stack_is_padded_before_the_first_frame(padding, expected):
    rows = rows_of(GOING_ON, GOING_ON, GOING_ON, frame_stack=4, padding=padding)
    assert rows.observations(np.array([1]))[OBS].tolist() == [expected]


def test_a_stack_holds_no_frame_of_the_episode_before():
    rows = rows_of(GOING_ON, TERMINATED, FINAL, GOING_ON, GOING_ON, frame_stack=3)
    assert rows.observations(np.array([4, 2]))[OBS].tolist() == [[0, 4, 5], [1, 2, 3]]


def test_ids_name_rows_for_ever_while_slots_are_used_again():
    rows = rows_of(*[GOING_ON] * 50, length=8)
    alive = np.arange(42, 50)
    np.testing.assert_array_equal(rows.slots(alive), alive % 8)
    np.testing.assert_array_equal(np.sort(rows.ids(np.arange(8))), alive)
    assert starts(rows) == list(range(42, 47))


def test_a_cut_makes_the_newest_step_a_truncation():
    rows = rows_of(GOING_ON, GOING_ON)
    rows.cut(0, {OBS: np.array([9])})
    assert starts(rows) == [0, 1]
    assert window(rows, 1) == (2.0, 1 / 2, 2)
    assert rows.observations(np.array([2]))[OBS].tolist() == [9]
    assert rows.cut(0, {OBS: np.array([9])}).ready.size == 0, "an ended episode is not cut again"
    assert len(rows) == 3


@pytest.mark.parametrize(("n_step", "frame_stack"), [(1, 1), (3, 1), (1, 4), (5, 4)])
def test_a_ring_too_short_for_one_window_and_stack_is_refused(n_step, frame_stack):
    shortest = n_step + frame_stack + 2
    rows_of(length=shortest, n_step=n_step, frame_stack=frame_stack)
    with pytest.raises(ValueError, match=f"needs at least {shortest}"):
        rows_of(length=shortest - 1, n_step=n_step, frame_stack=frame_stack)


def test_a_frame_is_stored_once_however_deep_the_stack():
    assert rows_of(frame_stack=4).frames[OBS].shape == (20,)
    assert rows_of(frame_stack=4).bytes_by_part()[f"frames/{OBS}"] == 20 * 8


@pytest.mark.parametrize("num_rows", [0, 5, 33])
def test_the_state_of_used_rows_restores_all(num_rows):
    rows, other = rows_of(*[GOING_ON] * num_rows, length=12), rows_of(length=12)
    state = rows.state_dict()
    assert state["actions"].shape == (1, min(num_rows, 12)), "rows never written are not saved"
    other.load_state_dict(state)
    assert starts(other) == starts(rows)
    ids = np.array(starts(rows), np.int64)
    np.testing.assert_array_equal(other.observations(ids)[OBS], rows.observations(ids)[OBS])
    np.testing.assert_array_equal(other.windows(ids).reward, rows.windows(ids).reward)
