"""Fine-tuning of pretrained models of transformers on texts, by rules that train any module by its loss."""

from sidestep.integrations.tuning.options import TuneOptions
from sidestep.integrations.tuning.run import tune

__all__ = ["TuneOptions", "tune"]
