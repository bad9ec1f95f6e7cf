"""The texts in the records of a TFDS dataset, such as the names of the images' files."""

from flax_resnet.data.record_files import ShardedRecords
from flax_resnet.errors import DataError, one_line

CHUNK = 256  # records in memory at a time


def texts_of(records: ShardedRecords, feature: str) -> list[str]:
    """Return a text of each record; all records are read. A record without the text has an empty one.

    Args:
      records: the records.
      feature: name of the feature that holds the text.

    Raises:
      DataError: a record is corrupted.
    """
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    texts: list[str] = []
    for start in range(0, len(records), CHUNK):
        for record in records.read(range(start, min(start + CHUNK, len(records)))):
            try:
                value = (
                    tf.train.Example.FromString(record).features.feature[feature].bytes_list.value
                )
            except DecodeError as error:
                raise DataError(
                    f"is damaged: {one_line(error)}", key=f"record {len(texts)}"
                ) from error
            texts.append(value[0].decode(errors="replace") if value else "")
    return texts
