"""A competition folder -> table, pixels, folds."""
