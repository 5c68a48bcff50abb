"""Two towers with averaged gradients: each has the whole model and its own samples, and both take the same updates.

TensorFlow 1 wrote ``with tf.device("/gpu:%d" % i)`` around each tower of one graph, ``average_gradients(tower_grads)``
and one ``apply_gradients``. Here a tower is a process. Without GPUs both are on the CPU; with two, add ``num_gpus=2``.

    python examples/two_towers.py

The same from the command line, and by torchrun, also over several machines:

    evener train mnist --towers 2 --batch-size 50
    torchrun --nproc-per-node 2 -m evener train mnist --batch-size 50
"""

from __future__ import annotations

from pathlib import Path

import torch

import evener
from evener.state.checkpoint import load


def main() -> None:
    options = {"train_steps": 100, "recipe_options": {"hidden": 50}, "quiet": True}
    two = evener.run("mnist", towers=2, batch_size=50, **options)
    print(
        f"two towers at 50: {two.global_step} updates of {two.examples} examples, {two.validation_accuracy:.3f} right"
    )

    # Each update averaged the gradients of two different batches, so one process at twice the batch learns the same.
    one = evener.run("mnist", batch_size=100, **options)
    print(
        f"one process at 100: {one.global_step} updates of {one.examples} examples, {one.validation_accuracy:.3f} right"
    )

    ours, theirs = (load(Path(result.checkpoint))[1].parameters for result in (two, one))
    far = max(float(torch.dist(ours[name], theirs[name]) / theirs[name].norm()) for name in theirs)
    print(f"their parameters differ by {far:.0e}")


if __name__ == "__main__":
    main()
