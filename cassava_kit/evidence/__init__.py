"""Out-of-fold predictions -> scores, intervals, ensemble weights, finals."""
