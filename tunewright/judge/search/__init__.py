"""Search: arms that rank the documents of a corpus, and the vectors that they search with."""
