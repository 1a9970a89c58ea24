"""A bundle's notebook, run at home as Kaggle would run it, offline and within limits."""
