"""The gateway over real HTTP, with a real database behind it."""
