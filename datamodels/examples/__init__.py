"""Examples of what one's own code may look like: copy them, and name yours in the settings."""
