"""Results for people: on a terminal, in Markdown, as a page. Units are converted only here."""
