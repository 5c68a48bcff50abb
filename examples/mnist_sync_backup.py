"""MNIST synchronously with a backup worker: each update is the mean of the first two of three gradients.

``SyncReplicasOptimizer(opt, replicas_to_aggregate=2, total_num_replicas=3)``. The third gradient comes too late, is
dropped and counted, and its batch is given out again, so that a slow worker slows nobody and no sample is lost.

    python examples/mnist_sync_backup.py
"""

from __future__ import annotations

import argparse

import evener


def main() -> None:
    options = argparse.ArgumentParser(description="MNIST, synchronously, with a backup worker.")
    options.add_argument("--train-steps", type=int, default=2000, help="updates, each of two gradients")
    options.add_argument("--logdir", default="logs/log_sync")
    args = options.parse_args()

    result = evener.run(
        "mnist", ps=1, workers=3, mode="sync", replicas_to_aggregate=2, train_steps=args.train_steps,
        logdir=args.logdir, log_every=100,
    )  # fmt: skip
    print(
        f"{result.global_step} updates of 2 gradients each, {result.dropped_gradients} gradients came too late; "
        f"validation accuracy {result.validation_accuracy:.3f}"
    )


if __name__ == "__main__":  # every task imports this file
    main()
