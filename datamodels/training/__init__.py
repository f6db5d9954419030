"""Training: the ResNet-9, the recipe, many models at once on one device, margins."""

from datamodels.training.attributed import LIBRARY_METHODS, attribute, require_dattri
from datamodels.training.devices import device_named, for_each_group
from datamodels.training.gradients import attribution, first_order
from datamodels.training.memory import give_back
from datamodels.training.models import Trainer
from datamodels.training.tuning import choose_groups, describe_groups

__all__ = [
    "LIBRARY_METHODS",
    "Trainer",
    "attribute",
    "attribution",
    "choose_groups",
    "describe_groups",
    "device_named",
    "first_order",
    "for_each_group",
    "give_back",
    "require_dattri",
]
