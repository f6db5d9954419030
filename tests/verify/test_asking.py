"""The loop of questions, with questions and models of the tests' own."""

from collections import Counter

import pytest

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
    """Keeps what it has trained; what is there is not trained again."""

    def __init__(self, there=()):
        self.there = set(there)
        self.rounds: list[list[Request]] = []
        self.trained: Counter[Request] = Counter()

    def __call__(self, requests, show):
        missing = [request for request in requests if request not in self.there]
        self.rounds.append(list(requests))
        self.trained.update(missing)
        self.there |= set(missing)
        for left in range(len(missing), -1, -1):
            show(len(requests) - left)
        return self.there


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
    assert [len(requests) for requests in train.rounds] == [len(set(requests)) for requests in train.rounds] == [2, 5, 8]


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
def test_the_bars_total_is_what_was_wanted_and_what_is_expected(there, capsys):
    steps = [models("a", 0, 1), models("a", 0, 1, 2, 3), models("b", 0)]
    train, shown = Trainer([r for step in steps for r in step][:there]), bar()
    ask([Steps(*steps, expected=7), Steps(models("c", 0))], train, shown)
    # Two of a and one of c, four of a, and b; 7 more are expected as long as the first question goes on.
    assert shown.totals == [3 + 7, 5 + 7, 6 + 7, 6]
    assert shown.done == shown.total == 6
    assert shown.done - shown.first == sum(train.trained.values())  # only these count for the speed
    assert "6 of 6 models" in capsys.readouterr().err


def test_a_bar_whose_work_is_there_already_says_nothing(capsys):
    wanted = models("a", 0, 1, 2)
    ask([Steps(wanted)], Trainer(wanted), bar())
    assert capsys.readouterr().err == ""
