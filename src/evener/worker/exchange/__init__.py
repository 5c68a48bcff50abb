"""Where gradients go and parameters come from: servers, or this process itself."""
