"""What a server owns and saves: parameters, optimizers, averages, checkpoints."""
