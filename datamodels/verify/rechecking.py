"""Verdicts put to the proof again: of this run's verify.json, or of any other file of that form about the same store."""

from __future__ import annotations

from pathlib import Path

from datamodels.errors import InputError
from datamodels.progress import progress
from datamodels.runs import read_store, verdicts_folder
from datamodels.settings import Settings
from datamodels.verify.asking import ask
from datamodels.verify.known import Examples, Targets
from datamodels.verify.questions.rechecks import Recheck
from datamodels.verify.record import Rechecked, read_claims, write_rechecked
from datamodels.verify.retrain import alone
from datamodels.verify.run import retraining
from datamodels.worker.engine import Engine

MOST_NAMED = 5


def recheck(settings: Settings, engine: Engine, file: Path) -> str:
    """Retrain the sets that a verify.json calls flipped or repaired, with models no search has seen, and write recheck.json.

    A verdict holds when the mean margin of these models, `verify.most_models`, is at most 0 again, or of a prediction that was
    repaired above 0; beyond doubt when the whole 95 % interval of that mean is. Raises InputError when the file is none, or has
    no such verdict.
    """
    examples = Examples(engine.learner)
    claims = read_claims(file, examples.n, examples.t, examples.classes)
    if claims.store_digest != read_store(settings).digest():
        raise InputError(f"{file} was made from another store than that of this run")
    if not claims.made:
        raise InputError(f"{file} has no prediction that was flipped or repaired; there is nothing to check again")
    number = settings.verify.most_models
    targets, goals = Targets(examples, claims.behaviours), {claim.verdict for claim in claims.made}
    questions = [Recheck(claim, targets, number) for claim in claims.made]
    with alone(settings), progress("recheck", "models", 0) as bar:
        folder = verdicts_folder(settings)
        folder.mkdir(exist_ok=True)
        bar.look = lambda: engine.where
        ask(questions, retraining(settings, engine, "recheck"), bar)
        verdicts = tuple(question.record() for question in questions)
        holds = sum(verdict.holds for verdict in verdicts)
        sure = sum(question.is_beyond_doubt for question in questions)
        write_rechecked(folder, Rechecked(str(file), number, holds, sure, verdicts))
        told = f"recheck: {holds} of {len(verdicts)} {' and '.join(sorted(goals))} verdicts hold with {number} new models each"
        told += f", {sure} of them beyond doubt"
        fallen = [f"{targets.called(verdict.target)} by {verdict.method}" for verdict in verdicts if not verdict.holds]
        but = f", not {', '.join(fallen[:MOST_NAMED])}{', …' * (len(fallen) > MOST_NAMED)}" if fallen else ""
        return f"{told}{but}, in {folder}"
