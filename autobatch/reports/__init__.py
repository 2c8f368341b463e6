"""Everything found, as frozen data and as JSON with a schema version."""
