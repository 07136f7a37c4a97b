"""A pretrained model with what is to be learned: labels of texts, or next tokens."""

import importlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sidestep.errors import CheckpointError, InputError
from sidestep.integrations.tuning.base import check_base
from sidestep.integrations.tuning.recipe import Recipe, layer_of_text
from sidestep.noise import Noise

__all__ = ["Pooled", "Rows", "TextNet", "built", "head_of", "library", "most_tokens"]

_CHECKPOINTING = ("activation_checkpointing_enable", "gradient_checkpointing_enable")  # the later name first
Rows = list[list[int]]  # token ids of texts


class Pooled(nn.Module):
    """The means of a model's hidden states over the tokens, those of the last layer or of all, and a linear layer."""

    def __init__(self, body: Any, classes: int, every: bool) -> None:
        super().__init__()
        states = body.config.num_hidden_layers + 1 if every else 1
        self.body, self.head = body, nn.Linear(states * body.config.hidden_size, classes)
        self.every = every

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits, (texts, classes)."""
        found = self.body(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=self.every)
        states = found.hidden_states if self.every else [found.last_hidden_state]
        mask = attention_mask.unsqueeze(2).to(states[0].dtype)
        logits: Tensor = self.head(torch.cat([(state * mask).sum(1) / mask.sum(1) for state in states], 1))
        return logits


class TextNet:
    """A model and its tokens.

    model: what is trained.
    recipe: how it was made.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, recipe: Recipe) -> None:
        self.model, self.recipe, self._tokenizer = model, recipe, tokenizer
        self._pad = tokenizer.pad_token_id or 0
        owner: Any = next(part for part in model.modules() if hasattr(part, "get_input_embeddings"))
        self._kinds = int(owner.get_input_embeddings().weight.shape[0])
        if recipe.length > (most := _positions(owner.config)):
            raise InputError(
                f"length is {recipe.length:,}, and the model has {most:,} positions; give a smaller length"
            )

    def encoded(self, texts: Sequence[str]) -> Rows:
        """Return the token ids of every text, cut to the recipe's length; of next tokens, rows of equal length.

        Raises InputError for ids that the model has no embedding of, and for a text that gives no token.
        """
        length = self.recipe.length
        if self.recipe.tokens:
            ids = self._tokenizer("".join(texts), verbose=False)["input_ids"]
            rows = [ids[at : at + length] for at in range(0, len(ids) - length + 1, length)]
            if not rows:
                raise InputError(f"the text has {len(ids):,} tokens, and a row {length}; give a smaller length")
        else:
            rows = self._tokenizer(list(texts), truncation=True, max_length=length)["input_ids"]
            empty = next((place for place, row in enumerate(rows) if not row), None)
            if empty is not None:
                raise InputError(f"text {empty + 1:,} of {len(rows):,} gives no token; leave it out")
        highest = max(map(max, rows))
        if highest >= self._kinds:
            raise InputError(
                f"the tokenizer gives the token id {highest:,}, and the model has embeddings of {self._kinds:,}: "
                "they do not belong together; give a folder that has both"
            )
        return rows

    def batch(self, rows: Rows, chosen: Iterable[int]) -> dict[str, Tensor]:
        """Return some rows as a model takes them, filled up to the longest of them."""
        taken = [torch.tensor(rows[place]) for place in chosen]
        ids = nn.utils.rnn.pad_sequence(taken, batch_first=True, padding_value=self._pad)
        lengths = torch.tensor([len(row) for row in taken])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        device = next(self.model.parameters()).device
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Return (texts, labels), or (rows, length, tokens)."""
        found = self.model(**batch)
        return found if isinstance(found, Tensor) else found.logits

    def loss(self, batch: dict[str, Tensor], labels: Tensor | None) -> Tensor:
        """Return the mean cross-entropy, (), in nats: of the labels, or of every token after the first of its row."""
        logits = self.logits(batch)
        if labels is not None:
            return cross_entropy(logits, labels.to(logits.device))
        return cross_entropy(logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())


def built(base: str, recipe: Recipe, device: torch.device, checkpointed: bool = False) -> TextNet:
    """Make the net of a recipe, before its first step, from a model's folder, or its name where a hub is reached.

    Raises:
        InputError: without transformers or peft, and for a folder that is no model's.
    """
    transformers = library("transformers")
    check_base(base)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    noise = Noise(recipe.seed).stream("tune")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(base)
        with noise.stream("head").torch_seeded():
            model = _model(transformers, base, recipe, tokenizer)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{base} cannot be opened as a model of transformers ({first}); give a folder with config.json, weights "
            "and the tokenizer's files, or a name that this machine can download"
        ) from error
    tokenizer.padding_side = "right"
    model.eval()
    if recipe.lora:
        with noise.stream("adapters").torch_seeded():
            model = _with_adapters(model, recipe)
    _freeze(model, recipe)
    if checkpointed:
        _checkpointed(model)
    net = TextNet(model.to(device), tokenizer, recipe)
    if recipe.head:
        head = head_of(net.model)
        if head is None:
            raise CheckpointError("the recipe has a fitted output layer, and the model has none that is known")
        with torch.no_grad():
            for own, text in zip((head.weight, head.bias), recipe.head, strict=True):
                if own is not None:
                    own.copy_(layer_of_text(text, own))
    return net


def head_of(model: nn.Module) -> nn.Linear | None:
    """Return the output layer that the base model does not have: the last linear layer with a new name."""
    names = ("head", "classifier", "score", "out_proj", "classification_head", "summary")
    found = [
        layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and any(part in names for part in name.split(".")) and "original" not in name
    ]
    return found[-1] if found else None


def most_tokens(base: str, wanted: int) -> int:
    """Return so many tokens, or as many as a model has positions for; left to `built` where it cannot be opened."""
    try:
        return min(wanted, _positions(library("transformers").AutoConfig.from_pretrained(base)))
    except (OSError, ValueError, KeyError):
        return wanted


def _positions(config: Any) -> int:
    found = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return found if isinstance(found, int) else 1 << 30


def library(name: str) -> Any:
    """Import a library of the extra `tune`; raises InputError that names it where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"sidestep tune needs {name}, which is missing: pip install 'sidestep[tune]'") from error


