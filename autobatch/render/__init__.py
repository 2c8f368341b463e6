"""Results as people read them: a terminal, Markdown, a page. The only place where units are converted."""
