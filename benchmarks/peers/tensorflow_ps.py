"""A TensorFlow 1 cluster program: the peer whose place evener takes. Runs with TensorFlow 2 too.

As the tutorials wrote it: replica_device_setter, MonitoredTrainingSession, feed_dict; with `--mode sync`
SyncReplicasOptimizer. One thread a task.
"""

from __future__ import annotations

import functools

import tensorflow_work  # first: it sets what TensorFlow reads when it is imported

# isort: split
import tensorflow.compat.v1 as tf
from job import CLASSES, PIXELS, Job, told
from tensorflow.python.training import session_manager

# All workers but the first look whether it has made the variables every 30 s, and no session that monitors says how
# often.
session_manager.SessionManager = functools.partial(session_manager.SessionManager, recovery_wait_secs=0.2)


def build(job: Job, cluster: tf.train.ClusterSpec):
    """(images, labels, loss, train_op, hooks) of one worker."""
    with tf.device(tf.train.replica_device_setter(worker_device=f"/job:worker/task:{job.index}", cluster=cluster)):
        step = tf.train.get_or_create_global_step()
        images, labels = tf.placeholder(tf.float32, [None, PIXELS]), tf.placeholder(tf.int64, [None])
        normal = tf.truncated_normal_initializer
        w1 = tf.get_variable("w1", [PIXELS, job.hidden], initializer=normal(stddev=0.1))
        b1 = tf.get_variable("b1", [job.hidden], initializer=tf.zeros_initializer())
        w2 = tf.get_variable("w2", [job.hidden, CLASSES], initializer=normal(stddev=job.stddev))
        b2 = tf.get_variable("b2", [CLASSES], initializer=tf.zeros_initializer())
        scores = tf.matmul(tf.nn.relu(tf.matmul(images, w1) + b1), w2) + b2
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=scores))
        optimizer, hooks = tf.train.GradientDescentOptimizer(job.learning_rate), []
        if job.mode == "sync":
            count = len(job.workers)
            optimizer = tf.train.SyncReplicasOptimizer(optimizer, replicas_to_aggregate=count, total_num_replicas=count)
        train = optimizer.minimize(loss, global_step=step)
        if job.mode == "sync":
            hooks = [optimizer.make_session_run_hook(job.index == 0, num_tokens=0)]
    return images, labels, loss, train, hooks


def work(job: Job, cluster: tf.train.ClusterSpec, server: tf.train.Server) -> None:
    images, labels, loss, train, hooks = build(job, cluster)
    config, meter = tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1), job.slot()
    # Without filters a worker that starts late waits for ever for one that is done.
    config.device_filters.extend(["/job:ps", f"/job:worker/task:{job.index}"])
    with tf.train.MonitoredTrainingSession(
        master=server.target, is_chief=job.index == 0, hooks=hooks, save_checkpoint_secs=None, config=config,
        max_wait_secs=120,
    ) as session:  # fmt: skip
        for inputs, target in tensorflow_work.batches(job):
            meter.count(float(session.run([train, loss], {images: inputs, labels: target})[1]))


def main() -> None:
    job = told()
    tf.disable_v2_behavior()
    cluster = tf.train.ClusterSpec({"ps": list(job.ps), "worker": list(job.workers)})
    server = tf.train.Server(
        cluster, job_name=job.role, task_index=job.index,
        config=tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1),
    )  # fmt: skip
    if job.role == "ps":
        server.join()  # for ever: TensorFlow's servers do not notice the end of a run
    else:
        work(job, cluster, server)


if __name__ == "__main__":
    main()
