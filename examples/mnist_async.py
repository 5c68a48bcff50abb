"""MNIST asynchronously: two parameter servers, two workers, each going at its own speed.

The tutorials' "asynchronous mode": 784-500-10, batch 100, learning rate 0.01 that decays by 0.99 an epoch, L2 on the
weights, moving averages, a checkpoint every 60 s, a line every 100 steps. There it is one program of 150 lines, started
four times; here the tasks start by themselves.

    python examples/mnist_async.py                          # the digits that come with scikit-learn
    python examples/mnist_async.py --data-dir MNIST_data    # the real thing: the four IDX files lie there

On several machines the same is four commands, `evener task mnist --job-name ... --task-index ...`: examples/README.md.
"""

from __future__ import annotations

import argparse

import evener


def main() -> None:
    options = argparse.ArgumentParser(description="MNIST, asynchronously.")
    options.add_argument("--train-steps", type=int, default=20000, help="updates of the whole run")
    options.add_argument("--data-dir", default="", help="where MNIST's IDX files lie; default: the small digits")
    options.add_argument("--logdir", default="logs/log_async")
    args = options.parse_args()

    result = evener.run(
        "mnist",
        ps=2,
        workers=2,
        mode="async",
        batch_size=100,
        train_steps=args.train_steps,  # StopAtStepHook(last_step=...), but exact: never one more
        logdir=args.logdir,  # an old one is continued
        save_checkpoint_secs=60,
        log_every=100,
        recipe_options={
            "hidden": 500, "learning_rate": 0.01, "decay": 0.99, "l2": 0.0001, "ema_decay": 0.99,
            "data": "mnist" if args.data_dir else "digits", "data_dir": args.data_dir,
        },
    )  # fmt: skip
    print(
        f"{result.global_step} global steps at a mean staleness of {result.mean_staleness:.2f}; "
        f"validation accuracy {result.validation_accuracy:.3f}, with moving averages "
        f"{result.validation_accuracy_ema:.3f}"
    )
    print(f"checkpoint: {result.checkpoint}")


if __name__ == "__main__":  # every task imports this file
    main()
