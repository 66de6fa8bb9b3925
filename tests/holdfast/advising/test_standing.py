"""Advice is said once."""

from holdfast.advising.advice import Advice, Change, Priority
from holdfast.advising.standing import Standing


def advice(confidence: float = 0.5, priority: Priority = "medium", rule: str = "one") -> Advice:
    return Advice(rule, priority, "", {"x": 1.0}, "", (Change("a", None, 2),), confidence=confidence)


def test_it_is_news_once_and_again_where_it_is_clearly_worse() -> None:
    standing = Standing()
    assert standing.update([advice()]) == ([advice()], [])
    assert standing.update([advice(0.6)]) == ([], [])
    assert standing.update([advice(0.75)]) == ([advice(0.75)], [])
    assert standing.update([advice(0.5, "high")])[0] == [advice(0.5, "high")]


def test_it_is_withdrawn_after_three_silent_checks_and_news_after_that() -> None:
    standing = Standing()
    standing.update([advice()])
    for _ in range(2):
        assert standing.update([]) == ([], [])
    standing.update([advice()])  # silence is counted in a row
    assert [standing.update([])[1] for _ in range(3)] == [[], [], [advice()]]
    assert standing.advice == {}
    assert standing.update([advice()])[0] == [advice()]


def test_the_most_urgent_comes_first() -> None:
    news, _ = Standing().update([advice(rule="a"), advice(0.9, "critical", "b"), advice(0.7, rule="c")])
    assert [each.rule for each in news] == ["b", "c", "a"]


def test_it_survives_a_checkpoint() -> None:
    before, after = Standing(), Standing()
    before.update([advice()])
    before.update([])
    after.load_state_dict(before.state_dict())
    assert after.advice == before.advice
    assert [after.update([])[1] for _ in range(2)] == [[], [advice()]]
