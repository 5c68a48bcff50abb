"""How a task becomes a process: forked, started anew, or asked of a standing server."""
