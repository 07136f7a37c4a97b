"""Small rules of every kind, quick to train: the one list that common tests go through."""

from sidestep.rules import (
    SPSA,
    Backprop,
    Blockwise,
    DirectFeedbackAlignment,
    Evolution,
    FeedbackAlignment,
    ForwardForward,
    ForwardGradient,
    Hebbian,
    LocalLoss,
    NeuralODE,
    NoiseStep,
    NoPropCT,
    NoPropDT,
    NoPropFM,
)

QUICK = {"steps": 3, "draws": 2}
SMALL = {
    "noprop-dt": NoPropDT(blocks=2),
    "noprop-dt learned": NoPropDT(blocks=2, embedding="learned", dimension=6, readout="radial"),
    "noprop-dt readable": NoPropDT(
        blocks=2, levels="readable", loss="cross-entropy", embedding="learned", unit_norm=True
    ),
    "noprop-dt ternary": NoPropDT(blocks=2, solver="noise-step", hidden=(32, 16), flip_share=0.05),
    "noprop-dt ternary losses": NoPropDT(
        blocks=2, solver="noise-step", estimator="local-losses", hidden=(32,), embedding="orthogonal", dimension=12
    ),
    "noprop-ct": NoPropCT(**QUICK),
    "noprop-ct learned paper": NoPropCT(
        loss="paper", schedule="learned", embedding="learned", dimension=6, readout="radial", **QUICK
    ),
    "noprop-fm": NoPropFM(**QUICK),
    "noprop-fm velocity": NoPropFM(prediction="velocity", loss="paper", embedding="learned", dimension=6, **QUICK),
    "blockwise": Blockwise(groups=2, depth=3, width=16),
    "blockwise vit": Blockwise(groups=2, depth=2, net="vit", width=32, levels="readable", overlap=0.0),
    "blockwise resnet exact": Blockwise(groups=2, depth=2, net="resnet", width=8, exact_share=0.5),
    "backprop": Backprop(blocks=2),
    "backprop checkpointed": Backprop(blocks=2, activation_checkpointing=True),
    "backprop mlp": Backprop(net="mlp", hidden=(32,)),
    "backprop conv": Backprop(net="conv", hidden=(8, 8)),
    "backprop ternary": Backprop(net="mlp", hidden=(32,), ternary=True),
    "backprop linear": Backprop(net="linear"),
    "backprop mlp batch norm": Backprop(net="mlp", hidden=(32, 16), norm="batch"),
    "backprop accumulated": Backprop(net="mlp", hidden=(32, 16), norm="layer", accumulate=4),
    "backprop deep supervision": Backprop(blocks=1, deep_supervision=0.3),
    "backprop deep conv": Backprop(
        net="conv", hidden=(8, 8), deep_supervision=0.3, activation_checkpointing=True, accumulate=2
    ),
    "neural-ode": NeuralODE(steps=4),
    "noise-step": NoiseStep(hidden=(48, 32)),
    "noise-step conv": NoiseStep(net="conv", hidden=(8, 8), bias=True),
    "noise-step weight probes": NoiseStep(estimator="weight-probes", hidden=(32,), bias=True),
    "noise-step more probes": NoiseStep(
        estimator="weight-probes", hidden=(16,), probes=16, most_probes=64, schedule="loss-triggered", exclusive=True,
        update="accumulators", threshold=2,
    ),
    "noise-step rank-one": NoiseStep(estimator="rank-one", hidden=(16,), tangents=2),
    "noise-step activity": NoiseStep(estimator="activity-probes", hidden=(32, 16), tangents=4),
    "feedback-alignment": FeedbackAlignment(hidden=(32, 16)),
    "feedback-alignment conv sign-symmetric": FeedbackAlignment(net="conv", hidden=(8, 8), feedback="sign-symmetric"),
    "feedback-alignment kolen-pollack": FeedbackAlignment(hidden=(32, 16), feedback="kolen-pollack", norm="layer"),
    "direct-feedback-alignment": DirectFeedbackAlignment(hidden=(32, 16)),
    "direct-feedback-alignment conv": DirectFeedbackAlignment(net="conv", hidden=(8, 8), norm="none"),
    "forward-forward": ForwardForward(hidden=(32, 16)),
    "forward-forward head": ForwardForward(hidden=(32, 16), label="head", threshold=1.0, negatives="uniform"),
    "forward-forward conv": ForwardForward(net="conv", hidden=(12, 12)),
    "local-loss": LocalLoss(hidden=(32, 16)),
    "local-loss similarity": LocalLoss(net="conv", hidden=(8, 8), similarity=0.9),
    "evolution": Evolution(hidden=(16,)),
    "evolution input": Evolution(hidden=(16,), columns="input", learning_rate=0.01),
    "evolution group": Evolution(hidden=(16,), per="group", group=4, fitness="ranks"),
    "evolution full-rank": Evolution(hidden=(16,), per="group", group=16, noise_kind="full-rank"),
    "spsa": SPSA(hidden=(16,), pairs=4, learning_rate=1e-3),
    "forward-gradient": ForwardGradient(hidden=(32,), groups=4),
    "forward-gradient activities": ForwardGradient(kind="activities", hidden=(32, 16)),
    "forward-gradient weights": ForwardGradient(kind="weights", hidden=(16,), tangents=4),
    "hebbian": Hebbian(hidden=(32, 16)),
    "hebbian oja": Hebbian(hidden=(16,), kind="oja"),
    "hebbian sanger": Hebbian(hidden=(16, 8), kind="sanger"),
    "hebbian conv": Hebbian(net="conv", hidden=(8, 8), kind="against"),
    "noise-step projected": NoiseStep(codec="trits", hidden=(32,), probes=256, density=0.01, schedule="constant"),
}  # fmt: skip
