"""`evener chaos`: seeded faults on the real processes of a training, and what must hold then."""
