"""What a verification asks of which targets, from the settings, and what the answers make up."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodels import __version__
from datamodels.brittleness import Effort
from datamodels.errors import InputError
from datamodels.learners import Learner
from datamodels.reading import digest
from datamodels.regress import Datamodels
from datamodels.regress.behaviours import behaviour
from datamodels.regress.prior import covariates_named
from datamodels.runs import GRADIENTS, read_store, stage_folder
from datamodels.settings import REPAIR, Settings
from datamodels.subsets import Array
from datamodels.verify.expected import Expected, expected
from datamodels.verify.kept import OfBaseModels
from datamodels.verify.known import Targets
from datamodels.verify.methods import (
    EMBEDDING,
    RELABEL,
    Orders,
    check_gradients,
    check_scores,
    check_subsets,
    chosen_weights,
    columns_of,
    embedding_named,
    methods_named,
    rivals_named,
    scores_named,
    scores_of,
    sizes_named,
)
from datamodels.verify.questions import Question
from datamodels.verify.questions.base import BaseMargin
from datamodels.verify.questions.counterfactuals import Counterfactual, counterfactuals
from datamodels.verify.questions.random_subsets import RandomSubsets
from datamodels.verify.questions.removals import Removal
from datamodels.verify.record import FORMAT_VERSION, RandomSubsetsRecord, Verified
from datamodels.worker.engine import Engine


@dataclass(frozen=True)
class Plan:
    """What is asked of every target: searches by methods, and by rivals of the datamodel's, removals of fixed sizes,
    counterfactuals of sizes.
    """

    methods: list[str]
    rivals: list[str]
    sizes: list[int]
    counterfactuals: list[int]
    embedding: Array | None

    @classmethod
    def of(cls, settings: Settings, learner: Learner) -> Plan:
        """As the settings want it. Raises InputError where a method or size makes no sense."""
        chosen, n = settings.verify, len(learner.train_labels)
        methods = methods_named(chosen, learner)
        rivals = rivals_named(chosen, learner, methods)
        scores_named(chosen)  # of both together: two files of one name are refused here
        sizes = sizes_named("verify.sizes", chosen.sizes, n)
        tested = sizes_named("verify.counterfactuals", chosen.counterfactuals, n)
        check_subsets(chosen)
        if GRADIENTS in (*methods, *rivals) and settings.regress.prior != GRADIENTS:
            check_gradients(stage_folder(settings, "prior"))
        return cls(methods, rivals, sizes, tested, embedding_named(chosen, learner, [*methods, *rivals]))

    @property
    def orders_of(self) -> list[str]:
        """The methods whose orders are wanted, each once."""
        return list(dict.fromkeys([*self.methods, *self.rivals]))

    def expected(self, settings: Settings, targets: int, subsets: bool) -> Expected:
        """About how many models so many targets take, and random subsets where these are asked about."""
        return expected(
            settings.verify,
            self.methods,
            len(set(self.rivals) - set(self.methods)),
            len(self.sizes),
            len(self.counterfactuals),
            targets,
            subsets,
        )

    def inputs(self, settings: Settings, models: Datamodels) -> dict[str, str]:
        """Digests of the files that decide verdicts beside store and settings: what a prior was of, and orders of images."""
        found = {"prior": str(models.meta["prior_digest"])} if "prior_digest" in models.meta else {}
        if EMBEDDING in self.orders_of:
            found["embedding"] = digest(Path(settings.verify.embedding))
        found |= {method: digest(file) for method, file in scores_named(settings.verify).items()}
        if GRADIENTS in self.orders_of:
            meta = read_store(settings).meta
            prior = covariates_named(GRADIENTS, stage_folder(settings, "prior"), meta.num_train, meta.num_targets)
            found["gradients"] = "" if prior is None else prior.digest
        return found

    def check(self, settings: Settings, learner: Learner, targets: Targets, numbers: Sequence[int]) -> None:
        """Raise InputError where scores lack a target, or images would be relabelled as the class of one that has none."""
        check_scores(settings.verify, learner, columns_of(targets, numbers))
        if settings.verify.goal != REPAIR or RELABEL not in self.methods or settings.verify.relabel_to >= 0:
            return
        of_none = next((number for number in numbers if targets.label(number) < 0), None)
        if of_none is not None:
            told = f"to repair, the method relabel gives images the target's class, and {targets.called(of_none)} has not one"
            raise InputError(f"{told}; set verify.relabel_to, or leave the method out")

    def orders(
        self, settings: Settings, engine: Engine, models: Datamodels, targets: Targets, numbers: list[int], folder: Path
    ) -> Orders:
        """The orders of images for some targets; what was found out for them is kept in the folder."""
        columns = columns_of(targets, numbers)
        scores = scores_of(folder, settings, engine, self.orders_of, columns)
        base, derived = OfBaseModels(folder, settings, engine, columns), functools.partial(behaviour, settings, models)
        weights = chosen_weights(
            models, read_store(settings), targets, numbers, lambda of: derived(of, before=engine.give_back)
        )
        return Orders(settings.verify, engine.learner, targets, numbers, weights, self.embedding, scores, base)


@dataclass(frozen=True)
class Questions:
    """All that is asked about some targets; searches, and their controls, follow from `base`."""

    base: BaseMargin
    removals: list[Removal]
    counterfactuals: list[Counterfactual]
    subsets: RandomSubsets | None

    @classmethod
    def of(cls, plan: Plan, orders: Orders, targets: list[int], subsets: RandomSubsets | None) -> Questions:
        """About each of the targets, and of random subsets where these are to be asked about."""
        removals = [Removal.of_size(orders, target, size) for target in targets for size in plan.sizes]
        base = BaseMargin(orders, targets, plan.methods, plan.rivals)
        drops = counterfactuals(orders, targets, plan.counterfactuals)
        return cls(base, removals, drops, subsets)

    def all(self) -> list[Question]:
        """Those to begin with."""
        return [self.base, *([self.subsets] if self.subsets else []), *self.removals, *self.counterfactuals]

    def records(self, settings: Settings, models: Datamodels, inputs: Mapping[str, str], models_used: int) -> Verified:
        """The answers, once all are there."""
        before = self.base.outcomes
        removals = [*self.removals, *(contest.control for contest in self.base.contests.values())]
        return Verified(
            format_version=FORMAT_VERSION,
            version=__version__,
            store_digest=str(models.meta["store_digest"]),
            regress=models.meta["regress"],
            verify=dataclasses.asdict(settings.verify),
            inputs=inputs,
            looks=Effort.of(settings.verify.models, settings.verify.most_models, settings.verify.ratio).looks,
            models_used=models_used,
            random_subsets=self._on_random_subsets(),
            base=self.base.records(),
            searches=self.base.found(),
            removals=tuple(removal.record(before[removal.target]) for removal in removals),
            counterfactuals=tuple(drop.record(self.base.margins[drop.target]) for drop in self.counterfactuals),
            behaviours=self.base.orders.targets.behaviours,
        )

    def _on_random_subsets(self) -> RandomSubsetsRecord | None:
        return self.subsets.margins.record() if self.subsets else None
