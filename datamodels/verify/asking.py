"""The loop of a verification: all questions together, until none wants any more models.

In each round all that any question wants is trained together, so that the trainer's groups stay full; each question goes on by
what it has learnt. Questions that follow from an answer join in at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from datamodels.progress import Advance
from datamodels.verify.questions import Question
from datamodels.verify.retrain import Request, Retrained

Train = Callable[[Sequence[Request], Callable[[int], None]], Retrained]
"""Gives models, trained where they are not there yet; tells how many are there, first before any is trained."""
Wants = list[tuple[Question, list[Request]]]


def ask(questions: Sequence[Question], train: Train, bar: Advance) -> list[Question]:
    """All questions, and those that follow from them, to their end; these questions.

    The bar's total is what was wanted so far and an estimate of what will be.
    """
    answered: list[Question] = []
    known: set[Request] = set()
    wants = _wants(questions, answered)
    while wants:
        wanted = list(dict.fromkeys(request for _, of_question in wants for request in of_question))
        known.update(wanted)
        bar.to(bar.done, len(known) + sum(question.expects() for question, _ in wants))
        found = train(wanted, _shown(bar, len(known) - len(wanted)))
        for question, _ in wants:
            question.learn(found)
        wants = _wants([question for question, _ in wants], answered)
    bar.to(len(known), len(known))
    return answered


def _shown(bar: Advance, others: int) -> Callable[[int], None]:
    """Tells the bar how many models are there, with so many others. Those that were there before count for no speed."""
    told = False

    def show(there: int) -> None:
        nonlocal told
        if told:
            bar.to(others + there)
        else:
            bar.there(others + there - bar.done)
        told = True

    return show


def _wants(questions: Sequence[Question], answered: list[Question]) -> Wants:
    """What each question wants; those that want nothing go to the answered ones, and those that follow take their place."""
    left, wants = deque(questions), []
    while left:
        question = left.popleft()
        wanted = question.wants()
        if wanted:
            wants.append((question, wanted))
        else:
            answered.append(question)
            left.extend(question.then())
    return wants
