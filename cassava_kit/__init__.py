"""Cassava Kit: from a downloaded image-classification code competition to a scored submission."""

from cassava_kit.files import KIT_VERSION as __version__

__all__ = ["__version__"]
