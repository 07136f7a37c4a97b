"""Local losses of ternary nets over two processes: the whole gradient exchanged, or the signs of its largest entries.

    torchrun --nproc-per-node 2 experiments/compressed_exchange.py --data mnist --steps 422 --seeds 0 1 2

Every way trains the same net on the same batches. Bytes are those of one rank's messages in a step, with their headers;
beside them, a gradient in float32, as other trainers send it.
"""

import argparse
import os
from statistics import fmean

import sidestep
from experiments.given import a_count, a_seed, a_share
from sidestep import rules
from sidestep.data import load
from sidestep.training import Options
from sidestep.world import world_here


def main() -> None:
    """Train each way with each seed, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--steps", type=a_count, default=422)
    parser.add_argument("--hidden", type=a_count, nargs="+", default=[256, 256])
    parser.add_argument("--seeds", type=a_seed, nargs="+", default=[0])
    parser.add_argument("--exchange", type=a_share, nargs="+", default=[0, 0.01], help="shares; 0: the whole gradient")
    given = parser.parse_args()
    world, data = world_here(), load(given.data, data_dir=os.environ.get("SIDESTEP_DATA"))
    for share in given.exchange:
        validation, test = [], []
        for seed in given.seeds:
            options = Options(
                steps=given.steps, seed=seed, decay="cosine", shares=world.size, exchange_share=share or None
            )
            before = world.sent_bytes + world.summed_bytes
            run = sidestep.train(rules.NoiseStep(hidden=tuple(given.hidden)), data, options, readings=["forward"])
            sent = (world.sent_bytes + world.summed_bytes - before) / given.steps
            dense = 4 * sum(weights.numel() for weights in run.net.parameters())
            validation.append(100 * run.result["validation_accuracy"])
            test.append(100 * run.result["test_accuracy"])
            if world.leads:
                print(
                    f"share {share:g}, seed {seed}: validation {validation[-1]:.2f}, test {test[-1]:.2f}, {sent:,.0f} "
                    f"bytes a step and rank; the gradient in float32 {dense:,}, {dense / max(1, sent):.1f} times",
                    flush=True,
                )
        if world.leads:
            print(f"share {share:g}: mean validation {fmean(validation):.2f}, test {fmean(test):.2f}", flush=True)


if __name__ == "__main__":
    main()
