"""Images without labels -> a backbone."""
