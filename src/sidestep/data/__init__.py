"""Data sets as tensors: known sets, `.npz` files, image folders, arrays, tables, rows of tokens; batches,
augmentation, pictures.
"""

from sidestep.data.batches import batch_indices, crop_and_flip, standardise, steps_per_epoch
from sidestep.data.images.catalogue import Known, names
from sidestep.data.images.picture import grid
from sidestep.data.images.unlabelled import read_images, read_named_images
from sidestep.data.loader import from_loader
from sidestep.data.loading import from_arrays, load
from sidestep.data.notices import DataNotice
from sidestep.data.sequences.tokens import from_text, from_tokens
from sidestep.data.splits import DataSet, PictureForm, Split

__all__ = [
    "DataNotice",
    "DataSet",
    "Known",
    "PictureForm",
    "Split",
    "batch_indices",
    "crop_and_flip",
    "from_arrays",
    "from_loader",
    "from_text",
    "from_tokens",
    "grid",
    "load",
    "names",
    "read_images",
    "read_named_images",
    "standardise",
    "steps_per_epoch",
]
