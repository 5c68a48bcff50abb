"""One task of a TensorFlow 1 cluster program: the peer that evener is measured against. Runs with TensorFlow 2 too.

    python tensorflow_ps.py JOB INDEX PS_HOSTS WORKER_HOSTS DATA.npz --hidden H --steps N --warm-up N [--sync]

As the tutorials wrote it (replica_device_setter, MonitoredTrainingSession, feed_dict, SyncReplicasOptimizer): 784-H-10
with ReLU, plain SGD, batch 100, one thread a task. Asynchronous unless --sync. Worker 0 says "go" after
the warm-up, and near its end the global steps a second since then, counted over all workers.
"""

from __future__ import annotations

import argparse
import json
import os
import time

os.environ.update(
    TF_CPP_MIN_LOG_LEVEL="2", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", TF_ENABLE_ONEDNN_OPTS="1",
    TF_NUM_INTRAOP_THREADS="1",
)  # fmt: skip

import numpy as np
import tensorflow.compat.v1 as tf


def build(args: argparse.Namespace, cluster: tf.train.ClusterSpec):
    """(images, labels, loss, global_step, train_op, hooks) of one worker."""
    chief = args.index == 0
    with tf.device(tf.train.replica_device_setter(worker_device=f"/job:worker/task:{args.index}", cluster=cluster)):
        step = tf.train.get_or_create_global_step()
        images, labels = tf.placeholder(tf.float32, [None, 784]), tf.placeholder(tf.int64, [None])
        width = args.hidden
        w1 = tf.get_variable("w1", [784, width], initializer=tf.truncated_normal_initializer(stddev=0.1))
        b1 = tf.get_variable("b1", [width], initializer=tf.zeros_initializer())
        w2 = tf.get_variable("w2", [width, 10], initializer=tf.truncated_normal_initializer(stddev=0.1))
        b2 = tf.get_variable("b2", [10], initializer=tf.zeros_initializer())
        scores = tf.matmul(tf.nn.relu(tf.matmul(images, w1) + b1), w2) + b2
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=scores))
        optimizer, hooks = tf.train.GradientDescentOptimizer(0.1), []
        if args.sync:
            count = len(args.workers.split(","))
            optimizer = tf.train.SyncReplicasOptimizer(optimizer, replicas_to_aggregate=count, total_num_replicas=count)
        train = optimizer.minimize(loss, global_step=step)
        if args.sync:
            hooks = [optimizer.make_session_run_hook(chief, num_tokens=0)]
    return images, labels, loss, step, train, hooks


def work(args: argparse.Namespace, cluster: tf.train.ClusterSpec, server: tf.train.Server) -> None:
    with np.load(args.data) as data:
        inputs, target = data["inputs"], data["target"]
    images, labels, loss, step, train, hooks = build(args, cluster)
    hooks.append(tf.train.StopAtStepHook(last_step=args.steps))
    order = np.random.RandomState(args.index)
    config = tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
    # Without filters a worker that starts late waits for ever for one that is done.
    config.device_filters.extend(["/job:ps", f"/job:worker/task:{args.index}"])
    first: tuple[float, int] | None = None
    end = args.steps - 5  # the last steps are not counted: with --sync some worker may wait for ever for its peers
    with tf.train.MonitoredTrainingSession(
        master=server.target, is_chief=args.index == 0, hooks=hooks, save_checkpoint_secs=None, config=config
    ) as session:
        while not session.should_stop():
            rows = order.randint(0, len(inputs), 100)
            _, _, step_now = session.run([train, loss, step], {images: inputs[rows], labels: target[rows]})
            now = (time.monotonic(), int(step_now))
            if args.index:
                continue
            if first is None and now[1] >= args.warm_up:
                first = now
                print("go", flush=True)
            if first is not None and now[1] >= end > first[1]:
                count, end = now[1] - first[1], -1
                print(json.dumps({"rate": count / (now[0] - first[0]), "count": count}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job")
    parser.add_argument("index", type=int)
    for word in ("ps", "workers", "data"):
        parser.add_argument(word)
    for name in ("--hidden", "--steps", "--warm-up"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--sync", action="store_true")
    args = parser.parse_args()
    tf.disable_v2_behavior()
    cluster = tf.train.ClusterSpec({"ps": args.ps.split(","), "worker": args.workers.split(",")})
    server = tf.train.Server(
        cluster, job_name=args.job, task_index=args.index,
        config=tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1),
    )  # fmt: skip
    if args.job == "ps":
        server.join()  # for ever: TensorFlow's servers do not notice the end of a run
    else:
        work(args, cluster, server)
        os._exit(0)  # its server's threads would keep the process


if __name__ == "__main__":
    main()
