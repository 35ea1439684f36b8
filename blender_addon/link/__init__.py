"""The link to the backend process."""
