"""All results of a run, as frozen data and as JSON with a schema version."""
