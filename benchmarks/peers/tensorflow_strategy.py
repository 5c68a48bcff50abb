"""TensorFlow 2's ParameterServerStrategy: a coordinator schedules steps on workers, variables lie on ps tasks.

Steps are scheduled one by one, as its guide has it, some ahead; the coordinator counts each when its loss is here.
"""

from __future__ import annotations

from collections import deque

import tensorflow_work  # first: it sets what TensorFlow reads when it is imported

# isort: split
import tensorflow as tf
from job import CLASSES, PIXELS, Job, told

AHEAD = 8  # steps of each worker that are scheduled and not done


def cluster_of(job: Job) -> tf.train.ClusterSpec:
    return tf.train.ClusterSpec({"ps": list(job.ps), "worker": list(job.workers)})


def serve(job: Job) -> None:
    # With fewer a server waits for itself (TensorFlow's tutorial says so); an operation still has one thread.
    between = len(job.workers) + 1
    config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=between)
    tf.distribute.Server(
        cluster_of(job), job_name=job.role, task_index=job.index, protocol="grpc", config=config
    ).join()  # fmt: skip


def variables(job: Job) -> list[tf.Variable]:
    shapes = [([PIXELS, job.hidden], 0.1), ([job.hidden], 0), ([job.hidden, CLASSES], job.stddev), ([CLASSES], 0)]
    return [tf.Variable(tf.random.truncated_normal(shape, stddev=stddev)) for shape, stddev in shapes]


def coordinate(job: Job) -> None:
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(cluster_of(job), rpc_layer="grpc")
    strategy = tf.distribute.ParameterServerStrategy(resolver)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    with strategy.scope():
        w1, b1, w2, b2 = weights = variables(job)

    def data() -> tf.data.Dataset:
        inputs, target = tensorflow_work.samples(job)
        return tf.data.Dataset.from_tensor_slices((inputs, target)).shuffle(1500).repeat().batch(100)

    @tf.function
    def step(iterator):
        images, labels = next(iterator)
        with tf.GradientTape() as tape:
            scores = tf.matmul(tf.nn.relu(tf.matmul(images, w1) + b1), w2) + b2
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=scores))
        for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
            weight.assign_sub(job.learning_rate * gradient)
        return loss

    iterator, meter = iter(coordinator.create_per_worker_dataset(data)), job.slot()
    scheduled = deque(coordinator.schedule(step, args=(iterator,)) for _ in range(AHEAD * len(job.workers)))
    while True:
        meter.count(float(scheduled.popleft().fetch()))
        scheduled.append(coordinator.schedule(step, args=(iterator,)))


def main() -> None:
    job = told()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    if job.role == "chief":
        coordinate(job)
    else:
        serve(job)


if __name__ == "__main__":
    main()
