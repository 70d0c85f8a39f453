"""What the programs beside this folder import."""
