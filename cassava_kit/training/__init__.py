"""A recipe, rows and a fold -> a run folder."""
