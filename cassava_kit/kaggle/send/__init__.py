"""Uploads, pushes, submissions, and what Kaggle answers."""
