"""Label noise: which labels are probably wrong, and what training does about them."""
