"""The agent's services, as the backup VM calls them."""
