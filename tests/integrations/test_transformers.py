"""The Trainer of transformers with a rule's step: the same loop, the same bits after a resume, frozen weights alone."""

import json
from pathlib import Path

import pytest
import torch

from sidestep.errors import CheckpointError, InputError
from sidestep.integrations.transformers import SidestepTrainer
from sidestep.nets import dequantize, quantize
from sidestep.rules import SPSA, Backprop, Evolution, ForwardGradient, LocalLoss

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


def bert(seed=0, dropout=0.1):
    transformers.set_seed(seed)
    config = transformers.BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=2,
        max_position_embeddings=16, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def gpt(seed=0):
    transformers.set_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=8, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def sentences(count=48):
    """Rows of tokens whose label is whether the first token is above 15."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 32, (count, 8), generator=generator)
    return [{"input_ids": row, "labels": int(row[0] > 15)} for row in tokens]


def texts(count=48):
    return [{"input_ids": row, "labels": row} for row in (torch.arange(8).expand(count, 8))]


def arguments(folder, **named):
    given = {
        "output_dir": str(folder), "per_device_train_batch_size": 8, "max_steps": 6, "save_strategy": "no",
        "report_to": [], "disable_tqdm": True, "use_cpu": True, "logging_steps": 1, "seed": 3,
    }  # fmt: skip
    return transformers.TrainingArguments(**{**given, **named})


def trainer(folder, model=None, rule=None, data=None, **named):
    own = {key: named.pop(key) for key in ("callbacks", "eval_dataset", "compute_metrics") if key in named}
    return SidestepTrainer(
        model=model or bert(), args=arguments(folder, **named), rule=rule or SPSA(learning_rate=1e-3),
        train_dataset=data or sentences(), **own,
    )  # fmt: skip


def weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "rule",
    [
        SPSA(),
        SPSA(pairs=4, learning_rate=1e-3, sides="both"),
        Evolution(noise_kind="full-rank", per="group", population=4),
        ForwardGradient(kind="weights"),
        Backprop(),
    ],
)
def test_every_rule_for_any_module_steps_through_the_trainer(rule, tmp_path):
    model = gpt()
    if isinstance(rule, ForwardGradient):
        model.set_attn_implementation("eager")  # whose forward derivative exists
    before = weights(model)
    made = trainer(tmp_path, model, rule, texts(), max_steps=2)
    assert made.train().global_step == 2
    assert not same(before, weights(model))
    assert all(torch.isfinite(value).all() for value in weights(model).values())


def test_back_propagation_learns_through_it_and_spsa_gets_somewhere(tmp_path):
    model = gpt()
    losses = {}
    for name, rule in (("bp", Backprop(learning_rate=1e-2)), ("spsa", SPSA(pairs=8, learning_rate=0.03))):
        made = trainer(tmp_path / name, gpt() if name == "spsa" else model, rule, texts(), max_steps=60)
        made.train()
        losses[name] = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    assert losses["bp"][-1] < 0.5 * losses["bp"][0]
    assert losses["spsa"][-1] < 0.9 * losses["spsa"][0]


@pytest.mark.parametrize("rule", [SPSA(learning_rate=1e-3), SPSA(learning_rate=1e-3, optimizer_kind="adam")])
def test_a_resumed_run_has_the_bits_of_one_that_was_never_stopped(rule, tmp_path):
    whole = trainer(tmp_path / "whole", rule=rule, num_train_epochs=2, max_steps=-1)
    whole.train()
    for stop in (4, 6, 9):  # within an epoch, at its end, and in the second
        folder = tmp_path / str(stop)

        class Stop(transformers.TrainerCallback):
            def __init__(self, at):
                self.at = at

            def on_step_end(self, args, state, control, **named):
                control.should_save = control.should_training_stop = state.global_step == self.at

        settings = {"rule": rule, "num_train_epochs": 2, "max_steps": -1}
        first = trainer(folder, callbacks=[Stop(stop)], **settings)
        first.train()
        assert first.state.global_step == stop
        again = trainer(folder, bert(seed=99), **settings)
        again.train(resume_from_checkpoint=True)
        assert again.state.global_step == whole.state.global_step == 12
        assert same(weights(again.model), weights(whole.model))


def test_a_checkpoint_of_another_rule_or_of_the_plain_trainer_is_refused(tmp_path):
    trainer(tmp_path, save_strategy="steps", save_steps=3, max_steps=3).train()
    checkpoint = tmp_path / "checkpoint-3"
    assert json.loads((checkpoint / "sidestep.json").read_text())["rule"]["name"] == "spsa"
    with pytest.raises(CheckpointError, match="another rule"):
        trainer(tmp_path, rule=SPSA(learning_rate=2e-3)).train(resume_from_checkpoint=str(checkpoint))
    with pytest.raises(CheckpointError, match="another seed"):
        trainer(tmp_path, seed=4).train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "sidestep.json").unlink()
    with pytest.raises(CheckpointError, match=r"sidestep\.json"):
        trainer(tmp_path).train(resume_from_checkpoint=str(checkpoint))


def test_frozen_weights_stay_as_they_are(tmp_path):
    model = bert()
    for parameter in model.bert.parameters():
        parameter.requires_grad_(False)
    before = weights(model)
    trainer(tmp_path, model).train()
    for name, value in weights(model).items():
        assert torch.equal(value, before[name]) == name.startswith("bert."), name


def test_a_model_of_peft_is_trained_in_its_adapters_alone(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=4, target_modules=["query", "value"])
    model = peft.get_peft_model(bert(), config)
    before = weights(model)
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    trainer(tmp_path, model, SPSA(learning_rate=1e-2), save_strategy="steps", save_steps=3).train()
    moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert frozen
    assert moved
    assert not moved & frozen
    assert any("lora_" in name for name in moved)
    again = trainer(tmp_path, peft.get_peft_model(bert(), config), SPSA(learning_rate=1e-2))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    trained = weights(model)
    assert same({k: v for k, v in weights(again.model).items() if "lora_" in k}, trained)


def test_schedule_callbacks_evaluation_and_logs_are_the_trainer_s(tmp_path):
    seen = []

    class Watch(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **named):
            seen.append(state.global_step)

    made = trainer(
        tmp_path, callbacks=[Watch()], eval_dataset=sentences(16), eval_strategy="steps", eval_steps=3, warmup_steps=2,
        compute_metrics=lambda found: {"accuracy": float((found[0].argmax(-1) == found[1]).mean())},
    )  # fmt: skip
    made.train()
    assert seen == [1, 2, 3, 4, 5, 6]
    logs = made.state.log_history
    rates = [entry["learning_rate"] for entry in logs if "learning_rate" in entry]
    assert max(rates) == pytest.approx(1e-3)
    assert len(set(rates)) > 3
    assert sum("eval_accuracy" in entry for entry in logs) == 2
    assert not any("grad_norm" in entry for entry in logs)


def test_label_smoothing_finds_the_labels_in_every_pass(tmp_path):
    made = trainer(tmp_path, max_steps=1, label_smoothing_factor=0.1)
    assert made.train().global_step == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gradient_checkpointing", True),
        ("gradient_accumulation_steps", 2),
        ("max_grad_norm", 0.5),
        ("bf16", True),
        ("torch_compile", True),
        ("torch_empty_cache_steps", 2),
        ("learning_rate", 1e-3),
        ("weight_decay", 0.1),
        ("optim", "sgd"),
    ],
)
def test_an_argument_that_a_rule_cannot_honour_is_refused_by_name(name, value, tmp_path):
    with pytest.raises(InputError, match=name):
        trainer(tmp_path, **{name: value})


def test_rules_that_need_stages_and_optimisers_of_one_s_own_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"local-loss needs more .* sidestep\.attach"):
        trainer(tmp_path, rule=LocalLoss())
    model = bert()
    given = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(InputError, match="optimizers"):
        SidestepTrainer(model=model, args=arguments(tmp_path), rule=SPSA(), optimizers=(given, None))


def test_a_model_without_weights_to_train_is_refused(tmp_path):
    model = bert().requires_grad_(False)
    with pytest.raises(InputError, match="nothing is left to train"):
        trainer(Path(tmp_path), model).train()


def test_the_layers_of_gpt_2_are_quantised_all_and_train(tmp_path):
    model = gpt().eval()
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        wanted = model(tokens).logits
        found = quantize(model)(tokens).logits
    torch.testing.assert_close(found, wanted, atol=0.02, rtol=0)
    assert not torch.equal(found, wanted)
    kept = [name for name, weight in model.named_parameters() if weight.ndim > 1 and weight.is_floating_point()]
    assert kept == []
    before = weights(model)
    trainer(tmp_path, model, SPSA(pairs=4, sides="both", learning_rate=1.0), texts()).train()
    assert not torch.equal(before["transformer.h.0.attn.c_attn.weight"], model.transformer.h[0].attn.c_attn.weight)


def test_gpt_2_trained_in_whole_numbers_is_saved_as_any_other(tmp_path):
    model = quantize(gpt().eval())
    trainer(tmp_path, model, SPSA(pairs=4, sides="both", learning_rate=1.0), texts()).train()
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        wanted = model.eval()(tokens).logits
        dequantize(model).save_pretrained(tmp_path / "saved")
        found = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "saved")(tokens).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert type(model.transformer.h[0].attn.c_attn).__name__ == "Conv1D"
    assert model.lm_head.weight is model.transformer.wte.weight
