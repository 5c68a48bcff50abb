"""A user's own training loop: `join`, `prepare`, and what becomes of its models, optimizers and loaders then."""
