"""How many models a verification takes, by its settings alone: for estimates before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from datamodels.brittleness import Effort
from datamodels.settings import VerifySettings
from datamodels.verify.methods import DATAMODEL
from datamodels.verify.questions.counterfactuals import RANDOM_SETS, models_of

PROBES, PROBES_OF_A_RIVAL = 4, 2
"""About how many sets a search tries, and one along a rival's order: most see soon that they need more images."""


class Expected(NamedTuple):
    """About how many models: on about all of S, as few, as a rule, and as many; and on random subsets, of αN."""

    few: int
    as_a_rule: int
    many: int
    on_subsets: int


def expected(
    chosen: VerifySettings,
    methods: Sequence[str],
    rivals: int,
    sizes: int,
    counterfactuals: int,
    targets: int,
    subsets: bool,
) -> Expected:
    """What so many targets take, each with so many rivals beside the methods, removals of fixed sizes and sizes of
    counterfactuals.

    How long a search goes on is not known beforehand: that is a range, in which all targets are searched. The models on all of
    S, random sets, and random subsets, where these are asked about, serve all targets.
    """
    removals = targets * sizes * 2 * max(2, 2 * chosen.most_models // 3)
    drops = counterfactuals * models_of(chosen) * (2 * targets + RANDOM_SETS * (targets > 0))
    known = chosen.base_models + removals + drops
    few, as_a_rule, many = (known + targets * of_one for of_one in of_searches(chosen, methods, rivals))
    return Expected(few, as_a_rule, many, chosen.subsets * chosen.subset_models if subsets else 0)


def of_searches(chosen: VerifySettings, methods: Sequence[str], rivals: int) -> tuple[int, int, int]:
    """About how many models the searches for one target take, with their control: as few, as a rule, and as many.

    Few is where the first set that is tried is confirmed at the first look and no rival is worth a second one, many twice the
    sets and two whole confirmations, of each order.
    """
    looks, controls = Effort.of(chosen.models, chosen.most_models, chosen.ratio).looks, DATAMODEL in methods
    few = len(methods) * (chosen.models + looks[0]) + rivals * chosen.models + controls * looks[0]
    as_a_rule = len(methods) * (PROBES * chosen.models + chosen.most_models // 2) + controls * chosen.most_models // 2
    as_a_rule += rivals * PROBES_OF_A_RIVAL * chosen.models
    many = (len(methods) + rivals) * (2 * PROBES * chosen.models + 2 * looks[-1]) + controls * looks[-1]
    return few, as_a_rule, many
