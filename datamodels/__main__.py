"""Command: as `datamodels`: `python -m datamodels` tells what there is, `python -m datamodels -C digits` is the whole road."""

from datamodels.cli import start

start("python -m datamodels")
