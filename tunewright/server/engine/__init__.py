"""The engine: one thread that answers all requests on a base, in one batch that rows join and leave."""
