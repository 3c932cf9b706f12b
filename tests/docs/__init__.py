"""The documentation, held to what it says: CONTRIBUTING.md tells how its commands are marked."""
