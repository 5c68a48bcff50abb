"""The command line: options, subcommands, and how each ends."""
