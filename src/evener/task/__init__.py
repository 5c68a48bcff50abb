"""One task of a run, from its first message to its last: ps, worker, tower, stage."""
