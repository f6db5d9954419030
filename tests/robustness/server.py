"""The process that runs cases, as `python -m tests.robustness.server MATERIAL`: everything imported, nothing run yet."""

import importlib
import os
import sys
from pathlib import Path

import torch

from tests.robustness.case import serve
from tests.robustness.hostile import CASES
from tests.robustness.material import make_material

STAGES = ("data", "store.check", "store.transfer", "worker", "regress.run", "verify", "report")

for stage in STAGES:
    importlib.import_module(f"datamodels.{stage}")
torch.set_num_threads(1)
material = Path(sys.argv[1])
if not material.exists():
    # In a child: what it starts (threads, compiled code) is none of the cases'.
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        make_material(material)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit("the material for the cases could not be made")
serve({case.name: case for case in CASES}, material)
