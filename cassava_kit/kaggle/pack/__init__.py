"""A bundle: code, weights and notebook as two flat datasets and a kernel."""
