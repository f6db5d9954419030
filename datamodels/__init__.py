"""Datamodels: which training images made my network say this?"""

__version__ = "0.1.0"