def _model(transformers: Any, base: str, recipe: Recipe, tokenizer: Any) -> nn.Module:
    if recipe.tokens:
        model: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        return model
    if recipe.reads != "own":
        try:
            body = transformers.AutoModel.from_pretrained(base, dtype=torch.float32, add_pooling_layer=False)
        except TypeError:  # which has none to leave out
            body = transformers.AutoModel.from_pretrained(base, dtype=torch.float32)
        return Pooled(body, len(recipe.labels), recipe.reads == "layers")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    judge: Any = transformers.AutoModelForSequenceClassification.from_pretrained(
        base, dtype=torch.float32, num_labels=len(recipe.labels), ignore_mismatched_sizes=True
    )
    judge.config.pad_token_id = tokenizer.pad_token_id
    made: nn.Module = judge
    return made


def _with_adapters(model: nn.Module, recipe: Recipe) -> nn.Module:
    peft = library("peft")
    head = None if recipe.tokens else next((n for n, m in model.named_modules() if m is head_of(model)), None)
    settings = peft.LoraConfig(
        r=recipe.lora, lora_alpha=2 * recipe.lora, lora_dropout=0.0, modules_to_save=[head] if head else None,
        target_modules="all-linear" if isinstance(model, Pooled) else None,
    )  # fmt: skip
    try:
        adapted: nn.Module = peft.get_peft_model(model, settings)
    except ValueError as error:
        raise InputError(f"peft puts no adapters into this model: {error}") from error
    return adapted


def _freeze(model: nn.Module, recipe: Recipe) -> None:
    """Freeze what the recipe does not train."""
    if recipe.lora or recipe.part == "all":
        return
    head = head_of(model)
    own = {id(weight) for weight in head.parameters()} if head is not None else set()
    norms = {
        id(weight)
        for layer in model.modules()
        if "norm" in type(layer).__name__.lower()
        for weight in layer.parameters(recurse=False)
    }
    for name, weight in model.named_parameters():
        small = recipe.part == "norms" and (id(weight) in norms or name.endswith("bias"))
        weight.requires_grad_(id(weight) in own or small)


def _checkpointed(model: nn.Module) -> None:
    parts = (getattr(part, name, None) for part in model.modules() for name in _CHECKPOINTING)
    enable: Any = next((found for found in parts if found is not None), None)
    try:
        if enable is None:
            raise ValueError("it has no such option")
        enable({"use_reentrant": False})
    except ValueError as error:
        raise InputError(
            f"this model has no activation checkpointing ({error}); take micro_batches to save memory"
        ) from error
