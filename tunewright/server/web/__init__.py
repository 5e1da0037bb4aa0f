"""The dashboard: pages that the server renders, with the look of the report. What they show is on the server."""
