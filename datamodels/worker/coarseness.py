"""Whether a store keeps the margins of a job too coarsely: said once, as soon as there are models enough to tell."""

from __future__ import annotations

import numpy as np

from datamodels.progress import say
from datamodels.store import Store
from datamodels.store.precision import FEWEST, MARGINS, coarse, coarse_margins
from datamodels.subsets import Array
from datamodels.worker.jobs import Job


class Look:
    """Looks at the margins of this process's models before they are rounded; at the store's own only where these stay few."""

    def __init__(self, job: Job) -> None:
        self.job, self.seen = job, list[Array]()
        self.dtype = Store(job.folder).meta.arrays[MARGINS].dtype
        self.done = not job.fixes_format

    def see(self, margins: Array) -> None:
        """Take in margins (K, T) of models as they were trained."""
        if not self.done:
            self.seen += [row for row in margins.astype(np.float64) if np.isfinite(row).all()]
            if len(self.seen) >= FEWEST:
                self._say(coarse_margins(np.stack(self.seen), self.dtype))

    def last(self) -> None:
        """Nothing more will be seen."""
        if not self.done:
            self._say(coarse(Store(self.job.folder)))

    def _say(self, found: str | None) -> None:
        self.done = True
        self.seen.clear()
        if found is not None:
            say(f"{self.job.stage}: {found}")
