"""The stream between a launcher and its tasks, and what the kernel says of processes."""
