"""Which tasks there are and where: host lists, TF_CONFIG, torchrun, Slurm."""
