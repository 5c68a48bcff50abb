"""The real policies on a virtual clock: what a mode would do with workers of these speeds."""
