"""A timm network, weights matched to it, and the one file that a trained one is kept in."""
