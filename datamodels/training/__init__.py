"""Training: networks, the recipe, many models at once on one device, margins.

`networks` is the contract between an architecture and all else here, `resnet9` the built-in one, `module` one of a person's own
(`made` by name, its `randomness` by key). `models` is the way in: a Trainer has `batches` of images, and trains a `group` of
models as their `draws` want it; `tuning` measures how large a group is best.
"""

from datamodels.training.attributed import LIBRARY_METHODS, attribute, require_dattri
from datamodels.training.devices import device_named, for_each_group
from datamodels.training.gradients import attribution, first_order
from datamodels.training.memory import give_back, keep_to_part
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
    "keep_to_part",
    "require_dattri",
]
