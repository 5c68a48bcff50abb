"""Subcommands that are more than options: doctor, preparation, accounts, export."""
