"""All that a call starts."""
