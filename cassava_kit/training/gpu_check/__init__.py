"""Check a GPU in minutes: numbers, training, submission, two processes, hours. Entry point: `check.run_check`."""
