"""The data sets that Sidestep knows by name: what they are, their licences, and where their original files
lie.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sidestep.data.download import Remote
from sidestep.data.images.archives import cifar_source, digits_source, idx_source
from sidestep.data.images.npz import npz_source
from sidestep.data.source import Source

__all__ = ["KNOWN", "Known", "names"]

Opener = Callable[[str, tuple[Path, ...], tuple[str, ...]], Source]


@dataclass(frozen=True)
class Known:
    """One known data set, for people and for `load`."""

    name: str
    description: str
    licence: str
    train: int  # images, those that have their own validation split not counting it
    test: int
    channels: int
    class_names: tuple[str, ...]
    download: str  # how much is downloaded at first use
    files: Mapping[int, tuple[Remote, ...]]  # by image size in pixels, the default size first
    opener: Opener

    @property
    def sizes(self) -> tuple[int, ...]:
        """The image sizes (height = width) that can be asked for, the default one first."""
        return tuple(self.files)

    def image_shape(self, size: int) -> tuple[int, int, int]:
        """Channels, height and width at this size."""
        return self.channels, size, size


def names() -> tuple[Known, ...]:
    """All data sets that `load` knows by name.

    >>> [known.name for known in names()]
    ['digits', 'mnist', 'fashion-mnist', 'cifar10', 'cifar100', 'bloodmnist']
    """
    return tuple(KNOWN.values())


DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_WORDS = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
    can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
    dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
    lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter
    palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road
    rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower
    sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
    willow_tree wolf woman worm
"""
CIFAR100 = tuple(word.replace("_", " ") for word in CIFAR100_WORDS.split())
BLOOD = (
    "basophil",
    "eosinophil",
    "erythroblast",
    "immature granulocyte",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
)

MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
FASHION_MIRRORS = ("https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",)
CIFAR_MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)
MEDMNIST_MIRRORS = ("https://zenodo.org/records/10519652/files/",)


def _remote(file: str, md5: str, mirrors: tuple[str, ...], sha256: str | None = None) -> Remote:
    return Remote(file, md5, tuple(mirror + file for mirror in mirrors), sha256)


def _idx_files(
    mirrors: tuple[str, ...], md5s: tuple[str, ...], sha256s: tuple[str | None, ...] = (None,) * 4
) -> tuple[Remote, ...]:
    """The four files in the order that `idx_source` takes: train images, train labels, the same of test."""
    parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    digests = zip(parts, md5s, sha256s, strict=True)
    return tuple(_remote(f"{part}-ubyte.gz", md5, mirrors, sha256) for part, md5, sha256 in digests)


MNIST_MD5S = (
    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "d53e105ee54ea40749a09fcbcd1e9432",
    "9fb629c4189551a2d022fa330f9573f3",
    "ec29112dd5afa0611ce80d1b7f02629c",
)
MNIST_SHA256S = (  # of files with these md5s; of the other sets no file was at hand, so their md5s count
    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
)
FASHION_MD5S = (
    "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "25c81989df183df01b3e8a0aad5dffbe",
    "bef4ecab320f06d8554ea6380940ec79",
    "bb300cfdad3c16e7a12a480ee83cd310",
)
CIFAR10_FILE = _remote("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", CIFAR_MIRRORS)
CIFAR100_FILE = _remote("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", CIFAR_MIRRORS)
BLOOD_FILES = {
    28: (_remote("bloodmnist.npz", "7053d0359d879ad8a5505303e11de1dc", MEDMNIST_MIRRORS),),
    64: (_remote("bloodmnist_64.npz", "2b94928a2ae4916078ca51e05b6b800b", MEDMNIST_MIRRORS),),
    128: (_remote("bloodmnist_128.npz", "adace1e0ed228fccda1f39692059dd4c", MEDMNIST_MIRRORS),),
}

KNOWN: dict[str, Known] = {
    known.name: known
    for known in (
        Known(
            name="digits",
            description="handwritten digits, 8 x 8 grey; ships with scikit-learn, no network",
            licence="CC BY 4.0 (Alpaydin and Kaynak 1998, UCI)",
            train=1437,
            test=360,
            channels=1,
            class_names=DIGITS,
            download="nothing",
            files={8: ()},
            opener=digits_source,
        ),
        Known(
            name="mnist",
            description="handwritten digits, 28 x 28 grey",
            licence="commonly given as CC BY-SA 3.0 (LeCun, Cortes and Burges 1998)",
            train=60000,
            test=10000,
            channels=1,
            class_names=DIGITS,
            download="12 MB",
            files={28: _idx_files(MNIST_MIRRORS, MNIST_MD5S, MNIST_SHA256S)},
            opener=idx_source,
        ),
        Known(
            name="fashion-mnist",
            description="articles of clothing, 28 x 28 grey",
            licence="MIT (Xiao, Rasul and Vollgraf 2017, Zalando)",
            train=60000,
            test=10000,
            channels=1,
            class_names=CLOTHES,
            download="31 MB",
            files={28: _idx_files(FASHION_MIRRORS, FASHION_MD5S)},
            opener=idx_source,
        ),
        Known(
            name="cifar10",
            description="photographs of ten kinds of animals and vehicles, 32 x 32 colour",
            licence="none stated; research use, cite Krizhevsky 2009",
            train=50000,
            test=10000,
            channels=3,
            class_names=CIFAR10,
            download="170 MB",
            files={32: (CIFAR10_FILE,)},
            opener=cifar_source,
        ),
        Known(
            name="cifar100",
            description="photographs of a hundred kinds of things (fine labels), 32 x 32 colour",
            licence="none stated; research use, cite Krizhevsky 2009",
            train=50000,
            test=10000,
            channels=3,
            class_names=CIFAR100,
            download="169 MB",
            files={32: (CIFAR100_FILE,)},
            opener=cifar_source,
        ),
        Known(
            name="bloodmnist",
            description="blood cells under the microscope, 28 x 28 (or 64, 128) colour; own validation split",
            licence="CC BY 4.0 (Acevedo et al. 2020; Yang et al. 2023 for MedMNIST)",
            train=11959,
            test=3421,
            channels=3,
            class_names=BLOOD,
            download="36 MB at 28 pixels, several hundred at 128",
            files=BLOOD_FILES,
            opener=npz_source,
        ),
    )
}
