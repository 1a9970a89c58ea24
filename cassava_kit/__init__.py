"""Cassava Kit: from a downloaded image-classification code competition to a scored submission."""

__version__ = "0.1.0"
