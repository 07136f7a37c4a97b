"""The stack of denoising blocks, its embedding, its read-out and its schedule."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sidestep.errors import InputError
from sidestep.nets.noprop.batched_blocks import can_go_together
from sidestep.nets.noprop.blocks import Block
from sidestep.nets.noprop.execution import EXECUTIONS, choose_execution
from sidestep.nets.noprop.schedules import Levels, check_alpha_bar, signal_to_noise
from sidestep.nets.noprop.spread_blocks import SpreadBlocks
from sidestep.nets.noprop.target_space import CLASS_SPACE, TargetSpace
from sidestep.nets.shapes import Shape

__all__ = ["DenoisingStack"]


class DenoisingStack(SpreadBlocks):
    """T denoising blocks that share one class embedding and one read-out.

    Args:
        paths: T image paths, one per block, modules from images to features; or T whole blocks; made one by one.
        image_shape: (channels, height, width).
        embedding: u, float32 of shape (classes, dimension).
        alpha_bar: the schedule, of shape (T + 1,), rising within (0, 1); best in float64, in which what is left to the
            noise is computed.
        readout: module from (z_T, embedding) to logits.
        learn_embedding: whether the embedding is a parameter or fixed.
        image_latent: whether z has the shape of the image.
        together: whether the blocks may run at once; False if the paths draw from torch's global generator.
        space: what the targets are, and how they are embedded.
    """

    embedding: Tensor
    alpha_bar: Tensor
    noise_share: Tensor

    def __init__(  # long: these nine are what a stack is made of
        self,
        paths: Iterable[nn.Module],
        image_shape: Shape,
        embedding: Tensor,
        alpha_bar: Tensor,
        readout: nn.Module,
        learn_embedding: bool = False,
        image_latent: bool = False,
        together: bool = True,
        space: TargetSpace = CLASS_SPACE,
    ) -> None:
        super().__init__()
        check_alpha_bar(alpha_bar)
        self._snr = signal_to_noise(alpha_bar.detach().cpu().double())  # stays on the CPU: it is only read one by one
        classes, dimension = embedding.shape
        self.image_shape, self.together, self._execution, self.space = image_shape, together, "auto", space
        blocks = (
            path if isinstance(path, Block) else Block(path, image_shape, dimension, classes, image_latent)
            for path in paths
        )
        self.blocks = self._own(blocks, len(alpha_bar) - 1)
        if self.count != len(alpha_bar) - 1:
            raise InputError(
                f"{self.count} image paths need a schedule of {self.count + 1} values, got {len(alpha_bar)}"
            )
        self._stackable = together and can_go_together(list(self.blocks))
        self.readout = readout
        if learn_embedding:
            self.embedding = nn.Parameter(embedding.clone())
        else:
            self.register_buffer("embedding", embedding.clone())
        exact = alpha_bar.detach().double()
        self.register_buffer("alpha_bar", exact.float())
        self.register_buffer("noise_share", (1 - exact).float(), persistent=False)

    @property
    def count(self) -> int:
        """The number of blocks, T."""
        return len(self.blocks)

    @property
    def classes(self) -> int:
        """The number of classes, m."""
        return self.embedding.shape[0]

    @property
    def dimension(self) -> int:
        """The length of the label embedding and of z, d."""
        return self.embedding.shape[1]

    @property
    def levels(self) -> Levels:
        """alpha_bar_0 .. alpha_bar_T, with what they leave to the noise."""
        return Levels(self.alpha_bar, self.noise_share)

    @property
    def learns_embedding(self) -> bool:
        """Whether the class embedding is trained."""
        return isinstance(self.embedding, nn.Parameter)

    def block(self, index: int) -> Block:
        """Return block `index`, from 0 to T - 1; it leads from z_index to z_(index + 1)."""
        module = self.blocks[index]
        assert isinstance(module, Block)  # for the type checker: a ModuleList does not say what it holds
        return module

    def execution(self, device: torch.device) -> str:
        """Return how the blocks' losses and gradients are computed on `device`: one of `EXECUTIONS`."""
        if not self._stackable:
            return "per block"
        return choose_execution(device) if self._execution == "auto" else self._execution

    def set_execution(self, execution: str) -> None:
        """Choose how by hand, or leave it to the machine again with `auto`: for benchmarks and tests.

        Raises:
            InputError: for an execution that does not exist, or that these blocks do not have.
        """
        if execution not in ("auto", *EXECUTIONS):
            raise InputError(f"the execution must be auto, {', '.join(EXECUTIONS)}, got {execution!r}")
        if execution not in ("auto", "per block") and not self._stackable:
            raise InputError(f"blocks around a module of your own have one execution, per block, got {execution!r}")
        self._execution = execution

    def label_estimate(self, logits: Tensor) -> Tensor:
        """Return uhat, of classes `softmax(logits) W`, (batch, classes) -> (batch, dimension)."""
        return self.space.estimate(logits, self.embedding)

    def loss_weights(self, eta: float) -> Tensor:
        """Return `T/2 eta (SNR(t) - SNR(t - 1))` for t = 1 .. T, float64 of shape (T,), all positive, on the CPU."""
        return len(self.blocks) / 2 * eta * self._snr.diff()

    def label_embedding(self, labels: Tensor) -> Tensor:
        """Return u_y, (batch, dimension)."""
        return self.space.embed(labels, self.embedding)

    def noised_label(self, labels: Tensor, level: int, noise: Tensor) -> Tensor:
        """Return `z_level ~ N(sqrt(alpha_bar) u_y, (1 - alpha_bar) I)`, from standard normal noise of its shape."""
        shares = self.levels[level]
        return shares.signal.sqrt() * self.label_embedding(labels) + shares.noise.sqrt() * noise

    def drawn_label(self, labels: Tensor, level: int, generator: torch.Generator) -> Tensor:
        """Return a draw of z_level, (batch, dimension)."""
        normal = torch.empty(len(labels), self.dimension, dtype=self.embedding.dtype, device=labels.device)
        return self.noised_label(labels, level, normal.normal_(generator=generator))

    def image_features(self, images: Tensor) -> list[Tensor]:
        """Return every block's image features, T tensors (batch, features): they do not depend on z.

        Of a block that is elsewhere they are of length 0.
        """
        return self.features_here(lambda index: self.block(index).features(images), images, self.together)

    def block_logits(self, index: int, features: Tensor, latent: Tensor) -> Tensor:
        """Return the logits of block `index` at z, (batch, classes), wherever the block is.

        Raises:
            InputError: for a block that is elsewhere, unless the ranks predict together (`spread`).
        """
        return self.logits_anywhere(index, lambda: self.block(index).logits(features, latent))
