"""Reading files that others wrote, or that the disk has damaged: everything is checked before it is believed.

A file is opened without waiting (a pipe in its place is refused, not waited for), its size is known before it is read, and what
it declares (shapes, lengths, members) is compared with what is there before memory is taken. No reader here can be made to run
what a file says. Every refusal is `Unreadable`, an InputError of one sentence that names the file.
"""

from datamodels.reading.arrays import check_zip, npz_members, open_npy, read_npy, read_npz
from datamodels.reading.content import Between, Each, Maybe, read_json, require, whole_number
from datamodels.reading.files import Unreadable, checked_size, digest, is_there, open_file, path_of, read_bytes, read_text
from datamodels.reading.scores import SCORES, Scores, read_scores, scores_files
from datamodels.reading.tensors import read_pt, tensor_array

__all__ = [
    "SCORES",
    "Between",
    "Each",
    "Maybe",
    "Scores",
    "Unreadable",
    "check_zip",
    "checked_size",
    "digest",
    "is_there",
    "npz_members",
    "open_file",
    "open_npy",
    "path_of",
    "read_bytes",
    "read_json",
    "read_npy",
    "read_npz",
    "read_pt",
    "read_scores",
    "read_text",
    "require",
    "scores_files",
    "tensor_array",
    "whole_number",
]
