"""Data sets as tensors: known sets, `.npz` files, image folders, arrays, tables, rows of tokens; batches,
augmentation, pictures.
"""

from typing import TYPE_CHECKING

from sidestep.later import later

if TYPE_CHECKING:
    from sidestep.data.batches import batch_indices, crop_and_flip, standardise, steps_per_epoch
    from sidestep.data.images.catalogue import Known, names
    from sidestep.data.images.picture import grid
    from sidestep.data.images.unlabelled import read_images, read_named_images
    from sidestep.data.loader import from_loader
    from sidestep.data.loading import from_arrays, load
    from sidestep.data.notices import DataNotice
    from sidestep.data.sequences.tokens import from_text, from_tokens
    from sidestep.data.splits import DataSet, PictureForm, Split
else:
    __getattr__, __dir__ = later(
        __name__,
        {
            "batches": "batch_indices crop_and_flip standardise steps_per_epoch",
            "images.catalogue": "Known names",
            "images.picture": "grid",
            "images.unlabelled": "read_images read_named_images",
            "loader": "from_loader",
            "loading": "from_arrays load",
            "notices": "DataNotice",
            "sequences.tokens": "from_text from_tokens",
            "splits": "DataSet PictureForm Split",
        },
    )

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
