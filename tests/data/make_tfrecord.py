"""Made tests/data/tensorflow.tfrecord and .gz with TensorFlow itself, and reads what evener wrote.

    python -m venv /tmp/tf && /tmp/tf/bin/pip install tensorflow-cpu==2.21.*
    /tmp/tf/bin/python tests/data/make_tfrecord.py write tests/data     # made the two files
    /tmp/tf/bin/python tests/data/make_tfrecord.py read FILE ...        # prints each record as a line of JSON

The tests take `EXAMPLES` from here to compare; TensorFlow is imported for these two commands only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def image(number):
    return bytes((place * (number + 1)) % 256 for place in range(784))


#: Images as the TensorFlow 1 tutorials wrote them, then one record with all that an Example can hold.
EXAMPLES = [{"image_raw": [image(n)], "pixels": [784], "label": [n % 10]} for n in range(3)] + [
    {
        "image_raw": [image(3)],
        "pixels": [784],
        "label": [3],
        "größe/大": [1.5, -2.25, float("inf"), 1e-40],
        "numbers": [0, -1, 2**63 - 1, -(2**63), 300],
        "texts": [b"", b"\x00\xff", "Ä".encode()],
        "no bytes": ("bytes", []),
        "no floats": ("float", []),
        "no numbers": ("int64", []),
        "": [7],
    }
]


def feature(tf, value):
    kind, items = value if isinstance(value, tuple) else (type(value[0]).__name__, value)
    if kind == "bytes":
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=items))
    if kind == "float":
        return tf.train.Feature(float_list=tf.train.FloatList(value=items))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=items))


def write(directory):
    import tensorflow as tf

    records = [
        tf.train.Example(
            features=tf.train.Features(feature={name: feature(tf, value) for name, value in example.items()})
        ).SerializeToString()
        for example in EXAMPLES
    ]
    for name, compression in (("tensorflow.tfrecord", None), ("tensorflow.tfrecord.gz", "GZIP")):
        with tf.io.TFRecordWriter(str(Path(directory, name)), compression) as writer:
            for record in records:
                writer.write(record)


def read(paths):
    import tensorflow as tf

    for record in tf.data.TFRecordDataset(paths).as_numpy_iterator():
        example = tf.train.Example.FromString(record)
        found = {}
        for name, value in example.features.feature.items():
            kind = value.WhichOneof("kind")
            items = list(getattr(value, kind).value)
            found[name] = [kind, [item.hex() if isinstance(item, bytes) else item for item in items]]
        print(json.dumps(found))


if __name__ == "__main__":
    write(sys.argv[2]) if sys.argv[1] == "write" else read(sys.argv[2:])
