"""Results as people read them: the page and the terminal table."""
