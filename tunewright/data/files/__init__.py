"""Files of rows: opened where they are, decompressed, decoded, and read as rows with their places."""
