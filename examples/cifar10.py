"""CIFAR-10 on several devices: each device computes a batch of its own, one update takes the mean of the gradients.

The tutorials' `cifar10_multi_gpu_train.py`, which put a tower on each of four GPUs by hand: `tf.device`, variable
reuse, `average_gradients` of 20 lines. There all towers were fed by one graph in one process; here each device has a
process of its own. On a machine without GPUs the devices are processors.

    python examples/cifar10.py --data-dir CIFAR --devices 2             # two processes on the CPU
    python examples/cifar10.py --data-dir CIFAR --devices 4 --num-gpus 4
    python examples/cifar10.py --download --devices 2                   # fetches the 170 MB archive first

DIR holds the official archive, binary or python, or its files.
"""

from __future__ import annotations

import argparse

import evener


def main() -> None:
    options = argparse.ArgumentParser(description="CIFAR-10 on several devices.")
    options.add_argument("--devices", type=int, default=2, help="each gets its own batches")
    options.add_argument("--num-gpus", type=int, default=0, help="of this machine; 0: the CPU")
    options.add_argument("--train-steps", type=int, default=1000)
    options.add_argument("--batch-size", type=int, default=128, help="of each device")
    options.add_argument("--data-dir", default="")
    options.add_argument("--download", action="store_true")
    options.add_argument("--logdir", default="logs/cifar10")
    args = options.parse_args()

    result = evener.run(
        "cifar10",
        # Worker i takes GPU i mod num_gpus. The parameters are at one ps task, as the old program's `/cpu:0`.
        ps=1,
        workers=args.devices,
        num_gpus=args.num_gpus,
        mode="sync",
        train_steps=args.train_steps,
        batch_size=args.batch_size,
        logdir=args.logdir,
        log_every=10,
        recipe_options={"data_dir": args.data_dir, "download": args.download},
    )
    print(
        f"step {result.global_step}, loss = {result.train_loss:.2f} ({result.examples_per_second:.1f} examples/sec; "
        f"{1 / result.steps_per_second:.3f} sec/step); validation accuracy {result.validation_accuracy:.3f}"
    )


if __name__ == "__main__":  # every task imports this file
    main()
