"""TFRecords as a competition folder, read without TensorFlow."""
