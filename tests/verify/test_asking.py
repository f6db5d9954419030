"""The loop of questions, with questions and models of the tests' own."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodels.progress import Advance
from datamodels.verify.asking import ask
from datamodels.verify.questions import Question
from datamodels.verify.retrain import Request


def models(name, *repetitions):
    return [Request(name.encode(), repetition) for repetition in repetitions]


class Steps(Question):
    """Wants one list of models after another, and is followed by other questions."""

    def __init__(self, *steps, then=(), expected=None):
        self.steps, self.following, self.expected = [list(step) for step in steps], then, expected
        self.learnt: list[Request] = []
        self.asked = 0

    def wants(self):
        return self.steps[self.asked] if self.asked < len(self.steps) else []

    def learn(self, found):
        self.learnt += [request for request in self.wants() if request in found]
        self.asked += 1

    def used(self):
        return set(self.learnt)

    def expects(self):
        left = sum(map(len, self.steps[self.asked + 1 :]))
        return left if self.expected is None else self.expected

    def then(self):
        return self.following


class Trainer:
    """Keeps what it has trained, and trains nothing that is there: all together, in rounds, or a few in an order of one's own.

    `room` is for how many models, `back` gives those of them that are given back next.
    """

    def __init__(self, there=(), room=None, back=list):
        self.found: Any = set(there)
        self.pool: list[Request] = []
        self.out: list[Request] = []
        self.size, self.back = room, back
        self.rounds: list[list[Request]] = []
        self.trained: Counter[Request] = Counter()

    @property
    def room(self):
        """All of a round is handed out at once, and nothing beside it."""
        return not self.out if self.size is None else len(self.out) < self.size

    def lacking(self, requests):
        """Those that are not there."""
        return [request for request in requests if request not in self.found]

    def want(self, requests):
        """Remember them."""
        self.pool = list(dict.fromkeys(r for r in self.lacking([*self.pool, *requests]) if r not in self.out))

    def hand_out(self):
        """As many as there is room for."""
        number = len(self.pool) if self.size is None else self.size - len(self.out)
        self.out, self.pool = self.out + self.pool[:number], self.pool[number:]

    def wait(self, show):
        """Some of them are there."""
        came = self.back(self.out)
        self.rounds.append(came)
        self.trained.update(came)
        for k in range(len(came) + 1):
            show(k)
        self.found |= set(came)
        self.out = [request for request in self.out if request not in came]


class Bar(Advance):
    """Remembers its totals."""

    def __init__(self):
        super().__init__("of a test", "models", 0, 0)
        self.totals = []

    def to(self, done, total=None):
        """As a bar does."""
        super().to(done, total)
        if total is not None:
            self.totals.append(total)


def bar():
    return Bar()


def test_all_are_asked_until_none_wants_more_and_each_learns_what_it_wanted():
    questions = [Steps(models("a", 0, 1), models("b", 0)), Steps(models("c", 0, 1, 2)), Steps()]
    train = Trainer()
    assert set(ask(questions, train, bar())) == set(questions)
    assert all(question.learnt == [r for step in question.steps for r in step] for question in questions)
    assert not any(question.wants() for question in questions)
    assert [len(requests) for requests in train.rounds] == [5, 1]


def test_what_all_want_is_trained_together_and_nothing_twice():
    """Looks of a search ask for models that are there; so do questions that share models."""
    looks = [models("a", *range(2)), models("a", *range(4)), models("a", *range(8))]
    train = Trainer(there=models("z", 0))
    ask([Steps(*looks), Steps(*looks), Steps(models("a", 0), models("z", 0))], train, bar())
    assert set(train.trained.values()) == {1}
    assert [len(requests) for requests in train.rounds] == [2, 2, 4]


def test_questions_that_follow_join_in_at_once():
    last = Steps(models("control", 0))
    search = Steps(models("search", 0), models("search", 1), then=[last])
    never = Steps(then=[Steps(models("of an empty one", 0))])
    base = Steps(models("all", 0), then=[search, never])
    other = Steps(*([request] for request in models("other", *range(5))))
    train = Trainer()
    answered = ask([base, other], train, bar())
    assert set(answered) >= {base, search, never, last, other}
    assert len(answered) == 6
    names = [{request.packed.decode() for request in requests} for requests in train.rounds]
    assert names == [
        {"all", "other"},
        {"search", "other", "of an empty one"},
        {"search", "other"},
        {"control", "other"},
        {"other"},
    ]


@pytest.mark.parametrize("there", [0, 3, 5])
def test_the_bars_total_is_what_was_wanted_and_what_is_expected(there):
    steps = [models("a", 0, 1), models("a", 0, 1, 2, 3), models("b", 0)]
    train, shown = Trainer([r for step in steps for r in step][:there]), bar()
    ask([Steps(*steps, expected=7), Steps(models("c", 0))], train, shown)
    # Two of a and one of c, four of a, and b; 7 more are expected as long as the first question goes on.
    assert shown.totals == [3 + 7, 5 + 7, 6 + 7, 6]
    assert shown.done == shown.total == 6
    assert shown.done - shown.first == sum(train.trained.values())  # only these count for the speed


def test_a_bar_whose_work_is_there_already_says_nothing(capsys):
    wanted = models("a", 0, 1, 2)
    ask([Steps(wanted)], Trainer(wanted), bar())
    assert capsys.readouterr().err == ""


STEPS = st.lists(st.lists(st.sampled_from(models("any", *range(12))), min_size=1, max_size=4, unique=True), max_size=3)
QUESTIONS = st.recursive(
    st.builds(lambda steps: Steps(*steps), STEPS),
    lambda others: st.builds(lambda steps, then: Steps(*steps, then=then), STEPS, st.lists(others, max_size=2)),
    max_leaves=5,
)


def all_of(questions):
    return [each for question in questions for each in [question, *all_of(question.following)]]


def under_way(questions):
    """Those that are asked by now, and not answered."""
    return [each for question in questions for each in ([question] if question.wants() else under_way(question.following))]


@given(st.lists(QUESTIONS, max_size=4), st.integers(1, 6), st.randoms(use_true_random=False))
def test_whatever_comes_back_first_each_learns_what_it_wanted_and_none_that_could_go_on_waits(questions, room, rng):
    waiting = set[tuple[int, int]]()

    def back(out):
        ready = {(id(question), question.asked) for question in under_way(questions) if not train.lacking(question.wants())}
        assert not ready & waiting
        assert not (ready and train.room)
        waiting.update((id(question), question.asked) for question in under_way(questions))
        return rng.sample(out, rng.randint(1, len(out)))

    train, shown = Trainer(there=models("any", 0, 1), room=room, back=back), bar()
    assert {id(each) for each in ask(questions, train, shown)} == {id(each) for each in all_of(questions)}
    assert all(each.learnt == [request for step in each.steps for request in step] for each in all_of(questions))
    assert set(train.trained.values()) <= {1}
    wanted = {request for each in all_of(questions) for request in each.learnt}
    assert shown.done == shown.total == len(wanted)
    assert shown.done - shown.first == len(train.trained)
