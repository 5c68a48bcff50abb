"""TFRecord files of `tf.train.Example`: read by index or as a stream, and written. docs/data.md says how."""

from __future__ import annotations

from evener.data.tfrecord.dataset import TFRecords
from evener.data.tfrecord.example import decode, encode
from evener.data.tfrecord.schema import Schema
from evener.data.tfrecord.stream import Stream
from evener.data.tfrecord.writer import Part, Written, write

__all__ = ["Part", "Schema", "Stream", "TFRecords", "Written", "decode", "encode", "write"]
