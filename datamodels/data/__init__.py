"""Images and labels: data sets of any origin, written once as FFCV .beton files, read back as tensors for all models.

`sources` is where a data set begins: a reader for each kind (`cifar`, `folder`, `existing` FFCV files, `arrays`, one's `own`
code) gives rows (`raw`), which are cut, checked and taken there; `files` keeps them in the run.
"""

from typing import TYPE_CHECKING, Any

from datamodels.data.files import Dataset, Split, load, prepare

if TYPE_CHECKING:
    from datamodels.data.own import from_dataset

__all__ = ["Dataset", "Split", "from_dataset", "load", "prepare"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: who trains needs neither Pillow nor data loaders.
    if name == "from_dataset":
        from datamodels.data.own import from_dataset

        return from_dataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
