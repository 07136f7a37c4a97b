"""The probe of whose class a block answers, the image's or that in z, tells blocks that read one from the others."""

import pytest
import torch
from torch import nn

from experiments.rare_errors import broken_from
from experiments.reads_the_label import other_labels, shares
from sidestep.nets.noprop.time_schedules import LinearSchedule
from sidestep.noise import Noise

CLASSES, DIMENSION = 5, 40


class Block(nn.Module):
    """Answers the class of the image, or the one whose embedding is nearest to z."""

    def __init__(self, reads, embedding):
        super().__init__()
        self.reads, self.embedding = reads, embedding

    def prepare(self, images):
        return nn.functional.one_hot(images.flatten(1)[:, 0].long(), CLASSES).float()

    def outputs(self, prepared, latent, time):
        return prepared if self.reads == "image" else latent @ self.embedding.T


class Net:
    dimension = DIMENSION

    def __init__(self, reads):
        self.embedding = 20 * torch.eye(CLASSES, DIMENSION)
        self.block = Block(reads, self.embedding)


@pytest.mark.parametrize(("reads", "expected"), [("image", [1, 1, 0]), ("z", [1, 0, 1])])
def test_it_tells_what_a_block_reads(reads, expected):
    labels = torch.arange(1200) % CLASSES
    images = labels.view(-1, 1, 1, 1).float()
    schedule = LinearSchedule(0.01, 0.99)
    own, image, other, alone = shares(Net(reads), schedule, images, labels, 1.0, Noise(0))
    assert [own, image, other] == expected
    assert alone == 1  # the label can be read off z at its cleanest
    assert shares(Net(reads), schedule, images, labels, 0.0, Noise(0))[3] < 1  # and not at its noisiest


def test_another_class_is_never_the_same():
    labels = torch.arange(1000) % CLASSES
    others = other_labels(labels, CLASSES, Noise(0))
    assert bool((others != labels).all())
    assert others.unique().tolist() == list(range(CLASSES))


def test_a_few_large_losses_are_no_breakdown():
    assert broken_from([200.0] * 9 + [1.0] * 40) is None
    assert broken_from([1.0] * 40 + [200.0] * 20) == 40
    assert broken_from([200.0] * 30 + [1.0] * 30 + [200.0] * 20, start=30) == 60
