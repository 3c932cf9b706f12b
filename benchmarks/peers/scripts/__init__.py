"""Programs of their own processes; those of the peers run in the peer's environment and import nothing of ours."""
