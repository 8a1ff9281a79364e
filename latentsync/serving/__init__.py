"""Jobs: one queue and its workers under the page, the HTTP API and the batch command."""
