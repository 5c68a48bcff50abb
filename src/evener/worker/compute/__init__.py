"""Forward and backward on each device, and what feeds it."""
