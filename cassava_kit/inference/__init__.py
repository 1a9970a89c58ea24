"""Checkpoints and images -> probabilities -> `submission.csv`, inside a deadline.

The way of an image: `run.run_submission` writes the first file, `ensemble_run.EnsembleRun` measures and plans,
`runner.Runner.predict` takes it through a checkpoint and a view (`pixels.PixelStore` decodes it once, `forward.Forward`
answers), `votes.Votes` counts, `submission.write_answers` writes.
"""
