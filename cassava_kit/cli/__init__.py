"""The verbs of `python -m cassava_kit`: each parses, loads, and calls one function; heavy imports are late."""
